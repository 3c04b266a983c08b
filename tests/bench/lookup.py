"""`python -m tests.bench.lookup`: what looking up and inserting cost in the prefix cache.

Prompts of 32k tokens, 95% of each cached, among thousands of others. Needs no model: values are
empty, so only the tree's own work is timed. Wall time: the greatest ones are also those of what
interrupts, other processes and Python's garbage collection.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product

import numpy as np
from rich.console import Console
from rich.table import Table

from headrace_runner.engine.text.prefix_cache import PrefixCache, Tokens
from tests.bench.stats import percentile

_PROMPT = 32_768
_KNOWN = int(_PROMPT * 0.95)
_VOCABULARY = 49_152
_WIDTH = 120


@dataclass(frozen=True, slots=True)
class Shape:
    """How the cached prompts hang together: each is one part of every level, in order."""

    name: str
    levels: tuple[tuple[int, int], ...]
    """Tokens of a part, and in how many parts each part of the level before goes on."""
    run: int
    """Tokens inserted at a time."""

    def prompts(self) -> Iterator[Tokens]:
        for choice in product(*(range(parts) for _, parts in self.levels)):
            yield self.prompt(choice)

    def prompt(self, choice: tuple[int, ...]) -> Tokens:
        return np.concatenate(
            [
                _tokens(np.random.default_rng((level, *choice[: level + 1])), length)
                for level, (length, _) in enumerate(self.levels)
            ]
        )

    def unseen(self, random: np.random.Generator) -> Tokens:
        """A cached prompt, chosen at random, with an ending of its own."""
        known = self.prompt(tuple(int(random.integers(parts)) for _, parts in self.levels))
        return np.concatenate([known, _tokens(random, _PROMPT - len(known))])


SHAPES = (
    Shape("one beginning, then all apart", ((_KNOWN - 512, 1), (512, 4096)), _KNOWN),
    Shape("documents, questions", ((15_000, 8), (14_000, 32), (_KNOWN - 29_000, 16)), _KNOWN),
    Shape("the same, by chunks of 512", ((15_000, 8), (14_000, 32), (_KNOWN - 29_000, 16)), 512),
    Shape("conversations, by turns of 64", ((30_000, 64), (_KNOWN - 30_000, 32)), 64),
)


@dataclass(frozen=True, slots=True)
class Empty:
    """A value of one byte to the token, without the bytes."""

    nbytes: int


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.lookup", description=__doc__)
    parser.add_argument("--times", type=int, default=2000, help="of each operation (default: 2000)")
    parser.add_argument("--seconds", type=float, default=10.0, help="at most for each operation")
    arguments = parser.parse_args()
    table = Table(title=f"prefix cache, prompts of {_PROMPT:,} tokens, {_KNOWN:,} cached")
    table.add_column("cached prompts")
    for heading in ("prompts", "tokens", "edges to one", "", "p50 ms", "p95 ms", "max ms"):
        table.add_column(heading, justify="right")
    for shape in SHAPES:
        _measure(shape, arguments.times, arguments.seconds, table)
    ids = SHAPES[0].unseen(np.random.default_rng(0)).tolist()
    making = percentile([_timed(lambda: np.array(ids, np.int32)) for _ in range(50)], 50)
    table.caption = f"not in these times: making the array from a list, {1e3 * making:.3f} ms"
    console = Console()
    console.width = max(console.width, _WIDTH)
    console.print(table)


def _measure(shape: Shape, times: int, seconds: float, table: Table) -> None:
    """Adds two rows: looking up, and inserting with as much evicted each time."""
    cache = PrefixCache(2**62, _divide)
    prompts = 0
    for prompt in shape.prompts():
        prompts += 1
        for end in range(cache.match(prompt).length + shape.run, _KNOWN + shape.run, shape.run):
            cache.insert(prompt[:end], _make)
    edges = 0

    def look_up(prompt: Tokens) -> None:
        nonlocal edges
        found = cache.match(prompt)
        assert found.reusable == _KNOWN
        edges = len(found.pieces)

    rows = [("look up", _time(look_up, shape, times, seconds))]
    facts = (shape.name, f"{prompts:,}", f"{cache.tokens:,}", str(edges))
    cache.budget = cache.nbytes

    def insert(prompt: Tokens) -> None:
        assert cache.insert(prompt, _make)

    rows.append(("insert", _time(insert, shape, times, seconds)))
    assert cache.counters.evictions
    for what, taken in rows:
        figures = [f"{1e3 * percentile(taken, percent):.3f}" for percent in (50, 95, 100)]
        table.add_row(*facts, what, *figures)
        facts = ("", "", "", "")


def _time(
    operation: Callable[[Tokens], None], shape: Shape, times: int, seconds: float
) -> list[float]:
    """Seconds of each call with a prompt of its own, making which is not counted."""
    random = np.random.default_rng(0)
    until = time.perf_counter() + seconds
    taken: list[float] = []
    while len(taken) < times and (not taken or time.perf_counter() < until):
        prompt = shape.unseen(random)
        taken.append(_timed(partial(operation, prompt)))
    return taken


def _timed(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def _tokens(random: np.random.Generator, count: int) -> Tokens:
    return random.integers(_VOCABULARY, size=count, dtype=np.int32)


def _make(start: int, end: int) -> Empty:
    return Empty(end - start)


def _divide(value: Empty, at: int) -> tuple[Empty, Empty]:
    return Empty(at), Empty(value.nbytes - at)


if __name__ == "__main__":
    main()
