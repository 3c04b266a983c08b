"""The rounds: in each, every contender in turn is started, warmed up, measured and stopped.

Rounds are interleaved so that what else happens on the machine falls on all alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from tests.bench.children import explain
from tests.bench.contenders import Batch, Contender
from tests.bench.prompts import prompts
from tests.bench.setting import Setting
from tests.bench.stats import Sample, Trace, agreement, measure

REFERENCE = "bare"
_WARM_UP_TOKENS = 4


@dataclass(frozen=True)
class Plan:
    """What is to be measured."""

    contenders: Sequence[Contender]
    rounds: int
    streams: Sequence[int]
    """Numbers of streams at once."""
    tokens: int
    """Output tokens of each stream."""
    costly: bool = False
    """Whether to measure what takes a contender minutes."""

    def takes(self, contender: Contender, streams: int) -> bool:
        """Whether the contender is measured with so many streams."""
        return self.costly or streams not in contender.costly


@dataclass
class Row:
    """A contender with a number of streams."""

    contender: Contender
    streams: int
    tokens: int
    """Output tokens of each stream that were asked for."""
    samples: list[Sample | None]
    """By round."""
    same: int = 0
    """Streams, over all rounds, whose text is that of the reference."""
    compared: int = 0
    """Streams, over all rounds, that were compared."""

    def figures(self, name: str) -> list[float | None]:
        """A figure of Sample by round; None where there is none."""
        return [None if one is None else getattr(one, name) for one in self.samples]


@dataclass
class Results:
    """All that was measured."""

    rows: dict[tuple[str, int], Row]
    """By the contender's name and the number of streams, in the order of the table."""
    failures: list[str] = field(default_factory=list)


async def run(setting: Setting, plan: Plan, note: Callable[[str], None]) -> Results:
    """Measures. A contender that fails is noted and does not keep the others from going on."""
    workload = _workload(plan.streams)
    results = Results(
        {
            (one.name, streams): Row(
                one, streams, one.tokens(streams, plan.tokens), [None] * plan.rounds
            )
            for streams in plan.streams
            for one in plan.contenders
            if plan.takes(one, streams)
        }
    )
    reference: dict[str, str] = {}
    for number in range(plan.rounds):
        for contender in plan.contenders:
            if contender.rounds is not None and number >= contender.rounds:
                continue
            where = f"round {number + 1}/{plan.rounds} · {contender.title}"
            note(where)
            rows = [row for row in results.rows.values() if row.contender is contender]
            try:
                async with contender.start(setting) as batch:
                    await batch(workload[0], _WARM_UP_TOKENS)
                    for row in rows:
                        await _measure(batch, row, workload[row.streams], number, reference)
                        note(f"{where} · {row.streams} streams · {_brief(row.samples[number])}")
            except Exception as error:  # noqa: BLE001 (any contender may fail in any way)
                message = f"{where}: {explain(error)}"
                results.failures.append(message)
                note(message)
    return results


async def _measure(
    batch: Batch, row: Row, texts: list[str], number: int, reference: dict[str, str]
) -> None:
    traces = await batch(texts, row.tokens)
    row.samples[number] = measure(traces)
    if row.contender.name == REFERENCE:
        reference.update(_texts(texts, traces))
    elif all(text in reference for text in texts):
        row.same += agreement([trace.text for trace in traces], [reference[t] for t in texts])
        row.compared += len(texts)


def _texts(prompts: Sequence[str], traces: Sequence[Trace]) -> Mapping[str, str]:
    return {prompt: trace.text for prompt, trace in zip(prompts, traces, strict=True)}


def _workload(streams: Sequence[int]) -> dict[int, list[str]]:
    """Prompts by the number of streams, under 0 for the warm-up; none is used twice."""
    counts = (1, *streams)
    texts = prompts(sum(counts))
    ends = accumulate(counts)
    parts = [texts[end - count : end] for count, end in zip(counts, ends, strict=True)]
    return dict(zip((0, *streams), parts, strict=True))


def _brief(sample: Sample | None) -> str:
    assert sample
    return f"{sample.overall:.1f} tokens/s, first after {sample.ttft_p50:.2f} s"
