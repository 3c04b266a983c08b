"""What Headrace puts into a model of mlx-lm: the same results, and nothing else changed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.nn.layers.base import Module
from mlx.nn.layers.positional_encoding import RoPE
from mlx.utils import tree_flatten
from mlx_lm.models import activations, base, gemma3_text, llama, rope_utils
from mlx_lm.models.base import scaled_dot_product_attention

from headrace_runner.models.fast_paths import SharedRoPE, route_attention, trim_head, vectorise
from tests.unit.engine.tiny import tiny_model

LLAMA: Any = llama
"""With the names that it imports."""


@pytest.fixture(autouse=True)
def untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    """mlx-lm's files as they come, and after the test as they were before it."""
    for file in (llama, gemma3_text):
        if hasattr(file, "swiglu"):
            monkeypatch.setattr(file, "swiglu", activations.swiglu)
        whole = base.scaled_dot_product_attention
        monkeypatch.setattr(file, "scaled_dot_product_attention", whole)


class Ropes(Module):
    """A part with embeddings of its own."""

    def __init__(self, *ropes: Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        for number, rope in enumerate(ropes):
            self[f"rope{number}"] = rope

    def __iter__(self) -> Iterator[Any]:
        return iter([self[name] for name in sorted(self.keys())])


def shared(rope: RoPE) -> Any:
    """The embedding that `vectorise` puts in its place."""
    parts = Ropes(rope)
    vectorise(parts)
    (found,) = parts
    assert type(found) is SharedRoPE
    return found


def heads(rows: int, tokens: int, size: int) -> mx.array:
    return mx.random.normal((rows, 3, tokens, size), key=mx.random.key(rows * size + tokens))


def rotated(rope: Any, x: mx.array, offset: int | mx.array) -> mx.array:
    found: mx.array = rope(x, offset=offset)
    return found


def positions(count: int) -> mx.array:
    return mx.array([0, 1, 5, 300, 7, 40_000, 131_071, 2][:count], mx.int32)


@pytest.mark.parametrize("traditional", [False, True])
@pytest.mark.parametrize(("dims", "size"), [(8, 8), (64, 64), (8, 20), (2, 5)])
@pytest.mark.parametrize(("wavelength", "scale"), [(10_000.0, 1.0), (500_000.0, 0.25), (100.0, 8)])
def test_an_embedding_rotates_as_the_one_it_stands_for(
    traditional: bool, dims: int, size: int, wavelength: float, scale: float
) -> None:
    plain = RoPE(dims, traditional, wavelength, scale)
    ours = shared(RoPE(dims, traditional, wavelength, scale))
    for rows in (1, 8):
        x, offset = heads(rows, 1, size), positions(rows)
        assert mx.allclose(rotated(ours, x, offset), rotated(plain, x, offset), rtol=0, atol=2e-6)


def test_positions_may_change_from_call_to_call() -> None:
    plain, ours = RoPE(8), shared(RoPE(8))
    for step in range(5):
        x, offset = heads(4, 1, 8), positions(4) + step
        for _ in range(2):
            assert mx.allclose(rotated(ours, x, offset), rotated(plain, x, offset), atol=2e-6)


def test_embeddings_of_different_bases_do_not_share() -> None:
    plain = [RoPE(8, base=10_000.0), RoPE(8, base=100.0), RoPE(8, base=10_000.0)]
    parts = Ropes(*[RoPE(rope.dims, base=rope.base) for rope in plain])
    vectorise(parts)
    x, offset = heads(4, 1, 8), positions(4)
    for ours, rope in zip(parts, plain, strict=True):
        assert mx.allclose(rotated(ours, x, offset), rotated(rope, x, offset), atol=2e-6)


def test_layers_of_different_sizes_can_share() -> None:
    parts = Ropes(RoPE(8), RoPE(8))
    vectorise(parts)
    offset = positions(4)
    for ours, size in zip(parts, (8, 16), strict=True):
        x = heads(4, 1, size)
        assert mx.allclose(rotated(ours, x, offset), rotated(RoPE(8), x, offset), atol=2e-6)


@pytest.mark.parametrize("traditional", [False, True])
def test_other_calls_go_to_the_embedding_itself(traditional: bool) -> None:
    plain, ours = RoPE(8, traditional), shared(RoPE(8, traditional))
    one, several = heads(2, 1, 8), heads(2, 5, 8)
    half = one.astype(mx.float16)
    some: mx.array = positions(2)
    for x, offset in ((one, 7), (several, 7), (several, some), (half, some), (half, 3)):
        assert mx.array_equal(rotated(ours, x, offset), rotated(plain, x, offset))
    assert mx.array_equal(ours(several), plain(several))


@pytest.mark.parametrize("offset", [mx.array(4), mx.array([4])], ids=["a number", "one for all"])
def test_one_position_for_all_rows(offset: mx.array) -> None:
    x = heads(3, 1, 8)
    found = rotated(shared(RoPE(8)), x, offset)
    assert mx.allclose(found, rotated(RoPE(8), x, offset), atol=2e-6)


def test_embeddings_of_other_kinds_stay() -> None:
    other = rope_utils.Llama3RoPE(
        dims=8,
        scaling_config={
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 256,
        },
    )

    class Own(RoPE):
        def __call__(self, x: mx.array, offset: int = 0) -> mx.array:
            return x

    own = Own(8)
    parts = Ropes(other, own)
    vectorise(parts)
    assert list(parts) == [other, own]


def test_a_vectorised_model_has_the_same_parameters_and_results() -> None:
    model, plain = tiny_model(), tiny_model()
    tokens = mx.array([[5, 9, 200, 31]])
    wanted = plain(tokens)
    mx.eval(wanted)
    vectorise(model)
    assert model.model.layers[0].self_attn.rope is not plain.model.layers[0].self_attn.rope
    assert LLAMA.swiglu is not activations.swiglu
    leaves: list[Any] = [tree_flatten(m.parameters()) for m in (model, plain)]
    assert [leaf[0] for leaf in leaves[0]] == [leaf[0] for leaf in leaves[1]]
    assert mx.allclose(model(tokens), wanted, rtol=1e-4, atol=1e-4)


def test_the_activation_is_our_own_in_single_precision_alone() -> None:
    vectorise(tiny_model())
    gate = mx.random.normal((1000,), key=mx.random.key(0)) * 4
    x = mx.random.normal((1000,), key=mx.random.key(1))
    assert mx.allclose(LLAMA.swiglu(gate, x), activations.swiglu(gate, x), rtol=1e-5, atol=1e-6)
    assert not mx.array_equal(LLAMA.swiglu(gate, x), activations.swiglu(gate, x))
    half = gate.astype(mx.float16)
    for gates, others in ((half, x.astype(mx.float16)), (half, x), (gate, x.astype(mx.bfloat16))):
        assert mx.array_equal(LLAMA.swiglu(gates, others), activations.swiglu(gates, others))


def names_in_mlx_lm() -> dict[tuple[str, str], object]:
    return {
        (file, name): value
        for file, module in list(sys.modules.items())
        if file == "mlx_lm" or file.startswith(("mlx_lm.", "mlx.nn"))
        for name, value in vars(module).items()
    }


def changed(before: dict[tuple[str, str], object]) -> set[tuple[str, str]]:
    return {key for key, value in names_in_mlx_lm().items() if before.get(key) is not value}


def test_attention_is_routed_in_the_models_own_files_alone() -> None:
    model, before = tiny_model(), names_in_mlx_lm()
    route_attention(model)
    assert changed(before) == {("mlx_lm.models.llama", "scaled_dot_product_attention")}
    route_attention(model)
    vectorise(model)
    assert changed(before) == {
        ("mlx_lm.models.llama", "scaled_dot_product_attention"),
        ("mlx_lm.models.llama", "swiglu"),
    }


def test_files_outside_mlx_lm_stay_as_they_are() -> None:
    plain = base.scaled_dot_product_attention
    assert scaled_dot_product_attention is plain
    model = Ropes(tiny_model())
    route_attention(model)
    assert LLAMA.scaled_dot_product_attention is not plain
    assert scaled_dot_product_attention is plain


def test_files_that_have_attention_of_their_own_keep_it(monkeypatch: pytest.MonkeyPatch) -> None:
    own = object()
    monkeypatch.setattr(llama, "scaled_dot_product_attention", own)
    route_attention(tiny_model())
    assert LLAMA.scaled_dot_product_attention is own


def test_a_cache_that_can_attend_does() -> None:
    class Cache:
        given: tuple[object, ...] = ()

        def attend(self, *given: object) -> object:
            self.given = given
            return "found"

    route_attention(tiny_model())
    attention, cache = LLAMA.scaled_dot_product_attention, Cache()
    assert attention("q", "k", "v", cache=cache, scale=0.5, mask=None) == "found"
    assert cache.given == ("q", "k", "v", 0.5, None)
    attention("q", "k", "v", cache, 0.5, None, sinks="s")
    assert list(cache.given)[-1:] == ["s"]
    with pytest.raises(NotImplementedError, match="mask"):
        attention("q", "k", "v", cache=cache, scale=0.5, mask="causal")


@pytest.mark.parametrize("cache", [None, object()], ids=["none", "a plain one"])
def test_other_caches_get_what_they_always_got(cache: object) -> None:
    inputs = [heads(2, 5, 8) + shift for shift in (0.0, 1.0, 2.0)]
    sinks = mx.array([0.5, 1.0, -1.0])
    plain: Any = base.scaled_dot_product_attention
    wanted = plain(*inputs, cache, 0.3, "causal", sinks)
    route_attention(tiny_model())
    found = LLAMA.scaled_dot_product_attention(*inputs, cache, 0.3, "causal", sinks)
    assert mx.array_equal(found, wanted)


def test_a_model_whose_attention_is_routed_computes_the_same() -> None:
    model = tiny_model()
    tokens = mx.array([[5, 9, 200, 31]])
    before = np.array(model(tokens))
    route_attention(model)
    assert np.array_equal(np.array(model(tokens)), before)


@pytest.mark.parametrize("tied", [True, False])
def test_logits_for_some_of_the_inputs_alone(tied: bool) -> None:
    model = tiny_model(tie_word_embeddings=tied)
    tokens = mx.array([[5], [9], [200], [31]])
    whole = model(tokens)
    mx.eval(whole)
    older, head = trim_head(model), trim_head(model)
    with head.only(slice(2)):
        trimmed = model(tokens)
    assert trimmed.shape == (2, *whole.shape[1:])
    assert mx.allclose(trimmed, whole[:2], rtol=1e-5, atol=1e-5)
    with head.only(mx.array([3, 1])):
        some = model(tokens)
    assert mx.allclose(some, whole[mx.array([3, 1])], rtol=1e-5, atol=1e-5)
    with older.only(slice(1)):  # It has been replaced.
        assert mx.allclose(model(tokens), whole, rtol=1e-5, atol=1e-5)
    with pytest.raises(ZeroDivisionError), head.only(slice(1)):
        raise ZeroDivisionError
    assert mx.allclose(model(tokens), whole, rtol=1e-5, atol=1e-5)
