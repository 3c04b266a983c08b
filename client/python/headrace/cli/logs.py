"""`logs`: the last log lines of controllers and runners, out of the local store."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime

import click
from rich.console import Console

from headrace.cli.kept import LEVELS, NotFoundError, find_trace, level_number, opened
from headrace.cli.lines import styled
from headrace.cli.output import as_line
from headrace.cli.runners import parse_time
from headrace.cli.screen import clock, console
from headrace.telemetry.records import LogLine
from headrace.telemetry.store.reader import Filter, StoreReader

_LINES = 200
_ALL = 10**9
_PART = 1000
"""Lines that are read at once."""
_POLL = 0.25
"""Seconds between two looks for new lines: SQLite tells other processes of nothing."""


@click.command("logs")
@click.argument("model", required=False, default="")
@click.option("--trace", "trace", metavar="ID", help="Of one trace; a prefix of its id is enough.")
@click.option("-f", "--follow", is_flag=True, help="Go on, and show new lines as they come.")
@click.option("--since", type=parse_time, metavar="TIME", help="Not older than 90, 5m, 1h or 2d.")
@click.option("--level", type=click.Choice(LEVELS), default="debug", help="The least that counts.")
@click.option(
    "-n",
    "--lines",
    type=click.IntRange(0),
    metavar="N",
    help=f"The last N; without it the last {_LINES}, or all of a trace or since a time.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
def logs_command(
    model: str,
    trace: str | None,
    follow: bool,
    since: float | None,
    level: str,
    lines: int | None,
    as_json: bool,
) -> None:
    """Show the last log lines of controllers and their runners, of MODEL alone if it is given.

    They are read from HEADRACE_HOME, whether a controller runs or not.
    """
    if since is not None and since < 0:
        raise click.BadParameter(
            "is how long ago, such as 90, 5m, 1h or 2d", param_hint="'--since'"
        )
    if lines is None:
        lines = _LINES if trace is None and since is None else _ALL
    after = 0 if since is None else time.time_ns() - int(since * 1e9)
    with opened() as reader:
        spans = {} if trace is None else _spans(reader, find_trace(reader, trace))
        wanted = Filter(model, spans, after, level_number(level))
        place, found = reader.last_lines(wanted, lines)
    screen = console()
    _show(screen, found, as_json, one_trace=bool(spans))
    if not found and not follow:
        click.secho("no line is kept that matches", dim=True, err=True)
    never = threading.Event()
    while follow:
        found = []
        # Opened anew: a store that was broken or removed has another file, with the next line.
        with suppress(NotFoundError), opened() as reader:
            if reader.end() < place:
                place = 0
            place, found = reader.lines_after(place, wanted, _PART)
        _show(screen, found, as_json, one_trace=bool(spans))
        if len(found) < _PART:
            never.wait(_POLL)


def _spans(reader: StoreReader, trace_id: str) -> dict[str, frozenset[str] | None]:
    """All of a trace, and of others what it is linked to."""
    parts: dict[str, frozenset[str] | None] = {}
    for part in reader.linked(reader.trace(trace_id)):
        known = parts.get(part.trace_id) or frozenset()
        parts[part.trace_id] = known | {span.span_id for span in part.spans}
    return {**parts, trace_id: None}


def _show(screen: Console, lines: Sequence[LogLine], as_json: bool, *, one_trace: bool) -> None:
    now = datetime.now(UTC).astimezone()
    for line in lines:
        if as_json:
            click.echo(as_line(dict(line.fields)))
        else:
            text = styled(line, clock(line.time, now), show_trace=not one_trace)
            screen.print(text, soft_wrap=True)
    sys.stdout.flush()
