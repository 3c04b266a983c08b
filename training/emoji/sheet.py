"""Draws the contact sheet with the runner: `python -m training.emoji.sheet --to FILE`.

64 prompts, each by two seeds, as anyone would ask for them: nothing is chosen among what comes out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image, ImageDraw

from headrace_runner.models.emoji.family import FAMILY, SHIPPED
from headrace_runner.models.pipeline import Drawing, Unwatched

# fmt: off
PROMPTS = (
    "a red rose", "dog", "cat", "a lion", "panda", "fox", "unicorn", "pig", "penguin", "owl",
    "frog", "turtle", "whale", "octopus", "butterfly", "ladybug", "a sunflower", "tulip",
    "palm tree", "cactus", "four leaf clover", "mushroom", "grapes", "watermelon", "banana",
    "green apple", "strawberry", "carrot", "pizza", "hamburger", "donut", "birthday cake",
    "a cup of coffee", "beer", "happy face", "face with tears of joy", "heart eyes",
    "cool face with sunglasses", "crying face", "angry face", "skull", "ghost", "robot",
    "thumbs up", "sun", "crescent moon", "rainbow", "umbrella", "snowman", "fire",
    "planet earth", "volcano", "house", "castle", "red car", "bus", "bicycle", "airplane",
    "rocket", "sailboat", "soccer ball", "guitar", "red heart", "key",
)
# fmt: on
SEEDS = (1, 2)
COLUMNS = 8
"""Of prompts."""
LABEL = 12
"""Pixels below the images of a prompt, for its words."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Draws the contact sheet.")
    parser.add_argument("--weights", type=Path, default=SHIPPED, help="directory of the model")
    parser.add_argument("--to", type=Path, required=True, help="PNG file to write")
    options = parser.parse_args()
    pipeline = FAMILY.load(options.weights, "float32", lambda _: None)
    traits = pipeline.traits
    side = traits.width
    wide, high = len(SEEDS) * side, side + LABEL
    rows = -(-len(PROMPTS) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * wide, rows * high), "white")
    labels = ImageDraw.Draw(sheet)
    for place, prompt in enumerate(PROMPTS):
        drawings = [Drawing(prompt, seed, side, side, traits.steps) for seed in SEEDS]
        x, y = place % COLUMNS * wide, place // COLUMNS * high
        for index, pixels in enumerate(pipeline.draw(drawings, Unwatched())):
            sheet.paste(Image.fromarray(pixels), (x + index * side, y))
        labels.text((x + 3, y + side), prompt, fill="black")
    sheet.quantize(192, dither=Image.Dither.NONE).save(options.to, optimize=True)


if __name__ == "__main__":
    main()
