"""The prompts of the bench: as many different texts of about 60 tokens as it takes, and long ones.

Each begins with another word, so that no server gains by remembering an earlier prompt, and the
model writes on for long without ending its text. Pure and always the same.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

_FIRST_WORDS = (
    "Ada Bruno Clara Dmitri Elena Farid Greta Hugo Irina Jonas Kamal Lucia Marek Nadia Oscar Petra "
    "Quentin Rosa Stefan Tamara Ursula Viktor Wanda Xavier Yusuf Zelda Anton Bianca Cesar Dora "
    "Emil Fatima Gustav Hanna Ivan Julia Karim Leila Martin Nina Olga Pablo Ruth Samuel Teresa Uwe "
    "Vera Walter Ana Boris Carmen David Edith Felix Gloria Henrik Ines Jakob Kira Leo Maria Nils"
)
_NAMES = _FIRST_WORDS.split()
_TRADES = ("baker", "carpenter", "doctor", "farmer", "gardener", "painter", "sailor", "teacher")
_PLACES = (
    "a small village by the river",
    "the old town behind the harbor",
    "a quiet valley in the mountains",
    "the last house of a long street",
    "a busy city near the sea",
)
_HABITS = (
    "walked to the market to talk with the neighbors",
    "sat under the big tree and read a letter",
    "opened the window and looked at the sky",
    "wrote a few lines into a blue notebook",
    "fed the birds that came to the garden",
    "listened to the stories of the travelers",
    "repaired whatever the children had broken",
)
_EVENTS = (
    "a stranger with a heavy suitcase knocked at the door",
    "the bells began to ring in the middle of the night",
    "a small boat without anybody in it came down the water",
    "somebody had left a map with a red cross on the table",
    "the first snow fell much earlier than in other years",
    "a horse that nobody knew stood in front of the house",
)

MAX_PROMPTS = len(_NAMES)


def prompts(count: int) -> list[str]:
    """The first `count` prompts. Raises ValueError when there are not so many."""
    if count > MAX_PROMPTS:
        raise ValueError(f"{count} prompts are needed, and there are {MAX_PROMPTS}")
    return [_prompt(index) for index in range(count)]


def long_text(index: int, tokens: int, count: Callable[[str], int]) -> str:
    """A text of `tokens` tokens as `count` counts them, or up to a sentence more.

    Texts of different `index` begin with different words, while there are MAX_PROMPTS of them.
    """
    random = Random(index)
    name = _NAMES[index % len(_NAMES)]
    parts = [f"{name} told many stories in {random.choice(_PLACES)}."]
    total = count(parts[0])
    while total < tokens:
        person = random.choice(_NAMES)
        trade, habit = random.choice(_TRADES), random.choice(_HABITS)
        parts.append(f" When {random.choice(_EVENTS)}, {person}, a {trade}, {habit}.")
        total += count(parts[-1])
    return "".join(parts)


def _prompt(index: int) -> str:
    return (
        f"{_NAMES[index]} was a {_TRADES[index % len(_TRADES)]} who lived in "
        f"{_PLACES[index % len(_PLACES)]}. Every morning {_NAMES[index]} "
        f"{_HABITS[index % len(_HABITS)]}. One day, when nobody expected it, "
        f"{_EVENTS[index % len(_EVENTS)]}. This is the story of what happened next. At first"
    )
