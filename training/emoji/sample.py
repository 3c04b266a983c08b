"""Draws with the network in PyTorch, to see how training goes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from headrace_runner.models.emoji.words import Vocabulary, words
from training.emoji.data import Words
from training.emoji.network import Network

# fmt: off
SHEET = (
    "a red rose", "cat", "dog", "pizza", "rainbow", "red car", "house", "rocket", "sad face",
    "sunflower", "penguin", "strawberry", "birthday cake", "guitar", "red heart", "snowman",
    "panda", "green apple", "airplane", "thumbs up", "tree", "fish", "ghost", "robot", "butterfly",
    "banana", "crown", "bicycle", "umbrella", "burger", "earth", "laptop", "octopus", "owl",
    "fire", "alarm clock", "cup of coffee", "castle", "turtle", "light bulb",
    "cool face with sunglasses", "key", "bus", "soccer ball", "crescent moon", "frog", "mushroom",
    "scissors",
)
# fmt: on


@torch.no_grad()
def sample(
    network: Network,
    prompts: Sequence[str],
    vocabulary: Vocabulary,
    *,
    steps: int = 20,
    guidance: float = 2.5,
    seed: int = 0,
) -> Tensor:
    """[prompts, 3, height, width] of -1 to 1, by Euler's method from noise."""
    side = network.shape.image
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(len(prompts), 3, side, side, generator=generator)
    captions = [words(prompt) for prompt in prompts]
    told = Words(captions + [()] * len(prompts), vocabulary).arguments()
    times = torch.linspace(1, 0, steps + 1)
    for now, then in pairwise(times.tolist()):
        both = network(torch.cat([z, z]), torch.full((2 * len(z),), now), *told)
        wanted, any_image = both.float().chunk(2)
        clean = (any_image + guidance * (wanted - any_image)).clamp(-1, 1)
        z = clean + (z - clean) * (then / now)
    return z


def save_sheet(images: Tensor, path: Path, columns: int) -> None:
    """All images in one PNG, `columns` in a row."""
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    side = pixels.shape[1]
    rows = -(-len(pixels) // columns)
    sheet = np.full((rows * side, columns * side, 3), 255, dtype=np.uint8)
    for index, one in enumerate(pixels):
        y, x = index // columns * side, index % columns * side
        sheet[y : y + side, x : x + side] = one
    Image.fromarray(sheet).save(path)
