"""Writes what the network in PyTorch computes with exported weights, for a test of the runner to
compare with: `python -m training.emoji.reference --weights DIR --to FILE`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from headrace_runner.models.emoji.words import Vocabulary, words
from training.emoji.data import Words
from training.emoji.network import Network, Shape

CASES = (("a red rose", 1.0), ("zebra", 0.55), ("teh kittne in spaaace", 0.8), ("", 0.2))
"""Prompt and time."""
EVERY = 97
"""Of the values of an image, flattened, this is the distance of those that are written."""


def wave(side: int) -> Tensor:
    """An image that needs no file, [1, 3, side, side]."""
    count = torch.arange(side * side * 3, dtype=torch.float64)
    return torch.sin(count * 0.37).float().reshape(1, side, side, 3).permute(0, 3, 1, 2)


def restored(weights: dict[str, Tensor], like: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `export.converted`."""
    state = {}
    for name, weight in weights.items():
        shape = like[name].shape
        if len(shape) == 4:
            weight = weight.reshape(shape[0], *shape[2:], shape[1]).permute(0, 3, 1, 2)
        state[name] = weight.float()
    return state


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description="Writes expected values.")
    parser.add_argument("--weights", type=Path, required=True, help="directory of the export")
    parser.add_argument("--to", type=Path, required=True, help="file to write")
    options = parser.parse_args()
    stated = json.loads((options.weights / "config.json").read_text("utf-8"))["shape"]
    shape = Shape(**{**stated, "widths": tuple(stated["widths"])})
    network = Network(shape).eval()
    weights = load_file(options.weights / "model.safetensors")
    network.load_state_dict(restored(weights, network.state_dict()))
    listed = (options.weights / "vocabulary.txt").read_text("utf-8").split()
    vocabulary = Vocabulary({word: i + 1 for i, word in enumerate(listed)}, shape.buckets)
    cases = []
    for prompt, t in CASES:
        told = Words([words(prompt)], vocabulary).arguments()
        image = network(wave(shape.image), torch.tensor([t]), *told).permute(0, 2, 3, 1).flatten()
        values = [round(value, 6) for value in image[::EVERY].tolist()]
        cases.append({"prompt": prompt, "t": t, "values": values})
    text = json.dumps({"every": EVERY, "cases": cases}, indent=None)
    options.to.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
