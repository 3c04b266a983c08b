"""The images and captions that the network learns from, wholly in memory."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from headrace_runner.models.emoji.words import MAX_WORDS, Vocabulary
from training.emoji.captions import Emoji, draw_caption

SHIFT = 2
"""Pixels that an image is moved by, at most, in both directions."""
UNCONDITIONAL = 0.1
"""Share of captions without words, for classifier-free guidance."""
UNNUMBERED = 0.25
"""Share of words that are read by their n-grams alone, as words never seen are."""


def read_image(path: Path) -> Tensor:
    """[3, height, width] of -1 to 1, on white."""
    with Image.open(path) as opened:
        drawn = opened.convert("RGBA")
    white = Image.new("RGBA", drawn.size, "white")
    pixels = np.asarray(Image.alpha_composite(white, drawn).convert("RGB"), dtype=np.float32)
    return torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1


class Words:
    """A batch of captions as the network takes them."""

    def __init__(
        self,
        captions: list[tuple[str, ...]],
        vocabulary: Vocabulary,
        unnumbered: random.Random | None = None,
    ) -> None:
        """With `unnumbered`, some words lose their number at random."""
        longest = max(1, *map(len, captions))
        self.numbers = torch.zeros(len(captions), longest, dtype=torch.long)
        self.seen = torch.zeros(len(captions), longest + 1, dtype=torch.bool)
        self.seen[:, 0] = True
        grams: list[int] = []
        offsets: list[int] = []
        for row, caption in enumerate(captions):
            for place in range(longest):
                offsets.append(len(grams))
                if place < len(caption):
                    word = caption[place]
                    self.seen[row, place + 1] = True
                    grams += vocabulary.grams(word)
                    if unnumbered is None or unnumbered.random() >= UNNUMBERED:
                        self.numbers[row, place] = vocabulary.number(word)
        self.grams = torch.tensor(grams, dtype=torch.long)
        self.offsets = torch.tensor(offsets, dtype=torch.long)

    def arguments(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.numbers, self.grams, self.offsets, self.seen


class Data:
    """Draws batches."""

    def __init__(self, emoji: list[Emoji], images: Path, vocabulary: Vocabulary) -> None:
        """`images` is the directory of the 64×64 files."""
        self._emoji = emoji
        self._vocabulary = vocabulary
        read = torch.stack([read_image(images / one.image) for one in emoji])
        self._padded = torch.nn.functional.pad(read, (SHIFT,) * 4, value=1.0)

    def batch(self, size: int, rng: random.Random) -> tuple[Tensor, Words]:
        """Images [size, 3, height, width], all different, and their captions."""
        chosen = rng.sample(range(len(self._emoji)), size)
        side = self._padded.shape[-1] - 2 * SHIFT
        images = []
        captions = []
        for index in chosen:
            y, x = (_shift(rng) for _ in range(2))
            images.append(self._padded[index, :, y : y + side, x : x + side])
            caption = draw_caption(self._emoji[index], rng)
            captions.append(() if rng.random() < UNCONDITIONAL else caption[:MAX_WORDS])
        return torch.stack(images), Words(captions, self._vocabulary, rng)


def _shift(rng: random.Random) -> int:
    """Mostly none, so that what is learnt is sharp."""
    return SHIFT if rng.random() < 0.85 else rng.randint(0, 2 * SHIFT)
