"""`top`: what the runners of a controller do, live on a terminal."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click
from rich.console import Group, JustifyMethod, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from headrace.cli.connection import controller
from headrace.cli.output import as_line, size
from headrace.cli.rates import Rate, Rates, trend
from headrace.cli.runners import end_of, parse_time, state_of
from headrace.cli.screen import console, draws_unicode, safe

if TYPE_CHECKING:
    from headrace.client import Client
    from headrace.types import Runner, RunnersSnapshot

_LEAST_INTERVAL = 0.1  # seconds
_GAUGE = 20  # columns
_WITHOUT_TREND = 104
"""Columns that all others take."""
_COLUMNS = (
    *((name, 0) for name in ("MODEL", "RUNNER", "STATE", "RUNS", "WAITS", "TOKENS/S")),
    *(("PROMPT/S", 98), ("CACHED", 88), ("KV", 104), ("MEMORY", 0), ("UNLOADED", 80)),
    ("TREND", 112),
)
"""And how wide the screen is at least where each of them is shown."""
_WORDS = frozenset({"MODEL", "RUNNER", "STATE", "UNLOADED", "TREND"})
_STATES = {"serving": "green", "stalled": "bold red", "dead": "red", "draining": "yellow"}


@click.command("top")
@click.option(
    "--interval", type=parse_time, default="1s", metavar="TIME", help="Between two looks; 1s."
)
@click.option(
    "--count",
    type=click.IntRange(1),
    metavar="N",
    help="End after N looks; without it, on a terminal, on Ctrl-C; elsewhere, and with --json, "
    "after one.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a look.")
def top_command(interval: float, count: int | None, as_json: bool) -> None:
    """Show models, runners, tokens per second, queues and memory, live."""
    if interval < _LEAST_INTERVAL:
        raise click.BadParameter(
            f"is less than {_LEAST_INTERVAL:g}s, or forever", param_hint="'--interval'"
        )
    with controller(private=False) as client, suppress(KeyboardInterrupt):
        top = _Top(client, interval)
        if as_json or not sys.stdout.isatty():
            for _ in range(count or 1):
                top.look()
                if as_json:
                    click.echo(as_line(top.as_json()))
                else:
                    top.screen.print(top.draw())
                sys.stdout.flush()
            return
        with Live(console=top.screen, screen=True, auto_refresh=False) as live:
            looks = 0
            while count is None or looks < count:
                live.update(top.draw(), refresh=True)
                top.look()
                looks += 1
            live.update(top.draw(), refresh=True)


class _Top:
    """One controller, looked at again and again."""

    def __init__(self, client: Client, interval: float) -> None:
        self.screen = console()
        self._client = client
        self._interval = interval
        self._never = threading.Event()
        self._rates = Rates()
        self._take()

    def look(self) -> None:
        """Wait for an interval, and see what has happened in it."""
        self._never.wait(self._interval)
        self._take()

    def as_json(self) -> dict[str, Any]:
        """The last look."""
        snapshot = self._snapshot
        return {
            "tokens_per_second": _rounded(self._rates.total[-1]),
            "memory_bytes": sum(runner.memory_bytes for runner in snapshot.runners),
            "memory_budget_bytes": snapshot.memory_budget_bytes,
            "waiting": dict(snapshot.waiting),
            "runners": [
                {
                    **asdict(runner),
                    "tokens_per_second": _rounded(self._of(runner).output),
                    "prompt_tokens_per_second": _rounded(self._of(runner).prompt),
                }
                for runner in snapshot.runners
            ],
        }

    def draw(self) -> RenderableType:
        """The last look, for people."""
        snapshot = self._snapshot
        lines: list[RenderableType] = [self._heading(), self._summary(), Text()]
        if snapshot.runners or snapshot.waiting:
            lines.append(self._table())
        else:
            lines.append(Text("no model is loaded: `headrace load` or a request does it", "dim"))
        return Group(*lines)

    def _take(self) -> None:
        self._snapshot: RunnersSnapshot = self._client.list_runners()
        self._now = self._rates.take(self._snapshot, time.monotonic())

    def _of(self, runner: Runner) -> Rate:
        return self._now[runner.id]

    @property
    def _unicode(self) -> bool:
        return draws_unicode(self.screen)

    def _heading(self) -> Text:
        clock = datetime.now().astimezone()
        text = Text.assemble(("headrace top", "bold"), f"  {self._client.target}")
        return text.append(f"  {clock:%H:%M:%S}", "dim")

    def _summary(self) -> Text:
        snapshot = self._snapshot
        held = sum(runner.memory_bytes for runner in snapshot.runners)
        budget = snapshot.memory_budget_bytes
        running = sum(map(_running, snapshot.runners))
        reports = (runner.report for runner in snapshot.runners)
        waiting = sum(snapshot.waiting.values()) + sum(r.waiting for r in reports if r is not None)
        rate = self._rates.total[-1]
        text = Text.assemble(("memory ", "dim"), f"{size(held)} of {size(budget)} ")
        text.append_text(_gauge(held / budget if budget else 0.0, unicode=self._unicode))
        text.append("  tokens/s ", "dim").append(f"{rate:.1f}", "bold")
        if drawn := trend(self._rates.total, unicode=self._unicode).strip():
            text.append(f" {drawn}", "green")
        text.append("  running ", "dim").append(str(running))
        text.append("  waiting ", "dim").append(str(waiting), "yellow" if waiting else "")
        return text

    def _table(self) -> Table:
        width = self.screen.width
        names = [name for name, least in _COLUMNS if width >= least]
        if not self._unicode:
            names = [name for name in names if name != "TREND"]
        table = Table(box=None, pad_edge=False, header_style="dim")
        for name in names:
            justify: JustifyMethod = "left" if name in _WORDS else "right"
            table.add_column(name, justify=justify, no_wrap=True, overflow="ellipsis")
        told: set[str] = set()
        for runner in self._snapshot.runners:
            waits = self._snapshot.waiting.get(runner.model, 0) if runner.model not in told else 0
            told.add(runner.model)
            cells = self._cells(runner, waits)
            table.add_row(*(cells[name] for name in names))
        for model, waits in self._snapshot.waiting.items():
            if model not in told:
                cells = {"MODEL": safe(model), "STATE": "waiting", "WAITS": _waits(waits)}
                table.add_row(*(cells.get(name, "-") for name in names))
        return table

    def _cells(self, runner: Runner, waits: int) -> dict[str, RenderableType]:
        report, rate = runner.report, self._of(runner)
        cached = kv = "-"
        if report is not None and report.prompt_tokens_total:
            cached = f"{report.cached_tokens_total / report.prompt_tokens_total:.0%}"
        if report is not None and report.kv_limit_bytes:
            kv = f"{report.kv_reserved_bytes / report.kv_limit_bytes:.0%}"
        history = self._rates.history(runner.id)
        room = max(0, self.screen.width - _WITHOUT_TREND)
        return {
            "MODEL": safe(runner.model),
            "RUNNER": Text(safe(runner.id), "cyan"),
            "STATE": Text(safe(state_of(runner)), _STATES.get(str(runner.state), "")),
            "RUNS": str(_running(runner)),
            "WAITS": _waits(waits + (report.waiting if report is not None else 0)),
            "TOKENS/S": "-" if rate.output is None else Text(f"{rate.output:.1f}", "bold"),
            "PROMPT/S": "-" if rate.prompt is None else f"{rate.prompt:.1f}",
            "CACHED": cached,
            "KV": kv,
            "MEMORY": size(runner.memory_bytes),
            "UNLOADED": end_of(runner),
            "TREND": Text(trend(history[-room:] if room else [], unicode=True), "green"),
        }


def _running(runner: Runner) -> int:
    """Requests that it computes; where it has not told, those that it was given."""
    return runner.active_requests if runner.report is None else runner.report.running


def _waits(count: int) -> Text:
    return Text(str(count), "yellow" if count else "")


def _gauge(share: float, *, unicode: bool) -> Text:
    full = min(_GAUGE, round(min(1.0, share) * _GAUGE))
    block, rest = ("█", "░") if unicode else ("#", ".")
    style = "red" if share > 0.95 else "blue"
    return Text.assemble((block * full, style), (rest * (_GAUGE - full), "dim"))


def _rounded(rate: float | None) -> float | None:
    return None if rate is None else round(rate, 2)
