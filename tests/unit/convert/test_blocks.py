"""GGML's blocks as MLX arrays, against the `gguf` package and against MLX's own reader."""

from pathlib import Path

import gguf
import mlx.core as mx
import numpy as np
import pytest

from headrace_runner.convert.blocks import GROUP_SIZE, Plain, Quantized, to_mlx
from headrace_runner.convert.gguf import read_gguf

SHAPE = (8, 256)


def stored(kind: str) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    values = np.random.default_rng(1).normal(0, 1, SHAPE).astype(np.float32)
    return gguf.quantize(values, gguf.GGMLQuantizationType[kind]).view(np.uint8)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_quantised_blocks_mean_what_they_meant(kind: str) -> None:
    data = stored(kind)
    tensor = to_mlx(kind, data.reshape(-1), SHAPE)
    assert isinstance(tensor, Quantized)
    restored = mx.dequantize(
        tensor.weight,
        tensor.scales.astype(mx.float32),
        tensor.biases.astype(mx.float32),
        group_size=GROUP_SIZE,
        bits=tensor.bits,
    )
    wanted = gguf.dequantize(data, gguf.GGMLQuantizationType[kind])
    assert np.abs(np.array(restored) - wanted).max() < 1e-5


@pytest.mark.parametrize(("kind", "dtype"), [("F16", mx.float16), ("BF16", mx.bfloat16)])
def test_half_precision_is_kept_to_the_bit(kind: str, dtype: mx.Dtype) -> None:
    data = stored(kind)
    tensor = to_mlx(kind, data.reshape(-1), SHAPE)
    assert isinstance(tensor, Plain)
    assert tensor.weight.dtype == dtype
    wanted = gguf.dequantize(data.reshape(SHAPE[0], -1), gguf.GGMLQuantizationType[kind])
    assert np.array_equal(np.array(tensor.weight.astype(mx.float32)), wanted.reshape(SHAPE))


def test_q6_k_is_dequantised() -> None:
    random = np.random.default_rng(2)
    data = random.integers(0, 256, (SHAPE[0], 210), np.uint8)
    data[:, 208:] = np.full((SHAPE[0], 1), 0.01, np.float16).view(np.uint8)
    tensor = to_mlx("Q6_K", data.reshape(-1), SHAPE)
    assert isinstance(tensor, Plain)
    wanted = gguf.dequantize(data, gguf.GGMLQuantizationType.Q6_K)
    assert np.allclose(np.array(tensor.weight.astype(mx.float32)), wanted, rtol=1e-3, atol=1e-3)


def test_the_same_triplets_as_mlx_reads(tiny_gguf: Path) -> None:
    wanted = mx.load(str(tiny_gguf))
    assert isinstance(wanted, dict)
    file = read_gguf(tiny_gguf)
    for name in ("blk.0.ffn_up", "blk.1.attn_v", "token_embd"):
        info = file.tensors[f"{name}.weight"]
        tensor = to_mlx(info.type.name, file.read(info), info.shape)
        assert isinstance(tensor, Quantized)
        assert mx.array_equal(tensor.weight, wanted[f"{name}.weight"])
        assert mx.array_equal(tensor.scales, wanted[f"{name}.scales"])
        assert mx.array_equal(tensor.biases, wanted[f"{name}.biases"])


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q8_0"])
def test_values_that_no_model_has_are_refused(kind: str) -> None:
    data = stored(kind).reshape(-1).copy()
    data[:4] = 0xFF  # The first element, or the first block's scale: not a number.
    with pytest.raises(ValueError, match="finite"):
        to_mlx(kind, data, SHAPE)
