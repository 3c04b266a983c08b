"""Computes an encoder with MLX: token ids in, one vector for each row out.

Belongs to the thread that loads it, as all MLX arrays do. Knows nothing of requests.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import mlx.core as mx
import numpy as np
from mlx.nn.layers.activations import gelu, gelu_approx, relu
from numpy.typing import NDArray

from headrace_runner.models.device import read_weights
from headrace_runner.models.encoders.architectures import Activation, Shape, stored_names
from headrace_runner.models.encoders.layout import EncoderTraits, Pooling, read_traits
from headrace_runner.models.safetensors import read_tensors
from headrace_runner.models.tensors import load_tensors

Vectors: TypeAlias = NDArray[np.float32]
"""[rows, hidden]"""

_ACTIVATIONS: dict[Activation, Callable[[mx.array], mx.array]] = {
    "gelu": gelu,
    "gelu_new": gelu_approx,
    "gelu_pytorch_tanh": gelu_approx,
    "relu": relu,
}


class Encoder:
    """An encoder and how its tokens' vectors become one."""

    def __init__(self, shape: Shape, pooling: Pooling, weights: dict[str, mx.array]) -> None:
        """`weights`: by the names of `architectures.tensors_of`, all of one type."""
        self.shape = shape
        self._pooling = pooling
        self._weights = weights
        self._activation = _ACTIVATIONS[shape.activation]
        # No text here has a second part, so every token is of the first type.
        self._type = weights["embeddings.token_type_embeddings.weight"][0]

    @property
    def weights(self) -> str:
        """Type of the weights in memory."""
        return str(self._type.dtype).removeprefix("mlx.core.")

    @property
    def weights_bytes(self) -> int:
        return sum(array.nbytes for array in self._weights.values())

    def embed(self, rows: Sequence[Sequence[int]]) -> Vectors:
        """The vector of each row of tokens, pooled and not scaled.

        Rows have 1 to `shape.longest` tokens and are padded to the longest of them. What a row
        gives does not depend on the others but for rounding: in float32 on a CPU the numbers of a
        vector of length 1 differ by less than 1e-6.
        """
        lengths = np.array([len(row) for row in rows])
        longest = int(lengths.max())
        ids = np.full((len(rows), longest), self.shape.padding_id, dtype=np.int32)
        for line, row in zip(ids, rows, strict=True):
            line[: len(row)] = row
        there = None if lengths.min() == longest else np.arange(longest) < lengths[:, None]
        mask = None if there is None else mx.array(there)
        vectors = self._pool(self._hidden(mx.array(ids), mask), mask).astype(mx.float32)
        mx.eval(vectors)
        return np.array(vectors)

    def _hidden(self, ids: mx.array, mask: mx.array | None) -> mx.array:
        """The last layer's output, [rows, length, hidden]. `mask`: [rows, length], False where a
        row is padded."""
        weights, first = self._weights, self.shape.first_position
        places = weights["embeddings.position_embeddings.weight"]
        x = weights["embeddings.word_embeddings.weight"][ids]
        x = x + places[first : first + ids.shape[1]] + self._type
        x = self._norm(x, "embeddings.LayerNorm")
        keys = None if mask is None else mask[:, None, None, :]
        for number in range(self.shape.layers):
            layer = f"encoder.layer.{number}"
            found = self._attend(x, keys, f"{layer}.attention")
            x = self._norm(x + found, f"{layer}.attention.output.LayerNorm")
            inner = self._activation(self._linear(x, f"{layer}.intermediate.dense"))
            found = self._linear(inner, f"{layer}.output.dense")
            x = self._norm(x + found, f"{layer}.output.LayerNorm")
        return x

    def _attend(self, x: mx.array, keys: mx.array | None, name: str) -> mx.array:
        rows, length, hidden = x.shape
        heads = self.shape.heads
        query, key, value = (
            self._linear(x, f"{name}.self.{part}")
            .reshape(rows, length, heads, hidden // heads)
            .transpose(0, 2, 1, 3)
            for part in ("query", "key", "value")
        )
        scale = 1 / math.sqrt(hidden // heads)
        found = mx.fast.scaled_dot_product_attention(query, key, value, scale=scale, mask=keys)
        found = found.transpose(0, 2, 1, 3).reshape(rows, length, hidden)
        return self._linear(found, f"{name}.output.dense")

    def _pool(self, hidden: mx.array, mask: mx.array | None) -> mx.array:
        if self._pooling == "cls":
            return hidden[:, 0]
        if self._pooling == "max":
            if mask is not None:
                hidden = mx.where(mask[..., None], hidden, -math.inf)
            return hidden.max(axis=1)
        hidden = hidden.astype(mx.float32)
        if mask is None:
            return hidden.mean(axis=1)
        there = mask[..., None].astype(mx.float32)
        return (hidden * there).sum(axis=1) / there.sum(axis=1)

    def _linear(self, x: mx.array, name: str) -> mx.array:
        weights = self._weights
        return mx.addmm(weights[f"{name}.bias"], x, weights[f"{name}.weight"].T)

    def _norm(self, x: mx.array, name: str) -> mx.array:
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        return mx.fast.layer_norm(x, weight, bias, self.shape.epsilon)


def load_encoder(
    directory: Path,
    dtype: Literal["float32", "stored"],
    on_progress: Callable[[float], None] = lambda fraction: None,
) -> Encoder:
    """Loads the encoder in `directory`; `on_progress` gets the fraction that is done.

    "stored" takes the type of the word embeddings for all. Raises ModelCorrupt naming the file, and
    UnsupportedModel.
    """
    traits = read_traits(directory)
    return Encoder(traits.shape, traits.pooling, _weights(directory, traits, dtype, on_progress))


def _weights(
    directory: Path,
    traits: EncoderTraits,
    dtype: Literal["float32", "stored"],
    on_progress: Callable[[float], None],
) -> dict[str, mx.array]:
    names = stored_names(read_tensors(directory), traits.shape)
    stored: dict[str, mx.array] = {}
    for path in sorted(directory.glob("model*.safetensors")):
        stored |= load_tensors(path)
    words = stored[names["embeddings.word_embeddings.weight"]]
    kind = mx.float32 if dtype == "float32" else words.dtype
    weights = {own: stored[name].astype(kind) for own, name in names.items()}
    read_weights(weights.values(), on_progress)
    return weights
