"""What an emoji may be asked for as: phrases and keywords, and captions drawn from them."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

from headrace_runner.models.emoji.words import words

# Words that people put before anything, and that change nothing.
ADJECTIVES = ("cute", "little", "big", "small", "beautiful", "nice", "cartoon", "simple", "single")


@dataclass(frozen=True, slots=True)
class Emoji:
    """One emoji of the subset."""

    name: str
    """Its short name in emoji-datasource."""
    image: str
    """The name of its file."""
    phrases: tuple[str, ...]
    """What people would ask for it as; the first names it best."""
    keywords: tuple[str, ...]
    """Words that go with it, which may go with others too."""


def read_emoji(data: Path) -> list[Emoji]:
    """The emoji of subset.txt.

    `data` is a directory with the npm packages emoji-datasource-google and emojilib, unpacked under
    their names. Raises `KeyError` for a name that the data source does not have.
    """
    datasource = data / "emoji-datasource-google" / "emoji.json"
    keywords = data / "emojilib" / "dist" / "emoji-en-US.json"
    subset = Path(__file__).with_name("subset.txt")
    known = {entry["short_name"]: entry for entry in json.loads(datasource.read_text("utf-8"))}
    of_character: dict[str, list[str]] = json.loads(keywords.read_text("utf-8"))
    found = []
    for line in subset.read_text("utf-8").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        name, _, phrases = line.partition(" | ")
        entry = known[name]
        character = "".join(chr(int(code, 16)) for code in entry["unified"].split("-"))
        more = of_character.get(character) or of_character.get(character.rstrip("\ufe0f"), [])
        found.append(
            Emoji(
                name=name,
                image=entry["image"],
                phrases=(*phrases.split(", "), entry["name"].lower()),
                keywords=tuple(word.replace("_", " ") for word in more),
            )
        )
    return found


def vocabulary(emoji: list[Emoji]) -> list[str]:
    """Every word of every phrase and keyword, sorted."""
    texts = [text for one in emoji for text in (*one.phrases, *one.keywords)]
    return sorted({word for text in (*texts, *ADJECTIVES) for word in words(text)})


def draw_caption(emoji: Emoji, rng: random.Random) -> tuple[str, ...]:
    """The words of a caption at random; seldom none."""
    if emoji.keywords and rng.random() < 0.08:
        texts = rng.sample(emoji.keywords, min(len(emoji.keywords), rng.randint(1, 3)))
    else:
        texts = [rng.choice(emoji.phrases[:1] if rng.random() < 0.3 else emoji.phrases)]
        if emoji.keywords and rng.random() < 0.15:
            texts += rng.sample(emoji.keywords, min(len(emoji.keywords), rng.randint(1, 2)))
    if rng.random() < 0.1:
        texts.append(rng.choice(ADJECTIVES))
    caption = [_altered(word, rng) for text in texts for word in words(text)]
    if len(caption) > 2 and rng.random() < 0.1:
        del caption[rng.randrange(len(caption))]
    return tuple(caption)


def _altered(word: str, rng: random.Random) -> str:
    """The word, or now and then its plural or singular, or the word with a slip in it."""
    chance = rng.random()
    if chance < 0.08:
        return word[:-1] if word.endswith("s") and len(word) > 3 else word + "s"
    if chance < 0.12 and len(word) > 4:
        at = rng.randrange(1, len(word) - 1)
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    if chance < 0.14 and len(word) > 4:
        at = rng.randrange(1, len(word) - 1)
        return word[:at] + word[at + 1 :]
    return word
