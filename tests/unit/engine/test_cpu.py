"""A model whose quantised layers are computed by the kernels."""

from __future__ import annotations

import copy
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.nn.layers import activations
from mlx.nn.layers.linear import Linear
from mlx.nn.layers.quantized import QuantizedEmbedding, QuantizedLinear, quantize
from mlx.utils import tree_flatten
from mlx_lm.models.mla import QuantizedMultiLinear
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

from headrace_runner.engine.text import layouts
from headrace_runner.engine.text.flat import FlatPass
from headrace_runner.engine.text.flat_layout import FlatLayout
from headrace_runner.engine.text.layout import Piece
from headrace_runner.engine.text.layouts import choose_layout
from headrace_runner.engine.text.windows import Prompt, Window
from headrace_runner.models import cpu
from headrace_runner.models.adapters import places_in
from headrace_runner.models.fast_paths import vectorise_functions
from headrace_runner.models.lora import Adaptable, Mixture, Pair
from tests.unit.engine.tiny import GREEDY, alone, tiny_model

pytest.importorskip("headrace_kernels", reason="the kernels are not built: make kernels")
MIXTURES = ["olmoe", "mixtral", "qwen3_moe"]
QUANTISED = {"quantization": {"bits": 4, "group_size": 32}}


def quantised(architecture: str = "llama", bits: int = 8, **options: Any) -> Any:
    model = tiny_model(architecture, **options)
    quantize(model, group_size=32, bits=bits)
    mx.eval(model.parameters())
    return model


def packed(model: Any) -> Any:
    other = copy.deepcopy(model)
    cpu.pack(other)
    other.set_dtype(mx.float32)
    mx.eval(other.parameters())
    return other


def how_far(model: Any, other: Any) -> float:
    """How far the logits of some tokens are from those of another model, as a part of these.

    In the mean: of two experts that are about as good a token may be given to the other.
    """
    tokens = mx.array([[1, 2, 3, 200, 7, 7, 31]])
    found, expected = model(tokens)[0], other(tokens)[0]
    off = mx.linalg.norm(found - expected, axis=-1) / mx.linalg.norm(expected, axis=-1)
    return off.mean().item()  # type: ignore[return-value]


def kinds(model: Any) -> set[type]:
    return {type(layer) for layer in model.leaf_modules().values()} | {
        type(layer) for layer in model.modules()
    }


def test_adapters_have_their_places_in_packed_layers_too() -> None:
    model = quantised()
    mine = packed(model)
    assert places_in(mine) == places_in(model)
    mixture = Mixture()
    path = "model.layers.0.mlp.down_proj"
    place = places_in(mine)[path]
    pair = Pair(mx.ones((place.inputs, 2)), mx.full((2, place.outputs), 0.5))
    x = mx.random.normal((2, 3, place.inputs))
    before = mine.model.layers[0].mlp.down_proj(x)
    Adaptable(mine, mixture).add("a", {path: pair})
    with mixture.of([("a", 1), (None, 1)]):
        after = mine.model.layers[0].mlp.down_proj(x)
    assert mx.array_equal(after[1], before[1])
    assert mx.allclose(after[0] - before[0], x[0].sum(-1, keepdims=True), atol=1e-2)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("architecture", ["llama", *MIXTURES])
def test_all_quantised_layers_of_a_model_are_packed(
    architecture: str, bits: int, tied: bool
) -> None:
    model = quantised(architecture, bits=bits, tie_word_embeddings=tied)
    assert not cpu.rounds(model)
    assert (QuantizedSwitchLinear in kinds(model)) == (architecture in MIXTURES)
    mine = packed(model)
    assert cpu.rounds(mine)
    assert not kinds(mine) & {QuantizedLinear, QuantizedEmbedding, QuantizedSwitchLinear}
    assert how_far(mine, model) < 0.05
    assert isinstance(choose_layout(mine, on_cpu=True, prefix_bytes=0), FlatLayout)


def test_a_head_that_multiplies_with_the_embedding_itself() -> None:
    tokens = mx.array([[1, 2, 3, 200]])
    plain = tiny_model("seed_oss")
    model = copy.deepcopy(plain)
    quantize(model, group_size=32, bits=8)
    mine = packed(model)
    off = mx.linalg.norm(mine(tokens) - plain(tokens)) / mx.linalg.norm(plain(tokens))
    assert off < 0.05
    assert isinstance(mine.model.embed_tokens, cpu.PackedEmbedding)


def test_what_the_kernels_do_not_cover_stays() -> None:
    model = quantised(bits=6)
    mine = packed(model)
    assert not cpu.rounds(mine)
    tokens = mx.array([[1, 2, 3]])
    assert mx.allclose(mine(tokens), model(tokens), atol=1e-4)


def test_a_layer_with_a_bias() -> None:
    layer = QuantizedLinear.from_linear(Linear(64, 40), 32, 8)
    x = mx.random.normal((3, 64), key=mx.random.key(1))
    mine = cpu.PackedLinear(layer)
    assert mx.allclose(mine(x), layer(x), atol=0.02)
    assert not mx.allclose(mine(x), layer(x) - layer.bias, atol=0.02)
    # Models may use the matrix itself.
    wide = mx.dequantize(layer.weight, layer.scales, layer.biases, 32, 8)
    assert mx.allclose(mine.weight, wide, atol=1e-6)


def test_experts_with_a_bias() -> None:
    linear = SwitchLinear(64, 40, 5)
    linear.bias = mx.random.normal((5, 40))
    layer = linear.to_quantized(32, 8)
    x = mx.random.normal((7, 1, 1, 64), key=mx.random.key(1))
    indices = mx.array([[0, 4], [1, 1], [3, 2], [4, 0], [2, 2], [1, 0], [4, 4]])
    mine = cpu.PackedSwitchLinear(layer)
    found = mine(x, indices)
    assert found.shape == (7, 2, 1, 40)
    assert mx.allclose(found, layer(x, indices), atol=0.02)
    assert not mx.allclose(found, layer(x, 4 - indices), atol=0.02)
    assert cpu.rounds(mine)


def test_a_layer_for_each_head_both_ways() -> None:
    model = quantised("deepseek_v3")
    mine = packed(model)
    assert not kinds(mine) & {QuantizedLinear, QuantizedSwitchLinear, QuantizedMultiLinear}
    theirs, ours = (each.model.layers[0].self_attn for each in (model, mine))
    x = mx.random.normal((2, 4, 3, 32), key=mx.random.key(1))
    latent = mx.random.normal((2, 1, 3, 32), key=mx.random.key(2))
    for layer in ("embed_q", "unembed_out"):
        for each in (x, latent):
            expected, found = theirs[layer](each), ours[layer](each)
            assert mx.linalg.norm(found - expected) < 0.01 * mx.linalg.norm(expected)
    assert mx.allclose(
        ours.embed_q(latent, transpose=False), theirs.embed_q(latent, transpose=False), atol=1e-4
    )
    assert how_far(mine, model) < 0.05
    # And with mlx-lm's caches, where it is called the other way for prompts.
    assert alone(mine, [5, 6, 7], GREEDY, 1) == alone(model, [5, 6, 7], GREEDY, 1)


def test_packed_weights_take_no_more_room() -> None:
    model = quantised(bits=4)
    model.set_dtype(mx.float16)
    sizes = [
        sum(leaf[1].nbytes for leaf in tree_flatten(each.parameters()))  # type: ignore[union-attr]
        for each in (model, packed(model))
    ]
    assert sizes[1] < sizes[0] * 1.1


@pytest.mark.parametrize("architecture", ["llama", "olmoe", "qwen3_moe", "gemma", "gemma3_text"])
def test_the_model_says_tokens_that_it_also_says_without(architecture: str) -> None:
    model = quantised(architecture)
    prompt = [9, 8, 7, 6]
    found = alone(packed(model), prompt, GREEDY, 4)
    assert found == alone(model, prompt, GREEDY, 4)


@pytest.mark.parametrize("architecture", ["llama", *MIXTURES, "gemma"])
def test_a_row_has_the_same_bits_however_it_is_computed(architecture: str) -> None:
    """Alone, or in chunks beside other rows, prompts and padding: so a stream may be resumed."""
    model = packed(quantised(architecture, bits=4))
    layout: Any = choose_layout(model, on_cpu=True, prefix_bytes=0)
    flat: FlatPass = layout._pass
    # Of so many tokens mixtures sort what goes to their experts, and of fewer they do not.
    prompt, other = [place * place % 251 for place in range(60)], [2, 7, 1]

    def alone(tokens: list[int]) -> bytes:
        row, window = Prompt(len(tokens)), Window()
        flat.prefill([(row, tokens[:-1])])
        window.join(0, row.segment())
        return np.array(flat.decode([window], mx.array(tokens[-1:]))).tobytes()

    row, beside = Prompt(len(prompt)), Prompt(len(other))
    flat.prefill([(beside, other[:-1]), (row, prompt[:4])])
    window = Window()
    window.join(0, beside.segment())
    first = flat.decode([window], mx.array(other[-1:]), chunks=[(row, prompt[4:-2])])
    assert np.array(first).tobytes() == alone(other)
    window.join(1, row.segment())
    # One token at a time from here on, in a window whose rows are of two lengths.
    flat.decode([window], mx.array([8, prompt[-2]]))
    last = flat.decode([window], mx.array([9, prompt[-1]]))
    assert np.array(last[1]).tobytes() == alone(prompt)
    assert np.array(last[0]).tobytes() == alone([*other, 8, 9])
    # And with the logits of all tokens at once, as they are verified and scored.
    row = Prompt(len(prompt))
    scored = flat.score([Piece(row, prompt, [], len(prompt))])
    assert np.array(scored[-1]).tobytes() == alone(prompt)
    assert np.array(scored[4]).tobytes() == alone(prompt[:5])


def test_keys_and_values_take_half_of_the_room() -> None:
    model = quantised("llama", bits=4)
    plain: Any = choose_layout(model, on_cpu=True, prefix_bytes=0)
    ours: Any = choose_layout(packed(quantised("llama", bits=4)), on_cpu=True, prefix_bytes=0)
    (size,) = {each.shape[-1] for each in plain._nothing.keys}
    assert size % 16 == 0
    assert {each.dtype for each in plain._nothing.keys} == {mx.float32}
    assert {each.dtype for each in (*ours._nothing.keys, *ours._nothing.values)} == {mx.int16}
    assert ours.row_bytes(100) / plain.row_bytes(100) == (2 * size + 4) / (4 * size)


def test_where_rounding_them_changes_too_much_they_stay(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(layouts, "_TOLERANCE_KEPT", 0.0)
    layout: Any = choose_layout(packed(quantised()), on_cpu=True, prefix_bytes=0)
    assert type(layout) is FlatLayout
    assert {each.dtype for each in layout._nothing.keys} == {mx.float32}
    assert "kept in float32" in caplog.text


# Computed in Headrace's way, and on mlx-lm's caches.
@pytest.mark.parametrize("architecture", ["gemma", "gemma3_text"])
def test_functions_are_those_of_the_kernels(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[tuple[int, ...]] = []
    plain = cpu._kernels().gelu

    def gelu(x: mx.array, by_tanh: bool) -> mx.array:
        called.append(x.shape)
        return plain(x, by_tanh)  # type: ignore[no-any-return]

    monkeypatch.setattr(cpu._kernels(), "gelu", gelu)
    model = packed(quantised(architecture))
    choose_layout(model, on_cpu=True, prefix_bytes=0)
    called.clear()
    tokens = mx.array([[1, 2, 3]])
    found = model(tokens)
    assert called == [(1, 3, 96)] * 2
    undo = vectorise_functions(model)
    undo()
    expected = model(tokens)
    assert len(called) == 2
    assert np.allclose(found, expected, atol=1e-3 * np.abs(expected).max())
    # In any type but float32 they are MLX's own.
    half = mx.random.normal((3, 5)).astype(mx.float16)
    assert mx.array_equal(cpu.gelu(half), activations.gelu(half))
    assert mx.array_equal(cpu.gelu_approx(half), activations.gelu_approx(half))
    assert len(called) == 2


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({}, "not quantised"),
        ({"quantization": {"bits": 6, "group_size": 64}}, "not quantised to 4 or 8"),
        ({"quantization": {"bits": 4, "group_size": 32, "mode": "mxfp4"}}, "not quantised"),
    ],
)
def test_what_cannot_be_computed_so_has_a_reason(config: dict[str, Any], says: str) -> None:
    assert says in cpu.why_not(config)


def test_what_can_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HEADRACE_KERNELS", raising=False)
    cpu._kernels.cache_clear()
    assert cpu.why_not(QUANTISED) == ""


def test_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu._kernels.cache_clear()
    monkeypatch.setenv("HEADRACE_KERNELS", "off")
    assert cpu.why_not(QUANTISED) == "HEADRACE_KERNELS is off"
    cpu._kernels.cache_clear()
