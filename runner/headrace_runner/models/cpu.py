"""Computes a model's quantised layers with headrace_kernels, where a CPU has them.

The layers are found by their type, whatever the architecture. What the kernels do not cover stays
as it is.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from functools import lru_cache
from types import ModuleType
from typing import Any

import mlx.core as mx
from mlx.nn.layers import activations as functions
from mlx.nn.layers.base import Module
from mlx.nn.layers.normalization import RMSNorm
from mlx.nn.layers.quantized import QuantizedEmbedding, QuantizedLinear
from mlx.utils import tree_map
from mlx_lm.models import activations
from mlx_lm.models.mla import QuantizedMultiLinear
from mlx_lm.models.switch_layers import QuantizedSwitchLinear

from headrace.host.kernels import NOT_COVERED, OFF, SWITCH, cover, cover_layer
from headrace_runner.models.device import on_cpu


def why_not(config: Mapping[str, Any]) -> str:
    """Why a model of this config.json cannot be computed with the kernels here; "" if it can."""
    if not on_cpu():
        return "MLX does not compute on a CPU here"
    if not cover(config):
        return NOT_COVERED
    try:
        _kernels()
    except ImportError as error:
        return str(error)
    return ""


def pack(model: Any) -> None:
    """Replaces the layers that the kernels cover by such as use them. Lazy."""
    _kernels()

    def packed(layer: Module) -> Module:
        ours = _OURS.get(type(layer))
        if ours is not None and cover_layer(vars(layer)):
            return ours(layer)
        if type(layer) is RMSNorm:
            return PackedNorm(layer)
        return layer

    leaves = model.leaf_modules()
    model.update_modules(tree_map(packed, leaves, is_leaf=Module.is_module))


def rounds(model: Any) -> bool:
    """Whether it rounds to 8 bits on its way, so that a last digit may make a larger difference."""
    return any(isinstance(each, _Packed) for each in model.modules())


def swiglu(gate: mx.array, x: mx.array) -> mx.array:
    """silu(gate) * x."""
    if gate.dtype == x.dtype == mx.float32 and gate.shape == x.shape:
        return _kernels().swiglu(gate, x)  # type: ignore[no-any-return]
    return activations.swiglu(gate, x)  # type: ignore[no-any-return]


def gelu(x: mx.array) -> mx.array:
    """x times the share of a normal distribution below x."""
    if x.dtype == mx.float32:
        return _kernels().gelu(x, by_tanh=False)  # type: ignore[no-any-return]
    return functions.gelu(x)


def gelu_approx(x: mx.array) -> mx.array:
    """The same by tanh."""
    if x.dtype == mx.float32:
        return _kernels().gelu(x, by_tanh=True)  # type: ignore[no-any-return]
    return functions.gelu_approx(x)  # type: ignore[no-any-return]


def rotate(x: mx.array, cos: mx.array, sin: mx.array, dims: int, traditional: bool) -> mx.array:
    """A rotary embedding of x, [rows, heads, tokens, size], by the angles of each row's tokens."""
    return _kernels().rotate(x, cos, sin, dims, traditional)  # type: ignore[no-any-return]


def weighs(logits: mx.array) -> bool:
    """Whether `weigh` is to be had for these: where the kernels were loaded, for a model's layers.
    For this alone they are not, since a package that breaks would break a request."""
    return logits.dtype == mx.float32 and "headrace_kernels" in sys.modules


def weigh(logits: mx.array, scale: mx.array) -> mx.array:
    """Unnormalised probabilities of logits; see `engine.text.distribution.weights`."""
    return _kernels().weigh(logits, scale)  # type: ignore[no-any-return]


def attends(queries: mx.array, keys: mx.array, values: mx.array) -> bool:
    """Whether the kernels cover attention of these types and these heads.

    Keys and values are in float32, or as `round_heads` gives them."""
    types = queries.dtype, keys.dtype, values.dtype
    sizes = queries.shape[-1], values.shape[-1]
    if types == (mx.float32, mx.int16, mx.int16):
        return True  # They were covered when they were rounded.
    return types == (mx.float32,) * 3 and not any(size % 16 for size in sizes)


def round_heads(x: mx.array) -> mx.array:
    """Keys or values, [..., size] of float32, in 16 bits each: [..., size + 2]."""
    return _kernels().round_heads(x)  # type: ignore[no-any-return]


def attend(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    scale: float,
    padding: mx.array | None,
    recent: mx.array | None,
) -> mx.array:
    """Attention; see `engine.text.attention.attend`."""
    found: mx.array = _kernels().attend(queries, keys, values, scale, padding, recent)
    return found


class _Packed(Module):
    """What all layers of packed matrices are."""

    def __init__(self, layer: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        parts = layer["weight"], layer["scales"], layer["biases"]
        self._layout = _kernels().layout_of(*parts, layer.group_size, layer.bits)
        self.packed: mx.array = _kernels().pack(*parts, self._layout)
        if "bias" in layer:
            self.bias = layer["bias"]
        self._wide: mx.array | None = None

    @property
    def sizes(self) -> tuple[int, int]:
        """Numbers of an input, and of an output; of an embedding as it is used for a head."""
        return self._layout.inputs, self._layout.outputs

    @property
    def weight(self) -> mx.array:
        """The matrix in float32, for models that use it themselves. Kept from the first time on, as
        all are without the kernels."""
        if self._wide is None:
            self._wide = self._widened()
        return self._wide

    def _widened(self) -> mx.array:
        """The matrices in float32: [outputs, inputs], or [matrices, outputs, inputs] of several."""
        matrices, outputs = self._layout.matrices, self._layout.outputs
        numbers = mx.arange(matrices * outputs)
        if matrices > 1:
            numbers = numbers.reshape(matrices, outputs)
        return self._take(numbers)

    def _multiply(self, x: mx.array) -> mx.array:
        return _kernels().multiply(x, self.packed, self._layout)  # type: ignore[no-any-return]

    def _gather_multiply(self, x: mx.array, numbers: mx.array) -> mx.array:
        y: mx.array = _kernels().gather_multiply(x, numbers, self.packed, self._layout)
        return y

    def _take(self, numbers: mx.array) -> mx.array:
        return _kernels().take(numbers, self.packed, self._layout)  # type: ignore[no-any-return]


class PackedLinear(_Packed):
    """A quantised linear layer. Float32 in and out, or what it is given."""

    def __call__(self, x: mx.array) -> mx.array:
        y = self._multiply(x)
        return y + self.bias if "bias" in self else y


class PackedEmbedding(_Packed):
    """A quantised embedding, which may be used as a head as well. Gives float32."""

    def __call__(self, tokens: mx.array) -> mx.array:
        return self._take(tokens)

    def as_linear(self, x: mx.array) -> mx.array:
        """The logits of x."""
        return self._multiply(x)


class PackedSwitchLinear(_Packed):
    """The linear layers of all experts, of which each row goes through that of its own."""

    def __call__(self, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> mx.array:
        """x is [..., rows, inputs]; indices, [...], are the experts. Sorted ones are seen to be."""
        y = self._gather_multiply(x, indices[..., None])
        return y + mx.expand_dims(self.bias[indices], -2) if "bias" in self else y


class PackedMultiLinear(_Packed):
    """A linear layer for each head, of multi-head latent attention."""

    def __call__(self, x: mx.array, transpose: bool = True) -> mx.array:
        """x is [..., heads or 1, rows, inputs], or outputs for the way back."""
        if transpose:
            return self._gather_multiply(x, mx.arange(self._layout.matrices)[:, None])
        # Its groups lie across what is summed here, so that it is widened; for the moment alone.
        return x @ self._widened().astype(x.dtype)


class PackedNorm(Module):
    """An RMS norm beside layers that are packed."""

    def __init__(self, layer: RMSNorm) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.weight, self._eps = layer["weight"], layer.eps

    def __call__(self, x: mx.array) -> mx.array:
        if x.dtype == self.weight.dtype == mx.float32:
            return _kernels().rms_norm(x, self.weight, self._eps)  # type: ignore[no-any-return]
        return mx.fast.rms_norm(x, self.weight, self._eps)


_OURS: Mapping[type[Module], type[_Packed]] = {
    QuantizedLinear: PackedLinear,
    QuantizedEmbedding: PackedEmbedding,
    QuantizedSwitchLinear: PackedSwitchLinear,
    QuantizedMultiLinear: PackedMultiLinear,
}
"""What takes the place of which of MLX's layers. All of ours round."""


@lru_cache
def _kernels() -> ModuleType:
    """The package. Raises ImportError with the reason where it is not there or does not work."""
    if os.environ.get(SWITCH) == OFF:
        raise ImportError(f"{SWITCH} is {OFF}")
    import headrace_kernels

    if (threads := os.environ.get("OMP_NUM_THREADS", "")).isdecimal():
        headrace_kernels.set_threads(int(threads))
    return headrace_kernels
