"""How a trace becomes rows and bars, whatever its spans are."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from headrace.cli.screen import elapsed, safe
from headrace.cli.waterfall import bar, event_lines, guides, outcome, rows, title, window
from headrace.telemetry.records import SpanEvent
from tests.unit.telemetry.samples import SECOND, span


def test_children_are_below_their_parents_and_siblings_in_order() -> None:
    spans = [span(1), span(2, 1), span(3, 2), span(4, 1), span(5, 9, local_root=False)]
    found = rows(spans)
    assert [int(row.span.span_id, 16) for row in found] == [1, 2, 3, 4, 5]
    drawn = [guides(row.branch, unicode=True) for row in found]
    assert drawn == ["", "├─ ", "│  └─ ", "└─ ", ""]
    assert [guides(row.branch, unicode=False) for row in found][2] == "|  `- "
    # One whose parent should be here and is not says so; of one from elsewhere nobody asks.
    assert [row.cut_off for row in found] == [False, False, False, False, True]
    assert not rows([span(5, 9, local_root=True)])[0].cut_off


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), max_size=30))
def test_every_span_is_drawn_once_whatever_its_parent(pairs: list[tuple[int, int]]) -> None:
    found = rows([span(number, parent) for number, parent in pairs])
    drawn = [row.span.span_id for row in found]
    assert sorted(drawn) == sorted({f"{number:016x}" for number, _ in pairs})


def test_a_deep_trace_stays_on_the_screen() -> None:
    found = rows([span(number, number - 1) for number in range(1, 200)])
    assert len(found) == 199
    assert max(len(guides(row.branch, unicode=True)) for row in found) < 80


@given(st.integers(0, 10**9), st.integers(0, 10**9), st.integers(0, 10**9), st.integers(1, 200))
def test_a_bar_is_within_its_columns_and_always_seen(
    start: int, length: int, more: int, width: int
) -> None:
    one = span(1, start=start, end=start + length)
    shared = window([one, span(2, start=0, end=start + more)])
    for unicode in (True, False):
        drawn = bar(*shared.columns(one, width), width, unicode=unicode)
        assert len(drawn) <= width
        assert drawn.strip()


def test_a_bar_is_as_long_as_its_span() -> None:
    shared = window([span(1, start=0, end=8 * SECOND)])
    drawn = bar(*shared.columns(span(2, start=2 * SECOND, end=5 * SECOND), 8), 8, unicode=True)
    assert drawn == "  ███"
    half = span(2, start=0, end=SECOND // 2)
    assert bar(*shared.columns(half, 8), 8, unicode=True) == "▌"


def test_what_is_said_of_a_span() -> None:
    call: dict[str, Any] = {"name": "headrace.v1.CompletionService/StreamCompletion"}
    assert title(span(**call)) == "StreamCompletion"
    to = span(**call, kind="CLIENT", attributes={"headrace.runner.id": "r1"})
    assert title(to) == "StreamCompletion on r1"
    part = span(name="headrace.load.warm_up")
    assert (title(part), title(part, "headrace.load")) == ("load.warm up", "warm up")
    assert outcome(span()) == ""
    assert outcome(span(status="ERROR")) == "failed"
    refused = {"error.type": "QUEUE_FULL", "rpc.response.status_code": "RESOURCE_EXHAUSTED"}
    assert outcome(span(attributes=refused)) == "QUEUE_FULL: RESOURCE_EXHAUSTED"
    invalid = {
        "rpc.response.status_code": "INVALID_ARGUMENT",
        "headrace.error.reason": "INVALID_REQUEST",
        "headrace.error.details": "field=n",
    }
    assert outcome(span(attributes=invalid)) == "INVALID_REQUEST: INVALID_ARGUMENT: field=n"
    same = span(status="ERROR", message="SIGNAL", attributes={"error.type": "SIGNAL"})
    assert outcome(same) == "SIGNAL"


def test_of_a_long_text_both_ends_are_shown() -> None:
    event = SpanEvent(
        "headrace.runner.died", 2 * SECOND, {"last_words": "\n".join("abcdefghijklmn")}
    )
    short = event_lines(event, SECOND, whole=False)
    assert short[0] == "+1.00 s runner died"
    assert [text.strip() for text in short[1:]] == [
        *("last_words:", "a", "b", "c", "… 3 lines, which --verbose shows"),
        *"ghijklmn",
    ]
    assert len(event_lines(event, SECOND, whole=True)) == 16


def test_times_for_people() -> None:
    told = [0, 350, 999_400, 999_600, 9_940_000, 45_000_000, 1_234_000_000, 12_340_000_000]
    assert [elapsed(each) for each in told] == [
        *("0 µs", "0 µs", "999 µs", "1.0 ms", "9.9 ms", "45 ms", "1.23 s", "12.3 s")
    ]
    assert [elapsed(each * SECOND) for each in (60, 3599, 3600, 7260)] == [
        *("1m 00s", "59m 59s", "1h 00m", "2h 01m")
    ]


@given(st.text())
def test_nothing_printed_moves_the_cursor(text: str) -> None:
    shown = safe(text)
    assert all(sign in "\t\n" or sign.isprintable() or ord(sign) > 0x9F for sign in shown)
    assert "\x1b" not in shown
    assert "\r" not in shown
