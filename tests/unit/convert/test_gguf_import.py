"""A whole import: the model that comes out computes what went in."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models import llama
from mlx_lm.utils import dequantize_model, load_model

from headrace.errors import ModelCorrupt, UnsupportedModel
from headrace_runner.convert.check import check_model
from headrace_runner.convert.gguf import read_gguf
from headrace_runner.convert.gguf_import import import_gguf
from headrace_runner.convert.rope import llama3_factors
from headrace_runner.convert.shards import write_shards
from headrace_runner.models.safetensors import read_tensors
from tests.unit.convert.tiny import HEAD_DIM, TEMPLATE, Array, write_gguf

IDS = mx.array([[5, 77, 130, 3, 9, 280, 41]])


def imported(source: Path, output: Path) -> dict[str, Any]:
    output.mkdir()
    facts = import_gguf(source, output, lambda phase, done, total: None)
    check_model(output, facts)
    return facts


def logits(directory: Path) -> Array:
    model, _ = load_model(directory)
    model.set_dtype(mx.float32)  # First the scales, or the weights would be rounded to float16.
    return np.array(dequantize_model(model)(IDS))


def reference_logits(directory: Path, weights: dict[str, Array]) -> Array:
    config = json.loads((directory / "config.json").read_text())
    arguments = llama.ModelArgs.from_dict(config)  # type: ignore[no-untyped-call]
    model = llama.Model(arguments)
    model.load_weights([(name, mx.array(weight)) for name, weight in weights.items()])
    return np.array(model(IDS))


@pytest.mark.parametrize(
    ("matrices", "embedding", "tied"),
    [
        ("Q4_1", "Q8_0", True),
        ("Q4_0", "Q4_0", False),
        ("Q8_0", "F16", True),
        ("F32", "F32", False),
        ("BF16", "BF16", True),
    ],
)
def test_logits_are_those_of_the_stored_weights(
    tmp_path: Path, matrices: str, embedding: str, tied: bool
) -> None:
    source, output = tmp_path / "m.gguf", tmp_path / "out"
    weights = write_gguf(source, matrices=matrices, embedding=embedding, tied=tied)
    imported(source, output)
    wanted = reference_logits(output, weights)
    assert np.abs(wanted).max() > 1
    assert np.abs(logits(output) - wanted).max() < 2e-3


def test_facts(tiny_gguf: Path, tmp_path: Path) -> None:
    facts = imported(tiny_gguf, tmp_path / "out")
    tensors = read_tensors(tmp_path / "out")
    assert facts == {
        "kind": "text",
        "format": "mlx",
        "architecture": "llama",
        "parameters": 81_408,
        "tensor_bytes": sum(tensor.nbytes for tensor in tensors.values()),
        "quantization": "Q4_1",
        "context_length": 256,
        "vocab_size": 307,
        "layers": 2,
        "kv_heads": 2,
        "head_dim": 16,
        "chat_template": TEMPLATE,
        "license": "mit",
    }


def test_llama3_rope_is_recognised(tmp_path: Path) -> None:
    scaling = {
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    factors = llama3_factors(HEAD_DIM, 10000.0, scaling)
    weights = write_gguf(tmp_path / "m.gguf", rope_freqs=factors)
    imported(tmp_path / "m.gguf", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["rope_scaling"] == scaling | {"rope_type": "llama3"}
    wanted = reference_logits(tmp_path / "out", weights)
    assert np.abs(logits(tmp_path / "out") - wanted).max() < 2e-3

    write_gguf(tmp_path / "odd.gguf", rope_freqs=[1.0 + i for i in range(HEAD_DIM // 2)])
    with pytest.raises(UnsupportedModel, match="rope"):
        imported(tmp_path / "odd.gguf", tmp_path / "odd")


def test_what_is_not_supported_is_said(tmp_path: Path) -> None:
    write_gguf(tmp_path / "arch.gguf", architecture="rwkv9")
    with pytest.raises(UnsupportedModel, match="rwkv9") as caught:
        imported(tmp_path / "arch.gguf", tmp_path / "arch")
    assert caught.value.metadata["architecture"] == "rwkv9"

    write_gguf(tmp_path / "moe.gguf", edit=lambda writer: writer.add_expert_count(8))
    with pytest.raises(UnsupportedModel, match="experts"):
        imported(tmp_path / "moe.gguf", tmp_path / "moe")

    write_gguf(
        tmp_path / "extra.gguf",
        edit=lambda writer: writer.add_tensor("blk.0.attn_sinks.weight", np.ones(4, np.float32)),
    )
    with pytest.raises(UnsupportedModel, match="attn_sinks"):
        imported(tmp_path / "extra.gguf", tmp_path / "extra")


def test_damaged_weights_name_the_tensor(tiny_gguf: Path, tmp_path: Path) -> None:
    data = bytearray(tiny_gguf.read_bytes())
    at = read_gguf(tiny_gguf).tensors["blk.1.ffn_down.weight"].offset
    data[at : at + 2] = b"\xff\xff"  # The first block's scale.
    (tmp_path / "nan.gguf").write_bytes(data)
    with pytest.raises(ModelCorrupt, match="ffn_down") as caught:
        imported(tmp_path / "nan.gguf", tmp_path / "out")
    assert caught.value.metadata["file"] == "nan.gguf"


def test_large_models_are_written_in_shards(tmp_path: Path) -> None:
    tensors = {f"layer.{i}.weight": mx.full((16, 16), i) for i in range(5)}
    write_shards(tmp_path, tensors.items(), shard_bytes=2500)
    names = sorted(path.name for path in tmp_path.glob("model*.safetensors"))
    assert names == [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    assert set(read_tensors(tmp_path)) == set(tensors)
    read_back: dict[str, mx.array] = {}
    for name in names:
        shard = mx.load(str(tmp_path / name))
        assert isinstance(shard, dict)
        read_back |= shard
    assert all(mx.array_equal(read_back[name], array) for name, array in tensors.items())
