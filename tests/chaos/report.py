"""A chaos run's summary, for people."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from tests.chaos.footprint import Footprint
from tests.chaos.run import Result

_SHOWN = 10
"""Of what went wrong, at most."""


def show(result: Result, console: Console) -> None:
    """Prints a table, and what went wrong below it."""
    table = Table(title="chaos", show_header=False)
    for name, value in rows(result):
        table.add_row(name, value)
    console.print(table)
    tally = result.tally
    for kind, found in (
        ("failed", tally.failures),
        ("different", tally.differences),
        ("left behind", result.left),
    ):
        for line in found[:_SHOWN]:
            console.print(f"{kind}: {line}", style="red", highlight=False, markup=False)
        if len(found) > _SHOWN:
            console.print(f"{kind}: {len(found) - _SHOWN} more", style="red")


def rows(result: Result) -> Iterator[tuple[str, str]]:
    """Names and values of the table."""
    tally, plan = result.tally, result.plan
    yield "seed", str(plan.seed)
    yield "streams at once", f"{plan.greedy} greedy, {plan.seeded} seeded"
    yield "kills", f"{result.kills}, {result.kills_in_load} of them before any stream had gone on"
    yield "streams completed", str(tally.completed)
    yield "tokens", str(tally.tokens)
    yield "moves", f"{tally.moves}, at most {tally.most_moves} of one stream"
    if times := sorted(result.recoveries):
        middle, worst = times[len(times) // 2], times[-1]
        yield (
            "all going on again",
            f"after {middle:.1f} s (median), {worst:.1f} s at most, {len(times)} times",
        )
    yield "streams failed", str(len(tally.failures))
    yield "streams different", str(len(tally.differences))
    if result.before and result.after:
        yield from _compared(result.before, result.after)
    yield "left behind", str(len(result.left))
    yield "time", f"{result.seconds:.0f} s"


def _compared(before: Footprint, after: Footprint) -> Iterator[tuple[str, str]]:
    mebibyte = 1 << 20
    yield (
        "controller's memory",
        f"{before.memory / mebibyte:.0f} MiB before, {after.memory / mebibyte:.0f} MiB after",
    )
    yield "its open files", f"{before.files} before, {after.files} after"
    yield "its threads", f"{before.threads} before, {after.threads} after"
    yield "its tasks", f"{len(before.tasks)} before, {len(after.tasks)} after"
    yield "processes", f"{before.processes} before, {after.processes} after"
    yield "sockets", f"{before.sockets} before, {after.sockets} after"
