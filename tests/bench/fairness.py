"""What a long prompt does to those who are being served: their inter-token time before and during.

Some streams run. Once each has made a number of tokens, a prompt of nearly the whole context
arrives, and the waits between the streams' outputs count until its first token is there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, dataclass

from tests.bench.children import BenchError
from tests.bench.prompts import prompts
from tests.bench.report import Outcome, grid
from tests.bench.stats import percentile, waits_over, waits_within
from tests.bench.streams import Recorder, Stream

STREAMS = 8
PROMPT_TOKENS = 8000
CONTEXT = 8192
"""Tokens of prompt and output that a server has to have room for."""
BUSY_SECONDS = 240.0
"""How long the long prompt is watched at most: a CPU may prefill for a minute or two."""
_REST_SECONDS = 180.0
"""What everything else may take."""
_OUTPUT_TOKENS = 7000
"""Of each running stream at most: more than it makes until then."""


@dataclass(frozen=True)
class Pace:
    """Times between two outputs of a stream, in seconds, over all streams."""

    p50: float
    p95: float
    longest: float


@dataclass(frozen=True)
class Row:
    """Of one server."""

    title: str
    idle: Pace
    """While nothing but the streams runs."""
    busy: Pace
    """While the long prompt is prefilled."""
    prefill: float | None
    """Seconds from the long prompt's request to its first token; None: not in BUSY_SECONDS."""
    lasting: int
    """Streams that ran until the end."""

    @property
    def ratio(self) -> float:
        """How many times longer the 95th percentile is while the prompt is prefilled."""
        return self.busy.p95 / self.idle.p95


async def observe(title: str, stream: Stream, tokens: int, long_prompt: str) -> Row:
    """Runs the streams, and sends the long prompt once each has had `tokens` outputs.

    Raises BenchError, or an ExceptionGroup of what ended the streams, TimeoutError.
    """
    changed = asyncio.Event()

    async def until(holds: Callable[[], bool]) -> None:
        while not holds():
            changed.clear()
            await changed.wait()

    async def run(prompt: str, recorder: Recorder) -> None:
        try:
            await stream(prompt, _OUTPUT_TOKENS, recorder)
        finally:
            changed.set()

    recorders = [Recorder(changed.set) for _ in range(STREAMS)]
    limit = _REST_SECONDS + BUSY_SECONDS
    async with asyncio.timeout(limit), asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(run(prompt, recorder))
            for prompt, recorder in zip(prompts(STREAMS), recorders, strict=True)
        ]
        runs = list(zip(tasks, recorders, strict=True))
        await until(lambda: all(t.done() or len(r.times) >= tokens for t, r in runs))
        sent = time.perf_counter()
        first = await _first_token(stream, long_prompt)
        done = first or time.perf_counter()
        lasting = sum(not task.done() for task in tasks)
        # The waits that go on then count whole.
        await until(lambda: all(t.done() or r.times[-1] > done for t, r in runs))
        for task in tasks:
            task.cancel()
    times = [recorder.times for recorder in recorders]
    return Row(
        title,
        *paces(times, sent, done),
        prefill=None if first is None else first - sent,
        lasting=lasting,
    )


async def _first_token(stream: Stream, prompt: str) -> float | None:
    try:
        async with asyncio.timeout(BUSY_SECONDS):
            return (await stream(prompt, 1)).arrivals[0].time
    except TimeoutError:
        return None


def paces(times: Sequence[Sequence[float]], sent: float, done: float) -> tuple[Pace, Pace]:
    """Of streams with outputs at `times`: once all run, before `sent`; from `sent` to `done`."""
    begin = max(own[0] for own in times)
    return (
        _pace([wait for own in times for wait in waits_within(own, begin, sent)]),
        _pace([wait for own in times for wait in waits_over(own, sent, done)]),
    )


def outcome(rows: Sequence[Row], failures: Sequence[str]) -> Outcome:
    """A table, waits in milliseconds."""
    waits = [f"{when}\n{what} ms" for when in ("idle", "busy") for what in ("p50", "p95", "max")]
    columns = ("", *waits, "p95\nbusy / idle", "long prompt\nTTFT s", "streams\nlasting")
    shown = grid(
        columns,
        (
            (
                row.title,
                *(f"{wait * 1000:.0f}" for pace in (row.idle, row.busy) for wait in astuple(pace)),
                f"{row.ratio:.2f}",
                f"> {BUSY_SECONDS:g}" if row.prefill is None else f"{row.prefill:.1f}",
                str(row.lasting),
            )
            for row in rows
        ),
    )
    return Outcome(shown, [{**asdict(row), "ratio": row.ratio} for row in rows], failures)


def _pace(waits: Sequence[float]) -> Pace:
    if not waits:
        raise BenchError("no stream made two outputs in time")
    return Pace(percentile(waits, 50), percentile(waits, 95), max(waits))
