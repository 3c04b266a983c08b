"""Every architecture that is read: the imported model computes what mlx-lm's own class does."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.utils import dequantize_model, load_model

from headrace.errors import ModelCorrupt, UnsupportedModel
from headrace_runner.convert.check import check_model
from headrace_runner.convert.families import FAMILIES
from headrace_runner.convert.gguf_import import import_gguf
from headrace_runner.convert.plan import Quantize
from tests.unit.convert.families import CASES, TYPES, Array, build, parameters, write
from tests.unit.convert.mutated import rewrite
from tests.unit.convert.tiny import byte_vocabulary

IDS = mx.array([np.random.default_rng(2).integers(2, 300, 24).tolist()])


def imported(
    source: Path, output: Path, quantize: Quantize = Quantize.AS_STORED
) -> tuple[Any, dict[str, Any]]:
    output.mkdir()
    facts = import_gguf(source, output, lambda phase, done, total: None, quantize)
    check_model(output, facts)
    model, _ = load_model(output)
    return model, facts


def logits(model: Any) -> Array:
    return np.array(model(IDS).astype(mx.float32))


@pytest.fixture(scope="module")
def vocabulary_size() -> int:
    return len(byte_vocabulary().tokens)


def test_every_family_has_a_case() -> None:
    assert {case.architecture for case in CASES.values()} == set(FAMILIES)


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_the_original(name: str, vocabulary_size: int, tmp_path: Path) -> None:
    case = CASES[name]
    original = build(case, vocabulary_size)
    write(case, original, tmp_path / "m.gguf")
    model, facts = imported(tmp_path / "m.gguf", tmp_path / "out")
    wanted, found = logits(original), logits(model)
    assert np.abs(wanted).max() > 0.5
    assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max()
    assert facts["architecture"] == case.model_type
    assert facts["quantization"] == "F32"


@pytest.mark.parametrize("name", ["llama-biases", "gemma2", "phi3", "qwen3moe"])
@pytest.mark.parametrize("kind", [TYPES.Q5_0, TYPES.Q8_0])
def test_quantised_matrices_mean_nearly_the_same(
    name: str, kind: gguf.GGMLQuantizationType, vocabulary_size: int, tmp_path: Path
) -> None:
    case = CASES[name]
    original = build(case, vocabulary_size)
    write(case, original, tmp_path / "m.gguf", matrices=kind)
    model, facts = imported(tmp_path / "m.gguf", tmp_path / "out")
    model.set_dtype(mx.float32)
    restored = dequantize_model(model)
    # The original with what the file has kept of its matrices.
    rounded = [
        (path, mx.array(gguf.dequantize(gguf.quantize(np.array(array), kind), kind)))
        for path, array in parameters(original)
        if array.ndim > 1
    ]
    original.load_weights(rounded, strict=False)
    wanted, found = logits(original), logits(restored)
    difference = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
    assert difference < 0.05
    assert facts["quantization"] == ("Q8_0" if kind is TYPES.Q8_0 else "8-bit g32 of Q5_0")


@pytest.mark.parametrize(
    ("asked", "kind", "bits"),
    [
        (Quantize.AS_STORED, TYPES.F16, {None}),
        (Quantize.BITS_8, TYPES.F16, {8}),
        (Quantize.BITS_4, TYPES.F32, {4}),
        (Quantize.BITS_4, TYPES.Q8_0, {4}),
        (Quantize.BITS_8, TYPES.Q4_0, {4}),
        (Quantize.NONE, TYPES.Q4_0, {None}),
        (Quantize.NONE, TYPES.Q5_1, {None}),
    ],
)
def test_quantised_as_asked(
    asked: Quantize,
    kind: gguf.GGMLQuantizationType,
    bits: set[int | None],
    vocabulary_size: int,
    tmp_path: Path,
) -> None:
    case = CASES["llama"]
    write(case, build(case, vocabulary_size), tmp_path / "m.gguf", matrices=kind)
    model, _ = imported(tmp_path / "m.gguf", tmp_path / "out", asked)
    layers = [*model.model.layers, model]
    linear = [getattr(layer, "lm_head", None) or layer.mlp.down_proj for layer in layers]
    assert {getattr(module, "bits", None) for module in linear} == bits
    assert np.isfinite(logits(model)).all()
    if bits == {None}:
        assert linear[0].weight.dtype == mx.float16


@pytest.mark.parametrize("name", ["llama-biases", "qwen3moe", "gemma3", "phi3-longrope"])
def test_settings_that_are_damaged_give_typed_errors(
    name: str, vocabulary_size: int, tmp_path: Path
) -> None:
    case, path = CASES[name], tmp_path / "m.gguf"
    write(case, build(case, vocabulary_size), path, matrices=TYPES.Q5_0)
    data, prefix = path.read_bytes(), f"{case.architecture}.".encode()
    places = [at for at in range(len(data)) if data.startswith(prefix, at)]
    dice, refused = random.Random(name), 0
    for number in range(15):
        copy = bytearray(data)
        # The value is behind the key: its type, and a number of four bytes.
        at = dice.choice(places)
        at = at + int.from_bytes(data[at - 8 : at], "little") + dice.choice((0, 4, 5, 6, 7))
        copy[at] = dice.choice((0, 1, 255, dice.randrange(256)))
        path.write_bytes(copy)
        try:
            imported(path, tmp_path / str(number))
        except (ModelCorrupt, UnsupportedModel):
            refused += 1
    assert refused > 3


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("feed_forward_length", 0),
        ("feed_forward_length", 8),
        ("block_count", 3),
        ("block_count", 1 << 31),
        ("embedding_length", 128),
        ("attention.head_count", 0),
        ("attention.head_count", 3),
        ("attention.head_count_kv", 1),
        ("attention.key_length", 1 << 31),
        ("context_length", 0),
        ("rope.dimension_count", 1 << 30),
    ],
)
def test_sizes_that_are_not_those_of_the_matrices(
    key: str, value: int, tiny_gguf: Path, tmp_path: Path
) -> None:
    def changed(name: str, old: Any) -> Any:
        return value if name == f"llama.{key}" else old

    source = rewrite(tiny_gguf, tmp_path / "m.gguf", value=changed, more={f"llama.{key}": value})
    with pytest.raises((ModelCorrupt, UnsupportedModel)):
        imported(source, tmp_path / "out")


def longrope_of_another_scale(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_dimension_count(12)
    writer.add_rope_scaling_orig_ctx_len(64)
    writer.add_rope_scaling_attn_factors(1.0)


def linear(writer: gguf.GGUFWriter) -> None:
    writer.add_key_length(32)
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(2.0)


@pytest.mark.parametrize(
    ("name", "edit", "what"),
    [
        ("llama", lambda w: w.add_logit_scale(2.0), "scaled logits"),
        ("qwen3", lambda w: w.add_attn_logit_softcapping(50.0), "soft cap"),
        ("llama", lambda w: w.add_value_length(8), "values of another size"),
        ("llama", lambda w: w.add_rope_dimension_count(8), "part of each head"),
        ("llama", lambda w: w.add_array("llama.feed_forward_length", [96, 64]), "differ"),
        ("gemma", linear, "rope scaling 'linear'"),
        ("phi3-longrope", longrope_of_another_scale, "attn_factor"),
    ],
)
def test_what_would_be_computed_otherwise_is_refused(
    name: str,
    edit: Callable[[gguf.GGUFWriter], None],
    what: str,
    vocabulary_size: int,
    tmp_path: Path,
) -> None:
    case = replace(CASES[name], edit=edit)
    write(case, build(case, vocabulary_size), tmp_path / "m.gguf")
    (tmp_path / "out").mkdir()
    with pytest.raises(UnsupportedModel, match=what):
        import_gguf(tmp_path / "m.gguf", tmp_path / "out", lambda *_: None)
