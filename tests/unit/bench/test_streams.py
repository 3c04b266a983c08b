"""What counts as arrived: output with text, tokens whose text was held back with it."""

import pytest

from tests.bench.children import BenchError
from tests.bench.streams import Recorder


def test_tokens_without_text_arrive_with_the_next_text() -> None:
    recorder = Recorder()
    recorder.note(1, "")
    recorder.note(1, "é")
    recorder.note(2, "ab")
    trace = recorder.trace(prompt_tokens=7, tokens=4)
    assert [arrival.tokens for arrival in trace.arrivals] == [2, 2]
    assert (trace.text, trace.tokens, trace.prompt_tokens) == ("éab", 4, 7)


def test_tokens_that_a_server_tells_only_in_all_are_spread() -> None:
    recorder = Recorder()
    recorder.note(1, "a")
    recorder.note(1, "b")
    trace = recorder.trace(prompt_tokens=1, tokens=3)
    assert [arrival.tokens for arrival in trace.arrivals] == [1.5, 1.5]


def test_a_stream_without_output_is_no_result() -> None:
    with pytest.raises(BenchError, match="without any output"):
        Recorder().trace(prompt_tokens=1, tokens=0)


def test_whoever_waits_for_output_is_told() -> None:
    seen: list[int] = []
    recorder = Recorder(lambda: seen.append(len(recorder.times)))
    recorder.note(1, "")
    recorder.note(1, "ab")
    recorder.note(1, "c")
    assert seen == [1, 2]
    assert recorder.trace(prompt_tokens=9, tokens=3, cached_tokens=8).cached_tokens == 8
