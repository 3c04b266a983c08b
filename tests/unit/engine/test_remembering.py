"""What a layout remembers of earlier rows, and what it gives to later ones."""

from __future__ import annotations

import random
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from headrace_runner.engine.text.layout import as_tokens
from tests.unit.engine.rows import ARCHITECTURES, MIB, STOCK, rows_of, tokens_of


@pytest.fixture(params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=STOCK)
def stock(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("chunk", [1, 16])
@pytest.mark.parametrize("length", [5, 40])
def test_a_hit_gives_the_logits_of_computing_anew(
    architecture: str, length: int, chunk: int
) -> None:
    source, rows = random.Random(length), rows_of(architecture)
    prefix = tokens_of(source, length)
    first, second = [*prefix, *tokens_of(source, 13)], [*prefix, *tokens_of(source, 20)]
    rows.layout.remember(as_tokens(first), rows.prefill(first, borders=[length]))
    state = rows.layout.begin(as_tokens(second), [length])
    assert state.length == length
    rows.start(second, chunk=chunk)
    rows.step(source)
    rows.step(source)
    # The very same again: all but the last token.
    rows.layout.remember(as_tokens(second), rows.prefill(second))
    state = rows.layout.begin(as_tokens(second), [])
    assert state.length == len(second) - 1
    rows.join((second, state))
    for _ in range(10):
        rows.step(source)


@pytest.mark.parametrize("chunk", [1, 3, 16])
@pytest.mark.parametrize("length", [5, 7, 40])
def test_rows_that_begin_with_a_checkpoint_leave_it_as_it_is(
    stock: str, length: int, chunk: int
) -> None:
    source, rows = random.Random(9), rows_of(stock)
    prefix = tokens_of(source, length)
    rows.prefill([*prefix, 1, 2], borders=[length])
    checkpoint = rows.layout.prefixes.match(as_tokens(prefix)).pieces[-1].value

    def contents() -> list[Any]:
        values: list[Any] = []
        for cache in checkpoint.caches:
            for value in vars(cache).values():
                parts = value if isinstance(value, list) else [value]
                values += [np.array(p) if isinstance(p, mx.array) else p for p in parts]
        return values

    before = contents()
    rows.start([*prefix, *tokens_of(source, 30)], chunk=chunk)
    rows.join(([*prefix, 7], rows.prefill([*prefix, 7])))
    for _ in range(12):
        rows.step(source)
    after = contents()
    assert any(isinstance(value, np.ndarray) for value in before)
    assert all(map(np.array_equal, before, after))


def test_a_prompt_stops_at_its_last_borders_and_where_others_left_it(stock: str) -> None:
    source, rows = random.Random(10), rows_of(stock)
    text = tokens_of(source, 60)
    rows.prefill(text, borders=[5, 20, 41])
    lengths = [rows.layout.begin(as_tokens([*text[:n], 0, 0]), []).length for n in (19, 30, 50, 60)]
    assert lengths == [0, 20, 41, 59]
    # Another left it at 50: whoever comes that way next leaves a checkpoint there.
    rows.prefill([*text[:50], *tokens_of(source, 9)])
    assert rows.layout.begin(as_tokens([*text[:50], 1, 1]), []).length == 50


def test_what_a_cancelled_prefill_has_computed_is_remembered(architecture: str) -> None:
    source, rows = random.Random(11), rows_of(architecture)
    text = tokens_of(source, 50)
    state = rows.prefill(text, upto=30)
    rows.layout.remember(as_tokens(text), state)
    assert rows.layout.begin(as_tokens(text), []).length == 30
    rows.start(text)
    rows.step(source)


def test_a_row_that_has_left_is_remembered_to_its_end() -> None:
    source, rows = random.Random(12), rows_of("llama")
    uid = rows.start(tokens_of(source, 20))
    other = rows.start(tokens_of(source, 25))
    for _ in range(9):
        rows.step(source)
    text = rows.tokens[uid]
    # One token more than is computed, as of a row with a draw in flight.
    rows.layout.remember_row(as_tokens([*text, 3]), uid)
    rows.keep({other})
    # A prompt's last token is always computed, and what was in flight was not.
    for prompt, known in (([*text, 3, 1], len(text)), (text, len(text) - 1), (text[:24], 23)):
        assert rows.layout.begin(as_tokens(prompt), []).length == known
        rows.start(prompt)
    rows.step(source)


def test_what_is_remembered_of_a_prompt_is_not_held_twice() -> None:
    rows, text = rows_of("llama"), tokens_of(random.Random(13), 200)
    state = rows.prefill(text)
    for _ in range(3):
        rows.layout.remember(as_tokens(text), state)
    assert rows.layout.remembered_bytes == rows.layout.row_bytes(199)
    # Another that has the first half in common adds its own second half.
    other = [*text[:100], *tokens_of(random.Random(14), 100)]
    rows.layout.remember(as_tokens(other), rows.prefill(other))
    assert rows.layout.remembered_bytes == rows.layout.row_bytes(199 + 99)


def test_remembering_has_a_budget(architecture: str) -> None:
    source = random.Random(15)
    layout = (rows := rows_of(architecture, prefix_bytes=MIB)).layout
    texts = [tokens_of(source, 600) for _ in range(8)]
    for text in texts:
        layout.remember(as_tokens(text), rows.prefill(text, chunk=256))
        assert 0 < layout.remembered_bytes <= MIB
    layout.forget(MIB // 2)
    assert layout.remembered_bytes <= MIB // 2
    layout.forget()
    assert layout.remembered_bytes == layout.nbytes == 0
    assert layout.begin(as_tokens(texts[-1]), []).length == 0


def test_no_budget_no_memory(architecture: str) -> None:
    rows, text = rows_of(architecture, prefix_bytes=0), tokens_of(random.Random(16), 40)
    rows.layout.remember(as_tokens(text), rows.prefill(text, borders=[10]))
    assert rows.layout.remembered_bytes == 0
    assert rows.layout.begin(as_tokens(text), []).length == 0
