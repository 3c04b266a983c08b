"""`trace`: one trace as a waterfall with its log lines, or the last traces that are kept."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import click
from rich.console import Console
from rich.text import Text

from headrace.cli import waterfall
from headrace.cli.kept import find_trace, opened
from headrace.cli.lines import SOURCE_WIDTH, styled
from headrace.cli.output import echo_json, echo_table, json_option
from headrace.cli.screen import clock, console, draws_unicode, elapsed, safe
from headrace.cli.waterfall import Row, Window
from headrace.telemetry import names
from headrace.telemetry.records import LogLine, SpanRecord, span_to_fields
from headrace.telemetry.store.reader import StoreReader, Trace

_LISTED = 20
_ROOTS = 2000
"""Local roots that are looked at to list the last traces: a trace has several."""
_DURATION = 8
_LEAST_BAR = 16
"""Columns."""
_COLOURS = {"controller": "blue", "cli": "magenta"}
_RUNNER = "green"


@click.command("trace")
@click.argument("id", required=False)
@click.option("-v", "--verbose", is_flag=True, help="Draw all attributes and events as well.")
@json_option
def trace_command(id: str | None, verbose: bool, as_json: bool) -> None:
    """Draw the trace ID with its log lines. A prefix of the id is enough.

    Without ID, list the last traces. They are read from HEADRACE_HOME, whether a controller runs or
    not; a span is there once it has ended, with all that is below it.
    """
    if verbose and (as_json or id is None):
        raise click.UsageError("--verbose is for the drawing of one trace; --json has all of it")
    with opened() as reader:
        if id is None:
            _list(reader, as_json)
            return
        trace = reader.trace(find_trace(reader, id))
        linked = reader.linked(trace)
    if as_json:
        echo_json(
            {
                "trace_id": trace.trace_id,
                "spans": [span_to_fields(span) for span in trace.spans],
                "lines": [dict(line.fields) for line in trace.lines],
                "linked": [
                    {
                        "trace_id": part.trace_id,
                        "spans": [span_to_fields(span) for span in part.spans],
                        "lines": [dict(line.fields) for line in part.lines],
                    }
                    for part in linked
                ],
            }
        )
        return
    screen = console()
    _Drawing(screen, trace, verbose).draw()
    for part in linked:
        screen.print(Text("\nA part of another trace, which it is linked to:", "dim"))
        _Drawing(screen, part, verbose).draw()


def _list(reader: StoreReader, as_json: bool) -> None:
    roots: dict[str, SpanRecord] = {}
    for span in reader.last_roots(_ROOTS):
        known = roots.get(span.trace_id)
        if known is None and len(roots) == _LISTED:
            continue  # Traces that run at once come in turns: further roots of these may follow.
        if known is None or span.start < known.start:
            roots[span.trace_id] = span
    if as_json:
        echo_json([span_to_fields(span) for span in roots.values()])
        return
    now = datetime.now(UTC).astimezone()
    table = [
        (
            span.trace_id[:12],
            clock(span.start, now),
            elapsed(span.end - span.start),
            waterfall.title(span),
            _model(span) or "-",
            waterfall.outcome(span) or "ok",
        )
        for span in roots.values()
    ]
    echo_table(("TRACE", "BEGAN", "TOOK", "CALL", "MODEL", "ENDED"), table)


class _Drawing:
    """One trace on its way to the screen."""

    def __init__(self, screen: Console, trace: Trace, verbose: bool) -> None:
        self._screen = screen
        self._trace = trace
        self._verbose = verbose
        self._unicode = draws_unicode(screen)
        self._window = waterfall.window(trace.spans) if trace.spans else None

    def draw(self) -> None:
        """All of it."""
        rows = waterfall.rows(self._trace.spans)
        self._heading(rows)
        if rows and self._window is not None:
            self._print("")
            self._waterfall(rows, self._window)
        self._log(self._trace.lines)

    def _heading(self, rows: Sequence[Row]) -> None:
        text = Text.assemble(("trace ", "dim"), (self._trace.trace_id, "bold"))
        models = dict.fromkeys(filter(None, (_model(row.span) for row in rows)))
        models |= dict.fromkeys(filter(None, (line.text("model") for line in self._trace.lines)))
        if models:
            text.append(f"  {safe(', '.join(models))}")
        if self._window is None:
            text.append("  no span is kept: it still runs, or was not recorded", "yellow")
        else:
            now = datetime.now(UTC).astimezone()
            text.append(f"  {elapsed(self._window.end - self._window.start)}")
            text.append(f"  at {clock(self._window.start, now)}", "dim")
            ended = waterfall.outcome(rows[0].span)
            text.append(f"  {ended or 'ok'}", "bold red" if ended else "green")
        self._print(text)

    def _waterfall(self, rows: Sequence[Row], window: Window) -> None:
        labels = [self._label(row) for row in rows]
        # The bars get what the names leave, and never less than a little.
        most = max(_LEAST_BAR, self._screen.width - SOURCE_WIDTH - _DURATION - _LEAST_BAR - 6)
        name_width = min(max(label.cell_len for label in labels), most)
        width = max(_LEAST_BAR, self._screen.width - SOURCE_WIDTH - name_width - _DURATION - 6)
        for row, label in zip(rows, labels, strict=True):
            self._row(row, label, window, name_width, width)

    def _row(self, row: Row, label: Text, window: Window, name_width: int, width: int) -> None:
        span = row.span
        colour = _COLOURS.get(waterfall.source(span), _RUNNER)
        label.truncate(name_width, overflow="ellipsis", pad=True)
        begin, end = window.columns(span, width)
        text = Text()
        text.append(f"{waterfall.source(span)[:SOURCE_WIDTH]:<{SOURCE_WIDTH}} ", colour)
        text.append_text(label)
        text.append(f"  {elapsed(span.end - span.start):>{_DURATION}}  ")
        drawn = waterfall.bar(begin, end, width, unicode=self._unicode)
        text.append(drawn, "red" if waterfall.failed(span) else colour)
        self._print(text)
        self._below(row)

    def _label(self, row: Row) -> Text:
        span = row.span
        text = Text(waterfall.guides(row.branch, unicode=self._unicode), "dim")
        text.append(waterfall.title(span, row.above), "bold red" if waterfall.failed(span) else "")
        if facts := waterfall.facts(span):
            text.append(f"  {facts}", "dim")
        return text

    def _below(self, row: Row) -> None:
        """What explains a span, in lines of their own."""
        span = row.span
        if ended := waterfall.outcome(span):
            self._note(row, ended, "red" if waterfall.failed(span) else "yellow")
        if row.cut_off:
            self._note(row, "the span above it is not kept: it still runs, or is lost", "yellow")
        for line in waterfall.link_lines(span, self._trace.spans):
            self._note(row, line, "dim")
        if self._verbose or waterfall.failed(span):
            for event in span.events:
                for line in waterfall.event_lines(event, span.start, whole=self._verbose):
                    self._note(row, line, "")
        if self._verbose:
            for line in waterfall.attribute_lines(span.attributes):
                self._note(row, line, "dim")

    def _note(self, row: Row, line: str, style: str) -> None:
        indent = " " * (SOURCE_WIDTH + 1)
        guides = waterfall.below(row.branch, unicode=self._unicode)
        self._print(Text.assemble(indent, (f"{guides}  ", "dim"), (line, style)))

    def _log(self, lines: Sequence[LogLine]) -> None:
        if not lines:
            return
        start = self._window.start if self._window is not None else lines[0].time
        self._print("")
        for line in lines:
            offset = line.time - start
            when = f"{'-' if offset < 0 else '+'}{elapsed(abs(offset))}"
            self._print(styled(line, f"{when:>9}", show_trace=False))

    def _print(self, text: Text | str) -> None:
        self._screen.print(text, soft_wrap=True)


def _model(span: SpanRecord) -> str:
    for name in (names.GEN_AI_RESPONSE_MODEL, names.GEN_AI_REQUEST_MODEL):
        if value := span.attributes.get(name):
            return str(value)
    return ""
