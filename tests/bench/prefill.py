"""How fast a prompt is computed, and how much memory the process has that does it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.bench.prompts import long_text, prompts
from tests.bench.report import Outcome, cell, grid
from tests.bench.servers import LLAMA, OURS
from tests.bench.stats import Spread, spread
from tests.bench.streams import Stream

LENGTHS = (512, 2000)
"""Tokens of a prompt."""
CONTEXT = 4096
"""Tokens of prompt and output that a server has to have room for."""
_AIMS = {"speed": 0.8, "memory": 1.3}
"""Times the peer's: at least, and at most."""
_ANSWER_SECONDS = 300.0
_SETTLE_SECONDS = 4


@dataclass(frozen=True)
class Row:
    """Of one server."""

    title: str
    speed: Mapping[int, Spread]
    """Tokens of the prompt, of each length, by seconds until the first token of the answer."""
    memory: int
    """Resident bytes of its largest process, once it has given back what it is done with."""
    peak: int
    """The most that were resident at any moment; 0 where the system does not tell."""


def texts(rounds: int, count: Callable[[str], int]) -> Mapping[int, Sequence[str]]:
    """Prompts of each length, one a round; no two begin alike. `count`: tokens of a text."""
    return {
        length: [long_text(place * rounds + index, length, count) for index in range(rounds)]
        for place, length in enumerate(LENGTHS)
    }


async def observe(title: str, stream: Stream, texts: Mapping[int, Sequence[str]]) -> Row:
    """Sends one prompt after the other. Raises TimeoutError."""
    await _speed(stream, f"Before all this, {prompts(1)[0]}")
    found = {
        length: spread([await _speed(stream, text) for text in several])
        for length, several in texts.items()
    }
    speed = {n: one for n, one in found.items() if one}
    return Row(title, speed, await _settled(), max(map(_peak, _processes()), default=0))


def outcome(rows: Sequence[Row], failures: Sequence[str]) -> Outcome:
    """A table, with what misses an aim beside the peer."""
    shown = grid(
        ("", *(f"{length} tokens: tokens/s" for length in LENGTHS), "memory MB", "at most MB"),
        (
            (
                row.title,
                *(cell(row.speed[n], 0) for n in LENGTHS),
                *map(_mb, (row.memory, row.peak)),
            )
            for row in rows
        ),
    )
    return Outcome(shown, rows, [*failures, *_missed({row.title: row for row in rows})])


def _missed(rows: Mapping[str, Row]) -> list[str]:
    if OURS not in rows or LLAMA not in rows:
        return []
    ours, peer = rows[OURS], rows[LLAMA]
    speeds = {n: ours.speed[n].median / peer.speed[n].median for n in LENGTHS}
    memory = ours.memory / peer.memory
    return [
        *(
            f"tokens/s of a prompt of {n}, {OURS} / {LLAMA}: {value:.2f}, aim ≥ {_AIMS['speed']}"
            for n, value in speeds.items()
            if value < _AIMS["speed"]
        ),
        *(
            [f"memory, {OURS} / {LLAMA}: {memory:.2f}, aim ≤ {_AIMS['memory']}"]
            if memory > _AIMS["memory"]
            else []
        ),
    ]


async def _speed(stream: Stream, prompt: str) -> float:
    async with asyncio.timeout(_ANSWER_SECONDS):
        trace = await stream(prompt, 1)
    return trace.prompt_tokens / (trace.arrivals[0].time - trace.sent)


def _mb(count: int) -> str:
    return f"{count / 1e6:.0f}" if count else "–"


async def _settled() -> int:
    """Resident bytes of the largest process, at their least in the next seconds: some of our own
    after the last answer, a runner gives back what it is done with."""
    least = _largest()
    for _ in range(_SETTLE_SECONDS):
        await asyncio.sleep(1.0)
        least = min(least, _largest())
    return least


def _largest() -> int:
    """Of all that the bench has started: one server runs at a time."""
    return max((child.memory_info().rss for child in _processes()), default=0)


def _processes() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def _peak(process: psutil.Process) -> int:
    try:
        status = Path("/proc", str(process.pid), "status").read_text()
    except OSError:
        return 0
    kilobytes = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return int(kilobytes[1]) * 1024 if kilobytes else 0
