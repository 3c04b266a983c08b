"""The emoji model's network: a U-Net over patches of 4×4 pixels that looks at words.

U-Net: Ronneberger et al., 2015; words by cross-attention at its lower level: Rombach et al.,
"High-Resolution Image Synthesis with Latent Diffusion Models", 2022. `training/emoji/network.py`
has the same in PyTorch, with the same names for the same weights.

Arrays are [batch, height, width, channels]. A batch is one image: see `pipeline`.
"""

from __future__ import annotations

import math

import mlx.core as mx
from mlx.nn.layers.activations import silu
from mlx.nn.layers.base import Module
from mlx.nn.layers.convolution import Conv2d
from mlx.nn.layers.embedding import Embedding
from mlx.nn.layers.linear import Linear
from mlx.nn.layers.normalization import GroupNorm, LayerNorm

from headrace_runner.models import vector_math
from headrace_runner.models.device import on_cpu
from headrace_runner.models.emoji.config import Shape
from headrace_runner.models.emoji.words import Vocabulary

_TIME_FEATURES = 128


class Network(Module):
    """Noised image, time and words to the clean image."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        high, low = shape.widths
        pixels = 3 * shape.patch**2
        width = shape.embedding
        self._patch = shape.patch
        self._laid_out = (1, -1, shape.lower_side, shape.lower_side)
        self.text = Text(shape)
        self.time1 = Linear(_TIME_FEATURES, width)
        self.time2 = Linear(width, width)
        self.pooled = Linear(shape.text_width, width)
        self.first = Conv2d(pixels, high, 3, padding=1)
        self.down = _Block(high, high, shape)
        self.lower = Linear(4 * high, low)
        self.sketch = Linear(width, shape.sketch * shape.lower_side**2)
        self.spread = Linear(shape.sketch, low)
        self.before = _Block(low, low, shape)
        self.look1 = _Attention(low, shape)
        self.middle = _Block(low, low, shape)
        self.look2 = _Attention(low, shape)
        self.after = _Block(2 * low, low, shape)
        self.higher = Linear(low, 4 * high)
        self.up = _Block(2 * high, high, shape)
        self.norm = GroupNorm(shape.groups, high, pytorch_compatible=True)
        self.last = Conv2d(high, pixels, 3, padding=1)

    def __call__(self, z: mx.array, t: float, text: mx.array) -> mx.array:
        """The clean image, as z is: [1, height, width, 3], around -1 to 1.

        t runs from 0, clean, to 1, noise. `text`, [1, words + 1, text width], is from `text`.
        """
        dtype = text.dtype
        caption = self.pooled(text[:, 0])
        time = self.time2(_silu(self.time1(time_features(t).astype(dtype))))
        embedding = _silu(time + caption)
        sketch = self.sketch(_silu(caption)).reshape(self._laid_out).transpose(0, 2, 3, 1)
        x0 = self.first(to_depth(z.astype(dtype), self._patch))
        x = self.down(x0, embedding)
        y0 = self.lower(to_depth(x, 2)) + self.spread(sketch)
        y = self.look1(self.before(y0, embedding), text)
        y = self.look2(self.middle(y, embedding), text)
        y = self.after(mx.concatenate([y, y0], axis=-1), embedding)
        x = self.up(mx.concatenate([to_space(self.higher(y), 2), x], axis=-1), embedding)
        x = self.last(_silu(self.norm(x)))
        return to_space(x, self._patch).astype(mx.float32)


class Text(Module):
    """Words to vectors, after one that stands for the caption as a whole."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.words = Embedding(shape.words + 1, shape.text_width)
        self.grams = Embedding(shape.buckets, shape.text_width)
        self.start = mx.zeros(shape.text_width)
        self.layers = [_TextLayer(shape) for _ in range(shape.text_layers)]
        self.norm = LayerNorm(shape.text_width)

    def __call__(self, caption: tuple[str, ...], vocabulary: Vocabulary) -> mx.array:
        """[1, words + 1, text width]; of a caption without words, what any image may have."""
        vectors = [self.start]
        for word in caption:
            pieces = self.grams(mx.array(vocabulary.grams(word))).mean(axis=0)
            vectors.append(self.words(mx.array(vocabulary.number(word))) + pieces)
        x = mx.stack(vectors)[None]
        for layer in self.layers:
            x = layer(x)
        return _now(self.norm(x))


class _TextLayer(Module):
    """A layer of a transformer; the words have no order."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        width = shape.text_width
        self._heads = shape.heads
        self.norm1 = LayerNorm(width)
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, width)
        self.norm2 = LayerNorm(width)
        self.up = Linear(width, 2 * width)
        self.down = Linear(2 * width, width)

    def __call__(self, x: mx.array) -> mx.array:
        q, k, v = mx.split(self.qkv(self.norm1(x)), 3, axis=-1)
        x = _now(x + self.out(_attend(q, k, v, self._heads)))
        return x + self.down(_silu(self.up(self.norm2(x))))


class _Block(Module):
    """Two 3×3 convolutions, the second after a scale and shift by the embedding (FiLM)."""

    def __init__(self, taken: int, width: int, shape: Shape) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.norm1 = GroupNorm(shape.groups, taken, pytorch_compatible=True)
        self.conv1 = Conv2d(taken, width, 3, padding=1)
        self.film = Linear(shape.embedding, 2 * width)
        self.norm2 = GroupNorm(shape.groups, width, pytorch_compatible=True)
        self.conv2 = Conv2d(width, width, 3, padding=1)
        if taken != width:
            self.skip = Linear(taken, width)

    def __call__(self, x: mx.array, embedding: mx.array) -> mx.array:
        h = self.conv1(_silu(self.norm1(x)))
        scale, shift = mx.split(self.film(embedding)[:, None, None], 2, axis=-1)
        h = self.conv2(_silu(self.norm2(h) * (1 + scale) + shift))
        return _now(h + (self.skip(x) if "skip" in self else x))


class _Attention(Module):
    """Every place looks at all places, then at the words."""

    def __init__(self, width: int, shape: Shape) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._heads = shape.heads
        self.norm1 = GroupNorm(shape.groups, width, pytorch_compatible=True)
        self.qkv = Linear(width, 3 * width)
        self.out1 = Linear(width, width)
        self.norm2 = GroupNorm(shape.groups, width, pytorch_compatible=True)
        self.q = Linear(width, width)
        self.kv = Linear(shape.text_width, 2 * width)
        self.out2 = Linear(width, width)

    def __call__(self, x: mx.array, text: mx.array) -> mx.array:
        q, k, v = mx.split(self.qkv(_places(self.norm1(x))), 3, axis=-1)
        x = _now(x + self.out1(_attend(q, k, v, self._heads)).reshape(x.shape))
        k, v = mx.split(self.kv(text), 2, axis=-1)
        q = self.q(_places(self.norm2(x)))
        return _now(x + self.out2(_attend(q, k, v, self._heads)).reshape(x.shape))


def _places(x: mx.array) -> mx.array:
    return x.reshape(x.shape[0], -1, x.shape[-1])


def _attend(q: mx.array, k: mx.array, v: mx.array, heads: int) -> mx.array:
    """[batch, queries, width] from keys and values of [batch, keys, width]."""
    q, k, v = (y.reshape(*y.shape[:2], heads, -1).swapaxes(1, 2) for y in (q, k, v))
    found = mx.fast.scaled_dot_product_attention(q, k, v, scale=q.shape[-1] ** -0.5)
    return found.swapaxes(1, 2).reshape(found.shape[0], found.shape[2], -1)


def _now(x: mx.array) -> mx.array:
    """Evaluated where it stands.

    What is computed later in one go may reuse the memory of what it is computed from, which depends
    on how far MLX's own thread is; and with that the order of a sum, and so its last bit. The same
    seed is to give the same bytes.
    """
    mx.eval(x)
    return x


def _silu(x: mx.array) -> mx.array:
    _now(x)
    if x.dtype == mx.float32 and on_cpu():
        return vector_math.swiglu(x, mx.array(1.0))
    return silu(x)  # type: ignore[no-any-return]


def time_features(t: float) -> mx.array:
    """[1, 128]: cosines, then sines, of angles up to 1 to 1,000 radians at t = 1."""
    half = _TIME_FEATURES // 2
    frequencies = mx.exp(mx.arange(half) * (math.log(1000.0) / (half - 1)))
    return mx.concatenate([mx.cos(t * frequencies), mx.sin(t * frequencies)])[None]


def to_depth(x: mx.array, side: int) -> mx.array:
    """Squares of `side` pixels become the channels of one, in PyTorch's order."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // side, side, w // side, side, c).transpose(0, 1, 3, 5, 2, 4)
    return x.reshape(b, h // side, w // side, -1)


def to_space(x: mx.array, side: int) -> mx.array:
    """The inverse of `to_depth`."""
    b, h, w, _ = x.shape
    x = x.reshape(b, h, w, -1, side, side).transpose(0, 1, 4, 2, 5, 3)
    return x.reshape(b, h * side, w * side, -1)
