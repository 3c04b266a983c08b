"""From arrival times to figures: rates, percentiles, medians over rounds. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class Arrival:
    """Output that reached the client. `time` in seconds; `tokens` may be a fraction where a
    server tells only their sum."""

    time: float
    tokens: float


@dataclass(frozen=True, slots=True)
class Trace:
    """What one stream did, as its client saw it. Times in seconds, on one clock for all streams."""

    sent: float
    arrivals: tuple[Arrival, ...]
    """Not empty."""
    prompt_tokens: int
    text: str
    cached_tokens: int = 0
    """Prompt tokens that the server says it had already."""

    @property
    def tokens(self) -> int:
        """Output tokens."""
        return round(sum(arrival.tokens for arrival in self.arrivals))


@dataclass(frozen=True, slots=True)
class Sample:
    """The figures of streams that were sent at once. Times in seconds."""

    overall: float
    """Output tokens a second from the first request to the last token, prefill included."""
    decode: float | None
    """Output tokens a second while every stream is past its first output and none has ended.
    None: there was no such time."""
    ttft_p50: float
    ttft_p95: float
    tpot: float | None
    """Median over the streams of the time per output token after the first output. None: each
    output came all at once."""
    tokens: int
    """Output tokens of all streams."""
    prompt_tokens: int
    """Prompt tokens of all streams."""


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over the rounds."""

    median: float
    low: float
    high: float


def measure(traces: Sequence[Trace]) -> Sample:
    """The figures of `traces`, at least one."""
    begin = min(trace.sent for trace in traces)
    end = max(trace.arrivals[-1].time for trace in traces)
    tokens = sum(trace.tokens for trace in traces)
    waits = [trace.arrivals[0].time - trace.sent for trace in traces]
    paces = [pace for trace in traces if (pace := _pace(trace)) is not None]
    return Sample(
        overall=tokens / (end - begin),
        decode=_decode_rate(traces),
        ttft_p50=percentile(waits, 50),
        ttft_p95=percentile(waits, 95),
        tpot=statistics.median(paces) if paces else None,
        tokens=tokens,
        prompt_tokens=sum(trace.prompt_tokens for trace in traces),
    )


def percentile(values: Sequence[float], percent: float) -> float:
    """The percentile of `values`, at least one, interpolated linearly between neighbours."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def spread(values: Iterable[float | None]) -> Spread | None:
    """Median, least and greatest of the values that are there. None: there are none."""
    known = [value for value in values if value is not None]
    return Spread(statistics.median(known), min(known), max(known)) if known else None


def ratio(values: Sequence[float | None], base: Sequence[float | None]) -> Spread | None:
    """How many times `base` each of `values` is, round by round: both ran under the same load.

    Rounds in which either is missing do not count.
    """
    return spread(
        value / other
        for value, other in zip(values, base, strict=True)
        if value is not None and other
    )


def waits_within(times: Sequence[float], begin: float, end: float) -> list[float]:
    """The times between neighbours of `times`, ascending, that both lie in `begin` to `end`."""
    return [after - before for before, after in pairwise(times) if begin <= before and after <= end]


def waits_over(times: Sequence[float], begin: float, end: float) -> list[float]:
    """The times between neighbours of `times`, ascending, with any of it in `begin` to `end`.

    The whole of each counts, also what lies outside: that is what a reader waited.
    """
    return [after - before for before, after in pairwise(times) if before < end and after > begin]


def agreement(texts: Sequence[str], reference: Sequence[str]) -> int:
    """How many texts equal the reference, as far as the shorter of the two goes.

    White space at the ends does not count, nor does a character that is cut in two by the end.
    """
    pairs = zip(map(_plain, texts), map(_plain, reference), strict=True)
    return sum(bool(a and b) and (a.startswith(b) or b.startswith(a)) for a, b in pairs)


def _plain(text: str) -> str:
    return text.strip().rstrip("\N{REPLACEMENT CHARACTER}")


def _pace(trace: Trace) -> float | None:
    first, last = trace.arrivals[0], trace.arrivals[-1]
    later = sum(arrival.tokens for arrival in trace.arrivals[1:])
    return (last.time - first.time) / later if later else None


def _decode_rate(traces: Sequence[Trace]) -> float | None:
    begin = max(trace.arrivals[0].time for trace in traces)
    end = min(trace.arrivals[-1].time for trace in traces)
    if end <= begin:
        return None
    inside = sum(
        arrival.tokens
        for trace in traces
        for arrival in trace.arrivals
        if begin < arrival.time <= end
    )
    return inside / (end - begin)
