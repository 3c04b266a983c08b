"""What a shared prefix saves: time to first token of prompts that begin alike, cold and warm."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from tests.bench.prompts import prompts
from tests.bench.report import Outcome, cell, grid
from tests.bench.servers import OURS
from tests.bench.stats import Spread, Trace, spread
from tests.bench.streams import Stream

PREFIX_TOKENS = 2000
FEWEST_CACHED = 1900
"""Prompt tokens that a warm request has to find; what is below is no working cache."""
CONTEXT = 4096
"""Tokens of prompt and output that a server has to have room for."""

_OUTPUT_TOKENS = 4
_WARM_REQUESTS = 3
"""With one prefix, each with an ending of its own, after the cold one."""
_ENDING_WORDS = 12
_ANSWER_SECONDS = 300.0


@dataclass(frozen=True)
class Row:
    """Of one server. Times to first token in seconds; one prefix is one round."""

    title: str
    cold: Spread
    warm: Spread
    """Over the rounds, of the median of each."""
    ratio: Spread
    """Cold over warm, round by round."""
    cached: int
    """Prompt tokens that a warm request found, as the server says it: the fewest."""


async def observe(title: str, stream: Stream, prefixes: Sequence[str]) -> Row:
    """Sends each prefix with one ending, then with others. Raises TimeoutError."""
    warm_up, *others = prompts(_WARM_REQUESTS + 2)
    await _answer(stream, f"Before all this, {warm_up}")
    endings = [" ".join(text.split()[:_ENDING_WORDS]) for text in others]
    rounds = [
        [await _answer(stream, f"{prefix} {ending}") for ending in endings] for prefix in prefixes
    ]
    return row(title, rounds)


def row(title: str, rounds: Sequence[Sequence[Trace]]) -> Row:
    """The figures of rounds that have a cold trace and some warm ones."""
    cold = [_wait(first) for first, *_ in rounds]
    warm = [_median([_wait(trace) for trace in others]).median for _, *others in rounds]
    return Row(
        title,
        cold=_median(cold),
        warm=_median(warm),
        ratio=_median([before / after for before, after in zip(cold, warm, strict=True)]),
        cached=min(trace.cached_tokens for _, *others in rounds for trace in others),
    )


def outcome(rows: Sequence[Row], failures: Sequence[str]) -> Outcome:
    """A table. A server of ours that does not find the prefix is a failure; peers do as they do."""
    shown = grid(
        ("", "cold TTFT s", "warm TTFT s", "cold / warm", "cached tokens"),
        (
            (row.title, cell(row.cold, 3), cell(row.warm, 3), cell(row.ratio, 1), str(row.cached))
            for row in rows
        ),
    )
    missed = [
        f"{row.title}: a warm request found {row.cached} tokens in the prefix cache, "
        f"and of {PREFIX_TOKENS} that it shares it has to find {FEWEST_CACHED}"
        for row in rows
        if row.cached < FEWEST_CACHED and row.title == OURS
    ]
    return Outcome(shown, rows, [*failures, *missed])


async def _answer(stream: Stream, prompt: str) -> Trace:
    async with asyncio.timeout(_ANSWER_SECONDS):
        return await stream(prompt, _OUTPUT_TOKENS)


def _wait(trace: Trace) -> float:
    return trace.arrivals[0].time - trace.sent


def _median(values: Sequence[float]) -> Spread:
    found = spread(values)
    assert found
    return found
