"""Attention by the kernels: as it is computed in double precision, and for each query by itself."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examples import examples
from tests.unit.kernels.matrices import kernels

PATHS = kernels.paths()
Floats = npt.NDArray[np.float32]
SCALE = 0.125


def heads(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def attend(queries: Floats, keys: Floats, values: Floats, **more: Any) -> Floats:
    arrays = [mx.array(each) for each in (queries, keys, values)]
    more = {name: mx.array(each) for name, each in more.items()}
    return np.array(kernels.attend(*arrays, SCALE, **more))


def exact(queries: Floats, keys: Floats, values: Floats, mask: Floats) -> npt.NDArray[np.float64]:
    """In double precision, with what is added to the scores: [rows or 1, 1, queries, tokens]."""
    shared = queries.shape[1] // keys.shape[1]
    wide = [np.repeat(each.astype(np.float64), shared, axis=1) for each in (keys, values)]
    scores = queries.astype(np.float64) @ wide[0].swapaxes(-1, -2) * SCALE + mask
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    found: npt.NDArray[np.float64] = weights / weights.sum(axis=-1, keepdims=True) @ wide[1]
    return found


def causal(queries: int, tokens: int) -> Floats:
    place = np.arange(tokens)[None] - (tokens - queries) - np.arange(queries)[:, None]
    return np.where(place > 0, np.float32(-np.inf), np.float32(0))[None, None]


def widened(rounded: mx.array) -> Floats:
    """What `round_heads` has made of numbers."""
    words = np.array(rounded)
    scales = np.ascontiguousarray(words[..., -2:]).view(np.float32)
    wide: Floats = words[..., :-2].astype(np.float32) * scales
    return wide


@pytest.mark.parametrize("path", PATHS)
def test_rounded_keys_and_values_are_taken_as_the_numbers_that_they_are(path: str) -> None:
    kernels.use(path)
    q = heads(2, 6, 9, 80)
    k, v = heads(2, 2, 43, 80, seed=1), heads(2, 2, 43, 48, seed=2)
    v[..., 9] = -3e4  # Beside such a one the others have few bits left.
    padding = np.zeros((2, 1, 1, 43), np.float32)
    padding[1, ..., :17] = -np.inf
    rounded = [kernels.round_heads(mx.array(each)) for each in (k, v)]
    found = np.array(kernels.attend(mx.array(q), *rounded, SCALE, padding=mx.array(padding)))
    expected = attend(q, *(widened(each) for each in rounded), padding=padding)
    assert np.allclose(found, expected, rtol=2e-6, atol=2e-6)
    # As they lie in a cache: with room behind, and the rows of others between.
    room = [mx.pad(each, [(0, 1), (0, 0), (0, 5), (0, 0)])[:2, :, :43] for each in rounded]
    again = kernels.attend(mx.array(q), *room, SCALE, padding=mx.array(padding))
    assert np.array(again).tobytes() == found.tobytes()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("size", [16, 64, 80])
def test_a_head_is_rounded_by_its_largest_number(size: int, path: str) -> None:
    kernels.use(path)
    sizes = 10.0 ** np.random.default_rng(0).integers(-30, 30, (500, 1))
    x = (heads(500, size) * sizes).astype(np.float32)
    most = np.abs(x).max(axis=-1, keepdims=True)
    found = widened(kernels.round_heads(mx.array(x)))
    assert (np.abs(found - x) <= most * (1 / 65534 + 2e-7)).all()
    assert np.abs(widened(kernels.round_heads(mx.array(x * 0))) == 0).all()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_head_that_is_not_finite_is_none(bad: float, path: str) -> None:
    kernels.use(path)
    x = heads(3, 32)
    x[1, 20] = bad
    found = widened(kernels.round_heads(mx.array(x)))
    assert np.isnan(found[1]).all()
    assert np.isfinite(found[[0, 2]]).all()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("size", [16, 64, 80, 128])
@pytest.mark.parametrize(("queries", "tokens"), [(1, 1), (1, 50), (7, 7), (9, 40)])
def test_as_in_double_precision(queries: int, tokens: int, size: int, path: str) -> None:
    kernels.use(path)
    q = heads(2, 6, queries, size)
    k, v = heads(2, 2, tokens, size, seed=1), heads(2, 2, tokens, 48, seed=2)
    expected = exact(q, k, v, causal(queries, tokens))
    assert np.abs(attend(q, k, v) - expected).max() < 3e-6


def test_what_is_padding_is_not_seen() -> None:
    q, k, v = heads(3, 4, 1, 32), heads(3, 2, 40, 32, seed=1), heads(3, 2, 40, 32, seed=2)
    padding = np.zeros((3, 1, 1, 40), np.float32)
    padding[0, ..., :17] = padding[2, ..., :39] = -np.inf
    expected = exact(q, k, v, padding)
    # It may be whatever was there before.
    k[0, :, :17] = v[0, :, :17] = np.nan
    assert np.abs(attend(q, k, v, padding=padding) - expected).max() < 3e-6


def test_branches_see_what_they_are_told() -> None:
    q, k, v = heads(1, 4, 5, 32), heads(1, 2, 33, 32, seed=1), heads(1, 2, 33, 32, seed=2)
    recent = np.full((5, 5), -np.inf, np.float32)
    for query, seen in enumerate([(0,), (0, 1), (0, 2), (0, 2, 3), (0, 4)]):
        recent[query, list(seen)] = 0
    mask = np.concatenate([np.zeros((5, 28), np.float32), recent], axis=1)[None, None]
    found = attend(q, k, v, recent=recent)
    assert np.abs(found - exact(q, k, v, mask)).max() < 3e-6
    # A branch is, to the bit, what it is without the others.
    only = np.r_[0:28, 28, 30, 31]
    alone = attend(q[:, :, [0, 2, 3]], k[:, :, only], v[:, :, only])
    assert alone.tobytes() == found[:, :, [0, 2, 3]].tobytes()


@st.composite
def problems(draw: st.DrawFn) -> tuple[Floats, Floats, Floats]:
    shared, key_heads = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    queries = draw(st.integers(1, 20))
    tokens = queries + draw(st.integers(0, 60))
    size, seed = 16 * draw(st.integers(1, 5)), draw(st.integers(0, 1000))
    return (
        heads(1, shared * key_heads, queries, size, seed=seed),
        heads(1, key_heads, tokens, size, seed=seed + 1),
        heads(1, key_heads, tokens, size, seed=seed + 2),
    )


@settings(max_examples=examples(100))
@given(problems(), st.integers(0, 40), st.integers(1, 3))
def test_a_query_depends_on_what_it_sees_and_on_nothing_else(
    problem: tuple[Floats, Floats, Floats], padded: int, threads: int
) -> None:
    q, k, v = problem
    kernels.set_threads(threads)
    results, by_words = [], []
    for path in PATHS:
        kernels.use(path)
        results.append(attend(q, k, v))
        rounded = [kernels.round_heads(mx.array(each)) for each in (k, v)]
        by_words.append(np.array(kernels.attend(mx.array(q), *rounded, SCALE)).tobytes())
    assert len({result.tobytes() for result in results}) == len(set(by_words)) == 1
    # One query after another, in a row that begins later, beside another row.
    count, tokens = q.shape[2], k.shape[2]
    room = [np.pad(each, [(1, 0), (0, 0), (padded, 0), (0, 0)]) for each in (k, v)]
    for query in {0, count // 2, count - 1}:
        end = padded + tokens - count + query + 1
        padding = np.zeros((2, 1, 1, end), np.float32)
        padding[1, ..., :padded] = -np.inf
        one = np.concatenate([q[:, :, query : query + 1]] * 2)
        found = attend(one, *(each[:, :, :end] for each in room), padding=padding)
        assert (
            found[1].tobytes()
            == np.ascontiguousarray(results[0][0, :, query : query + 1]).tobytes()
        )


@pytest.mark.parametrize("path", PATHS)
def test_what_is_not_finite_shows(path: str) -> None:
    kernels.use(path)
    q, k, v = heads(1, 2, 1, 16), heads(1, 1, 30, 16, seed=1), heads(1, 1, 30, 16, seed=2)
    k[0, 0, 20, 3] = np.nan
    assert np.isnan(attend(q, k, v)).all()
    q[0, 1] = np.inf
    assert np.isnan(attend(q, heads(1, 1, 30, 16, seed=1), v)[0, 1]).all()


def test_large_scores_do_not_overflow() -> None:
    q, k, v = heads(1, 1, 1, 16) * 1e4, heads(1, 1, 50, 16, seed=1), heads(1, 1, 50, 16, seed=2)
    found = attend(q.astype(np.float32), k, v)
    best = int((q @ k.swapaxes(-1, -2)).argmax())
    assert np.allclose(found[0, 0, 0], v[0, 0, best], atol=1e-6)


def test_arrays_that_lie_in_pieces() -> None:
    q, k, v = heads(1, 4, 6, 32), heads(1, 2, 20, 32, seed=1), heads(1, 2, 20, 32, seed=2)
    expected = attend(q, k, v)
    # As a model has them: the tokens before the heads, in a buffer with room behind.
    wide = mx.array(np.pad(k, [(0, 0), (0, 0), (0, 12), (0, 0)]))[:, :, :20]
    turned = mx.array(np.ascontiguousarray(q.swapaxes(1, 2))).swapaxes(1, 2)
    across = mx.array(np.ascontiguousarray(v.swapaxes(2, 3))).swapaxes(2, 3)
    found = kernels.attend(turned, wide, across, SCALE)
    assert np.array(found).tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("says", "shapes"),
    [
        ("multiple of 16", ((1, 2, 1, 24), (1, 2, 5, 24), (1, 2, 5, 24))),
        ("as many rows", ((2, 2, 1, 16), (1, 2, 5, 16), (1, 2, 5, 16))),
        ("multiple of the heads", ((1, 3, 1, 16), (1, 2, 5, 16), (1, 2, 5, 16))),
        ("last tokens", ((1, 2, 6, 16), (1, 2, 5, 16), (1, 2, 5, 16))),
        ("has a value", ((1, 2, 1, 16), (1, 2, 5, 16), (1, 2, 4, 16))),
    ],
)
def test_what_does_not_fit_is_refused(says: str, shapes: tuple[tuple[int, ...], ...]) -> None:
    assert math.prod(shapes[0]) > 0
    with pytest.raises(ValueError, match=says):
        attend(*(np.zeros(shape, np.float32) for shape in shapes))


@pytest.mark.parametrize(
    ("says", "types"),
    [
        ("queries are float32", ("f2", "f2", "f2")),
        ("keys are float32 or int16", ("f4", "f2", "f2")),
        ("of one type", ("f4", "f4", "f2")),
    ],
)
def test_types_that_do_not_fit_are_refused(says: str, types: tuple[str, ...]) -> None:
    shapes = (1, 2, 1, 16), (1, 2, 5, 16), (1, 2, 5, 16)
    with pytest.raises(ValueError, match=says):
        attend(*(np.zeros(shape, type_) for shape, type_ in zip(shapes, types, strict=True)))
    with pytest.raises(ValueError, match="float32"):
        kernels.round_heads(mx.zeros(16, mx.float16))
    with pytest.raises(ValueError, match="multiple of 16"):
        kernels.round_heads(mx.zeros((3, 24)))
    with pytest.raises(ValueError, match="multiple of 16"):  # With their scales they would be.
        attend(*(np.zeros(shape, "i2" if i else "f4") for i, shape in enumerate(shapes)))
