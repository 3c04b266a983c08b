"""The network in PyTorch, for training alone; `headrace_runner.models.emoji.network` is the same
in MLX, with the same names for the same weights."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import (
    pixel_shuffle,
    pixel_unshuffle,
    scaled_dot_product_attention,
    silu,
)


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of the network."""

    words: int
    """Of the vocabulary, without the one for all others."""
    buckets: int = 4096
    """Of the n-grams."""
    text_width: int = 128
    text_layers: int = 2
    widths: tuple[int, int] = (96, 192)
    """Channels at 16×16 and at 8×8."""
    embedding: int = 256
    sketch: int = 48
    """Channels of what the caption lays out at 8×8 before the noise is looked at."""
    heads: int = 4
    groups: int = 16
    patch: int = 4
    image: int = 64

    @property
    def lower_side(self) -> int:
        """Places on a side of the lower level."""
        return self.image // self.patch // 2

    def as_dict(self) -> dict[str, object]:
        return {**asdict(self), "widths": list(self.widths)}


class Block(nn.Module):
    """Two 3×3 convolutions, the second after a scale and shift by the embedding (FiLM)."""

    def __init__(self, taken: int, width: int, shape: Shape) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(shape.groups, taken)
        self.conv1 = nn.Conv2d(taken, width, 3, padding=1)
        self.film = nn.Linear(shape.embedding, 2 * width)
        self.norm2 = nn.GroupNorm(shape.groups, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.skip = nn.Conv2d(taken, width, 1) if taken != width else None
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(silu(self.norm1(x)))
        scale, shift = self.film(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.conv2(silu(self.norm2(h) * (1 + scale) + shift))
        return h + (x if self.skip is None else self.skip(x))


class Attention(nn.Module):
    """Every place looks at all places, then at the words."""

    def __init__(self, width: int, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.norm1 = nn.GroupNorm(shape.groups, width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out1 = nn.Linear(width, width)
        self.norm2 = nn.GroupNorm(shape.groups, width)
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(shape.text_width, 2 * width)
        self.out2 = nn.Linear(width, width)
        nn.init.zeros_(self.out1.weight)
        nn.init.zeros_(self.out2.weight)

    def forward(self, x: Tensor, text: Tensor, seen: Tensor) -> Tensor:
        h, w = x.shape[2:]
        places = self.norm1(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(places).chunk(3, dim=-1)
        x = x + self._back(self.out1(self._attend(q, k, v, None)), h, w)
        q = self.q(self.norm2(x).flatten(2).transpose(1, 2))
        k, v = self.kv(text).chunk(2, dim=-1)
        return x + self._back(self.out2(self._attend(q, k, v, seen[:, None, None, :])), h, w)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = (y.unflatten(2, (self.heads, -1)).transpose(1, 2) for y in (q, k, v))
        return scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)

    @staticmethod
    def _back(y: Tensor, h: int, w: int) -> Tensor:
        return y.transpose(1, 2).unflatten(2, (h, w))


class TextLayer(nn.Module):
    """A layer of a transformer; the words have no order."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = shape.text_width
        self.heads = shape.heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        q, k, v = (
            y.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for y in self.qkv(self.norm1(x)).chunk(3, dim=-1)
        )
        attended = scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None, None, :])
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.down(silu(self.up(self.norm2(x))))


class Text(nn.Module):
    """Words to vectors, after one that stands for the caption as a whole."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.words = nn.Embedding(shape.words + 1, shape.text_width, padding_idx=0)
        self.grams = nn.EmbeddingBag(shape.buckets, shape.text_width, mode="mean")
        self.start = nn.Parameter(torch.randn(shape.text_width) * 0.5)
        self.layers = nn.ModuleList(TextLayer(shape) for _ in range(shape.text_layers))
        self.norm = nn.LayerNorm(shape.text_width)
        nn.init.normal_(self.words.weight, std=0.5)
        nn.init.zeros_(self.words.weight[0])
        nn.init.normal_(self.grams.weight, std=1.0)

    def forward(self, numbers: Tensor, grams: Tensor, offsets: Tensor, seen: Tensor) -> Tensor:
        """numbers [batch, words]; grams of all places one after the other, which begin at offsets
        [batch × words]; seen [batch, words + 1], false where there is no word."""
        x = self.words(numbers) + self.grams(grams, offsets).view(*numbers.shape, -1)
        x = torch.cat([self.start.expand(len(x), 1, -1), x], dim=1)
        for layer in self.layers:
            x = layer(x, seen)
        return self.norm(x)


class Network(nn.Module):
    """Noised image, time and words to the clean image.

    A U-Net (Ronneberger et al., 2015) over patches of 4×4 pixels, with the attention of latent
    diffusion (Rombach et al., 2022) at its lower level.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        high, low = shape.widths
        patch = 3 * shape.patch**2
        width = shape.embedding
        self.text = Text(shape)
        self.time1 = nn.Linear(128, width)
        self.time2 = nn.Linear(width, width)
        self.pooled = nn.Linear(shape.text_width, width)
        self.first = nn.Conv2d(patch, high, 3, padding=1)
        self.down = Block(high, high, shape)
        self.lower = nn.Conv2d(4 * high, low, 1)
        self.sketch = nn.Linear(width, shape.sketch * shape.lower_side**2)
        self.spread = nn.Conv2d(shape.sketch, low, 1)
        self.before = Block(low, low, shape)
        self.look1 = Attention(low, shape)
        self.middle = Block(low, low, shape)
        self.look2 = Attention(low, shape)
        self.after = Block(2 * low, low, shape)
        self.higher = nn.Conv2d(low, 4 * high, 1)
        self.up = Block(2 * high, high, shape)
        self.norm = nn.GroupNorm(shape.groups, high)
        self.last = nn.Conv2d(high, patch, 3, padding=1)
        nn.init.zeros_(self.last.weight)

    def forward(
        self, z: Tensor, t: Tensor, numbers: Tensor, grams: Tensor, offsets: Tensor, seen: Tensor
    ) -> Tensor:
        """z [batch, 3, 64, 64], t [batch] in 0 (clean) to 1 (noise); the rest as `Text` has it."""
        text = self.text(numbers, grams, offsets, seen)
        caption = self.pooled(text[:, 0])
        embedding = silu(self.time2(silu(self.time1(time_features(t)))) + caption)
        side = self.shape.lower_side
        sketch = self.spread(self.sketch(silu(caption)).unflatten(1, (-1, side, side)))
        patch = self.shape.patch
        x0 = self.first(pixel_unshuffle(z, patch))
        x = self.down(x0, embedding)
        y0 = self.lower(pixel_unshuffle(x, 2)) + sketch
        y = self.look1(self.before(y0, embedding), text, seen)
        y = self.look2(self.middle(y, embedding), text, seen)
        y = self.after(torch.cat([y, y0], dim=1), embedding)
        x = self.up(torch.cat([pixel_shuffle(self.higher(y), 2), x], dim=1), embedding)
        return pixel_shuffle(self.last(silu(self.norm(x))), patch)


def time_features(t: Tensor) -> Tensor:
    """[batch] to [batch, 128]: cosines, then sines, of 1 to 1,000 radians from 0 to 1."""
    frequencies = torch.exp(torch.arange(64, device=t.device) * (math.log(1000.0) / 63))
    angles = t[:, None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
