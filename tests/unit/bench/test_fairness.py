"""The fairness bench: its figures, and its course with a server that answers on the spot."""

import asyncio
import io
import time

import pytest
from rich.console import Console

from tests.bench import fairness
from tests.bench.children import BenchError
from tests.bench.fairness import STREAMS, Row, observe, outcome, paces
from tests.bench.stats import Arrival, Trace
from tests.bench.streams import Recorder


def test_waits_before_and_while_the_long_prompt_is_there() -> None:
    # All streams run from 2.0 on; the long prompt comes at 5.0, and its first token at 9.0.
    one = [0.5, 2.0, 3.0, 4.0, 4.9, 7.9, 11.0]
    other = [2.0, 3.0, 4.0, 4.9, 8.9, 11.0]
    idle, busy = paces([one, other], sent=5.0, done=9.0)
    assert idle.p50 == pytest.approx(1.0)
    assert idle.longest == pytest.approx(1.0)
    # Whole waits: 3.0 and 3.1 of the one, 4.0 and 2.1 of the other.
    assert busy.p50 == pytest.approx(3.05)
    assert busy.longest == pytest.approx(4.0)
    assert Row("it", idle, busy, 4.0, 2).ratio == pytest.approx(busy.p95 / idle.p95)


def test_streams_that_made_nothing_in_time_are_no_result() -> None:
    with pytest.raises(BenchError, match="no stream made two outputs"):
        paces([[1.0], [1.5]], sent=2.0, done=3.0)


class Server:
    """Gives each stream a token whenever the others have had theirs; notes what it sees."""

    def __init__(
        self, ends_after: int | None = None, *, answers: bool = True, stalls: bool = False
    ) -> None:
        self._ends_after = ends_after
        self._answers = answers
        self._stalls = stalls
        self._free = asyncio.Event()
        self._free.set()
        self.outputs: list[int] = []
        self.before_long: list[int] = []
        self.cancelled = 0

    async def __call__(self, prompt: str, tokens: int, recorder: Recorder | None = None) -> Trace:
        if recorder is None:
            return await self._long()
        index = len(self.outputs)
        self.outputs.append(0)
        end = self._ends_after if index == 0 and self._ends_after else tokens
        try:
            while self.outputs[index] < end:
                await asyncio.sleep(0)
                await self._free.wait()
                recorder.note(1, "a")
                self.outputs[index] += 1
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return recorder.trace(1, end)

    async def _long(self) -> Trace:
        self.before_long = list(self.outputs)
        sent = time.perf_counter()
        if self._stalls:
            self._free.clear()
            asyncio.get_running_loop().call_later(0.05, self._free.set)
        for _ in range(40):
            await asyncio.sleep(0)
        if not self._answers:
            await asyncio.Event().wait()
        return Trace(sent, (Arrival(time.perf_counter(), 1),), 8000, "a")


async def test_the_long_prompt_comes_once_every_stream_is_under_way() -> None:
    server = Server()
    found = await observe("it", server, 10, "long")
    assert len(server.before_long) == STREAMS
    assert min(server.before_long) >= 10
    assert found.lasting == server.cancelled == STREAMS


async def test_a_stream_that_ends_early_holds_nothing_up() -> None:
    found = await observe("it", Server(ends_after=3), 10, "long")
    assert found.lasting == STREAMS - 1


async def test_a_wait_that_the_long_prompt_causes_counts_whole() -> None:
    found = await observe("it", Server(stalls=True), 10, "long")
    assert found.prefill is not None
    assert found.prefill < found.busy.longest


async def test_a_prompt_that_takes_too_long_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fairness, "BUSY_SECONDS", 0.05)
    found = await observe("it", Server(answers=False), 10, "long")
    assert found.prefill is None
    assert found.lasting == STREAMS
    page = io.StringIO()
    Console(file=page, width=150).print(outcome([found], []).shown)
    assert "> 0.05" in page.getvalue()
