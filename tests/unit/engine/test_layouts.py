"""Whichever layout a model gets: its rows have the logits that they have alone."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import pytest
from mlx.nn.layers.base import Module
from mlx.nn.layers.embedding import Embedding
from mlx.nn.layers.linear import Linear
from mlx.nn.layers.quantized import quantize
from mlx_lm.models import deepseek_v3
from mlx_lm.models.base import scaled_dot_product_attention
from mlx_lm.models.cache import ChunkedKVCache

from headrace.errors import UnsupportedModel
from headrace_runner.engine.text.flat_layout import FlatLayout
from headrace_runner.engine.text.layouts import choose_layout
from headrace_runner.engine.text.memory import plan
from headrace_runner.engine.text.stock_layout import StockLayout
from headrace_runner.models import cpu
from tests.unit.engine.rows import (
    ARCHITECTURES,
    STOCK,
    Rows,
    close,
    last_logits,
    rows_of,
    tokens_of,
)
from tests.unit.engine.tiny import VOCABULARY

GIB = 1 << 30


@pytest.fixture(params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=STOCK)
def stock(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("on_cpu", [False, True])
def test_each_model_gets_the_layout_that_it_can_have(on_cpu: bool) -> None:
    kinds = {name: type(rows_of(name, on_cpu=on_cpu).layout) for name in ARCHITECTURES}
    assert kinds == {"llama": FlatLayout, "gemma3_text": StockLayout, "lfm2": StockLayout}


@pytest.mark.parametrize("on_cpu", [False, True])
@pytest.mark.parametrize("seed", range(2))
def test_rows_that_come_and_go_have_their_own_logits(
    architecture: str, seed: int, on_cpu: bool
) -> None:
    source, rows = random.Random(seed), rows_of(architecture, on_cpu=on_cpu)
    for turn in range(25):
        while not rows.tokens or source.random() < 0.3:
            length = source.choice([1, 2, 5, 9, 30, 300 if turn == 9 else 60])
            rows.start(tokens_of(source, length), chunk=source.choice([1, 7, 16]))
        rows.step(source)
        if source.random() < 0.3:
            uids = sorted(rows.tokens)
            rows.keep(set(source.sample(uids, source.randrange(len(uids) + 1))))


def test_rows_that_join_together_and_share_a_prompt(architecture: str) -> None:
    source, rows = random.Random(3), rows_of(architecture)
    long, short, single = (tokens_of(source, length) for length in (30, 11, 1))
    state = rows.prefill(long)
    rows.join(
        (single, rows.prefill(single)),
        (long, state),
        (short, rows.prefill(short)),
        (long, state),
    )
    for _ in range(4):
        rows.step(source)
    rows.keep({1, 3})
    rows.step(source)


def test_all_rows_may_go(architecture: str) -> None:
    source, rows = random.Random(4), rows_of(architecture, prefix_bytes=0)
    for leave in (lambda: rows.layout.keep(set()), rows.layout.reset):
        rows.start(tokens_of(source, 12))
        rows.step(source)
        assert rows.layout.nbytes > 0
        leave()
        rows.tokens = {}
        assert (rows.layout.order, rows.layout.nbytes) == ([], 0)


def test_drafted_tokens_are_checked_in_one_pass_and_taken_back() -> None:
    source, rows = random.Random(17), rows_of("llama")
    uid = rows.start(tokens_of(source, 30))
    rows.step(source)
    drafted = tokens_of(source, 5)
    logits = rows.layout.draft(mx.array(drafted, mx.uint32))
    for number, row in enumerate(logits, start=1):
        assert close(row, last_logits(rows.plain, rows.tokens[uid] + drafted[:number]))
    rows.layout.undo(3)
    rows.tokens[uid] += drafted[:2]
    for _ in range(3):
        rows.step(source)


def test_a_state_cannot_be_taken_back(stock: str) -> None:
    layout = rows_of(stock).layout
    with pytest.raises(NotImplementedError):
        layout.draft(mx.array([1, 2], mx.uint32))
    with pytest.raises(NotImplementedError):
        layout.undo(1)


class AttentionOfItsOwn(Module):
    """One layer that favours near keys by their places in what the cache gives it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.embedding = Embedding(VOCABULARY, 32)
        self.layers = [Linear(32, 32, bias=False)]

    def __call__(self, inputs: mx.array, cache: Any = None) -> mx.array:
        hidden: mx.array = self.embedding(inputs)
        x = self.layers[0](hidden)[:, None]
        keys, values = x, x
        offset: Any = 0
        if cache is not None:
            offset = cache[0].offset
            keys, values = cache[0].update_and_fetch(keys, values)
        tokens, length = x.shape[2], keys.shape[2]
        distance = mx.arange(length)[None] - mx.arange(length - tokens, length)[:, None]
        offsets = mx.broadcast_to(mx.array(offset).reshape(-1, 1, 1, 1), (x.shape[0], 1, 1, 1))
        # The keys that are still to come, and those before the row's first.
        unseen = (distance > 0) | (distance[-1:] < 1 - tokens - offsets)
        bias = mx.where(unseen, -math.inf, 0.3 * distance)
        found = scaled_dot_product_attention(x, keys, values, None, 0.25, bias.astype(x.dtype))
        return (hidden + found[:, 0]) @ self.embedding.weight.T


class LooksIntoItsCache(AttentionOfItsOwn):
    """Reads what only mlx-lm's caches have."""

    def __call__(self, inputs: mx.array, cache: Any = None) -> mx.array:
        if cache is not None:
            assert cache[0].empty() is (cache[0].keys is None)
        return super().__call__(inputs, cache)


@pytest.mark.parametrize("kind", [AttentionOfItsOwn, LooksIntoItsCache])
@pytest.mark.parametrize("on_cpu", [False, True])
def test_a_model_with_attention_of_its_own_is_found_out(
    kind: Callable[[], Any], on_cpu: bool, caplog: pytest.LogCaptureFixture
) -> None:
    mx.random.seed(5)
    model = kind()
    with caplog.at_level(logging.WARNING):
        layout = choose_layout(model, on_cpu=on_cpu, prefix_bytes=0)
    assert type(layout) is StockLayout
    assert "a way of its own" in caplog.text
    rows, source = Rows(model, layout), random.Random(8)
    for length in (20, 3):
        rows.start(tokens_of(source, length))
    for _ in range(3):
        rows.step(source)


@pytest.mark.parametrize("seed", range(10))
def test_what_is_rounded_does_not_hide_it(seed: int) -> None:
    pytest.importorskip("headrace_kernels", reason="the kernels are not built: make kernels")
    mx.random.seed(seed)
    model = AttentionOfItsOwn()
    quantize(model, group_size=32, bits=8)
    cpu.pack(model)
    assert cpu.rounds(model)
    assert type(choose_layout(model, on_cpu=True, prefix_bytes=0)) is StockLayout


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
def test_attention_with_a_mask_of_its_own_is_found_out(dtype: mx.Dtype) -> None:
    # Of DeepSeek's attention a part of the scores comes as a mask. With weights as small as these
    # its absence is within the tolerance of half precision.
    model: Any = deepseek_v3.Model(
        deepseek_v3.ModelArgs(
            vocab_size=VOCABULARY,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            kv_lora_rank=16,
            q_lora_rank=16,
            qk_rope_head_dim=8,
            v_head_dim=16,
            qk_nope_head_dim=16,
        )
    )
    keys = iter(mx.random.split(mx.random.key(7), 200))
    model.apply(lambda a: mx.random.normal(a.shape, key=next(keys)) * 0.02 if a.ndim > 1 else a)
    model.set_dtype(dtype)
    assert type(choose_layout(model, on_cpu=True, prefix_bytes=0)) is StockLayout


def test_a_cache_that_cannot_be_batched_is_an_unsupported_model() -> None:
    class Chunked:
        def make_cache(self) -> list[ChunkedKVCache]:
            return [ChunkedKVCache(8)]  # type: ignore[no-untyped-call]

    with pytest.raises(UnsupportedModel, match="ChunkedKVCache"):
        choose_layout(Chunked(), on_cpu=True, prefix_bytes=0)


def test_the_bytes_of_a_row_are_those_of_its_keys_and_values() -> None:
    rows = rows_of("llama", prefix_bytes=0)
    # Two layers of keys and values, two heads of 16 numbers of 4 bytes.
    assert rows.layout.row_bytes(1) == 2 * 2 * 2 * 16 * 4
    for length in (1, 2, 100, 700):
        state = rows.prefill(tokens_of(random.Random(0), length), chunk=256)
        assert state.nbytes == rows.layout.row_bytes(length - 1)


def test_the_bytes_of_a_rotating_row_end_at_its_window() -> None:
    layout = rows_of("gemma3_text").layout
    token = 2 * 2 * 16 * 4
    assert layout.row_bytes(8) == 2 * 8 * token
    assert layout.row_bytes(1000) == (8 + 1000) * token


def test_the_bytes_of_a_recurrent_state_do_not_grow() -> None:
    layout = rows_of("lfm2").layout
    token = 2 * 2 * 16 * 4
    state = layout.row_bytes(1) - token
    assert state == 2 * 64 * 4  # Two tokens before the convolution's own, 64 numbers each.
    assert layout.row_bytes(1000) == state + 1000 * token


@pytest.mark.parametrize("length", [257, 300])
def test_stock_rows_take_the_bytes_that_were_foretold(stock: str, length: int) -> None:
    rows = rows_of(stock, prefix_bytes=0)
    for _ in range(3):
        rows.start(tokens_of(random.Random(1), length))
    assert rows.layout.nbytes == 3 * rows.layout.row_bytes(length - 1)


@pytest.mark.parametrize("count", [2, 9, 17, 33])
def test_rows_that_fill_their_reservations_fit_into_the_memory(count: int) -> None:
    rows, length = rows_of("llama", prefix_bytes=0), 1000
    # So much memory that just as much may be reserved.
    available = int(count * rows.layout.row_bytes(length) / plan(GIB, 0).kv_bytes * GIB)
    state = rows.prefill(tokens_of(random.Random(2), length), chunk=256)
    rows.layout.join([(uid, state) for uid in range(count)])
    assert rows.layout.nbytes <= available - plan(available, 0).prefix_bytes


def test_room_is_made_for_short_rows_that_come_soon_and_not_for_long_ones() -> None:
    source = random.Random(5)

    def size(soon: list[int]) -> int:
        rows = rows_of("llama", prefix_bytes=0)
        tokens = tokens_of(source, 200)
        rows.layout.join([(0, rows.prefill(tokens))], soon)
        return int(rows.layout.nbytes)

    alone = size([])
    assert size([190] * 8) > 4 * alone
    assert size([400] * 8) == alone
