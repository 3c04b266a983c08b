"""GGML's blocks as MLX arrays, against the `gguf` package and against MLX's own reader."""

from pathlib import Path

import gguf
import mlx.core as mx
import numpy as np
import pytest

from headrace_runner.convert.blocks import (
    EXACT_BITS,
    EXACT_GROUP,
    expanded,
    requantized,
    taken_over,
)
from headrace_runner.convert.gguf import TENSOR_TYPES, TensorType, read_gguf

Bytes = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
Floats = np.ndarray[tuple[int, ...], np.dtype[np.float32]]
SHAPE = (8, 512)
TYPES = {kind.name: kind for kind in TENSOR_TYPES.values()}
# Types that nobody has written a quantiser for in Python: where their blocks keep float16 scales.
SCALES_AT = {
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ1_S": (0,),
    "IQ2_XXS": (0,),
    "IQ2_XS": (0,),
    "IQ2_S": (0,),
    "IQ3_XXS": (0,),
    "IQ3_S": (0,),
    "IQ4_NL": (0,),
    "IQ4_XS": (0,),
}


def stored(name: str) -> tuple[Bytes, Floats]:
    """The bytes of a tensor of this type, a row each, and what they mean."""
    kind, ggml = TYPES[name], gguf.GGMLQuantizationType[name]
    random = np.random.default_rng(1)
    try:
        values = random.normal(0, 1, SHAPE).astype(np.float32)
        data = gguf.quantize(values, ggml).view(np.uint8)
    except NotImplementedError:
        shape = (SHAPE[0], SHAPE[1] // kind.block_size, kind.block_bytes)
        data = random.integers(0, 256, shape, np.uint8)
        if name in SCALES_AT:
            for at in SCALES_AT[name]:
                data[..., at : at + 2] = np.array([0.01], np.float16).view(np.uint8)
        elif name == "IQ1_M":  # Its scale lies in the upper bits of four others.
            data[..., [49, 51, 53, 55]] &= 0x0F
            data[..., 55] |= 0x20
        elif name == "NVFP4":  # Four scales of eight bits; 0x7F would be no number.
            data[..., :4] &= 0x3F
        elif name == "MXFP4":
            data[..., 0] = 120
        data = data.reshape(SHAPE[0], -1)
    return data, gguf.dequantize(data, ggml)


@pytest.mark.parametrize("name", EXACT_BITS)
def test_quantised_blocks_mean_what_they_meant(name: str) -> None:
    data, wanted = stored(name)
    tensor = taken_over(name, data.reshape(-1), SHAPE)
    restored = mx.dequantize(
        tensor.weight,
        tensor.scales.astype(mx.float32),
        tensor.biases.astype(mx.float32),
        group_size=EXACT_GROUP,
        bits=tensor.bits,
    )
    assert np.abs(np.array(restored) - wanted).max() < 1e-5


@pytest.mark.parametrize("name", TYPES)
def test_every_type_is_expanded_as_its_reference_says(name: str) -> None:
    data, wanted = stored(name)
    assert 0.01 < np.abs(wanted).max() < 1e4
    found = np.array(expanded(TYPES[name], data.reshape(-1), SHAPE, mx.float32).weight)
    assert np.array_equal(found, wanted)


@pytest.mark.parametrize("name", TYPES)
def test_every_type_loses_little_at_8_bits(name: str) -> None:
    data, wanted = stored(name)
    tensor = requantized(TYPES[name], data.reshape(-1), SHAPE, mx.float16, 8, 32)
    restored = mx.dequantize(tensor.weight, tensor.scales, tensor.biases, group_size=32, bits=8)
    groups = wanted.reshape(-1, 32)
    step = (groups.max(axis=1) - groups.min(axis=1)) / 255
    error = np.abs(np.array(restored, np.float32).reshape(-1, 32) - groups).max(axis=1)
    assert (error <= step + np.abs(groups).max(axis=1) * 2e-3).all()


@pytest.mark.parametrize(("name", "dtype"), [("F16", mx.float16), ("BF16", mx.bfloat16)])
def test_half_precision_is_kept_to_the_bit(name: str, dtype: mx.Dtype) -> None:
    data, wanted = stored(name)
    tensor = expanded(TYPES[name], data.reshape(-1), SHAPE, dtype)
    assert tensor.weight.dtype == dtype
    assert np.array_equal(np.array(tensor.weight.astype(mx.float32)), wanted.reshape(SHAPE))


def test_rows_that_are_expanded_by_and_by_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    data, wanted = stored("Q4_K")
    monkeypatch.setattr("headrace_runner.convert.blocks._CHUNK_ELEMENTS", 3 * SHAPE[1])
    found = expanded(TYPES["Q4_K"], data.reshape(-1), SHAPE, mx.float32).weight
    assert np.array_equal(np.array(found), wanted)
    stacked = requantized(TYPES["Q4_K"], data.reshape(-1), (2, 4, 512), mx.float16, 4, 64)
    assert stacked.weight.shape == (2, 4, 64)
    assert stacked.scales.shape == (2, 4, 8)


def test_the_same_triplets_as_mlx_reads(tiny_gguf: Path) -> None:
    wanted = mx.load(str(tiny_gguf))
    assert isinstance(wanted, dict)
    file = read_gguf(tiny_gguf)
    for name in ("blk.0.ffn_up", "blk.1.attn_v", "token_embd"):
        info = file.tensors[f"{name}.weight"]
        tensor = taken_over(info.type.name, file.read(info), info.shape)
        assert mx.array_equal(tensor.weight, wanted[f"{name}.weight"])
        assert mx.array_equal(tensor.scales, wanted[f"{name}.scales"])
        assert mx.array_equal(tensor.biases, wanted[f"{name}.biases"])


def test_values_that_no_model_has_are_refused() -> None:
    for name in ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q8_0", "Q4_K"):
        data = stored(name)[0].reshape(-1).copy()
        data[:4] = 0xFF  # The first element, or the first block's scale: not a number.
        if name in EXACT_BITS:
            with pytest.raises(ValueError, match="finite"):
                taken_over(name, data, SHAPE)
        with pytest.raises(ValueError, match="finite"):
            expanded(TYPES[name], data, SHAPE, mx.float16)
        with pytest.raises(ValueError, match="finite"):
            requantized(TYPES[name], data, SHAPE, mx.float16, 8, 32)
    large = np.full(SHAPE, 1e30, np.float32).view(np.uint8).reshape(-1)
    with pytest.raises(ValueError, match="too large"):
        expanded(TensorType("F32", 1, 4), large, SHAPE, mx.float16)
