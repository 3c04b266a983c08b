"""Log lines for people: when, how bad, who, what, and the rest of it dimmed."""

from __future__ import annotations

import json
import logging
from typing import Any, Final

from rich.text import Text

from headrace.cli.screen import safe
from headrace.telemetry.records import LogLine

_STYLES: Final = ((logging.ERROR, "bold red"), (logging.WARNING, "yellow"), (logging.INFO, ""))
_SHOWN: Final = frozenset(
    {
        *("timestamp", "level", "message", "logger", "service", "trace_id", "span_id"),
        *("runner_id", "exception", "stack"),
    }
)
_OUTPUT: Final = "headrace_server.runners.output"
"""The controller's logger for what a runner prints outside its log."""
SOURCE_WIDTH: Final = 10
"""Columns."""


def styled(line: LogLine, when: str, *, show_trace: bool) -> Text:
    """One line, and below it what it has of a traceback."""
    style = next((style for level, style in _STYLES if line.level >= level), "dim")
    text = Text()
    text.append(f"{when} ", "dim")
    text.append(f"{line.text('level'):<8}", style)
    text.append(f"{source(line):<{SOURCE_WIDTH}} ", "cyan")
    text.append(safe(line.text("message")), style if line.level != logging.INFO else "")
    more = "".join(f"  {key}={_value(value)}" for key, value in _more(line).items())
    if show_trace and (trace_id := line.text("trace_id")):
        more += f"  trace={trace_id[:8]}"
    text.append(safe(more), "dim")
    for name in ("exception", "stack"):
        for below in line.text(name).splitlines():
            text.append(f"\n    {safe(below)}", "dim")
    return text


def source(line: LogLine) -> str:
    """Who says it."""
    service, runner = line.text("service"), line.text("runner_id")
    if line.text("logger") == _OUTPUT and runner:
        service = "headrace-runner"
    return process_name(service, runner)[:SOURCE_WIDTH]


def process_name(service: str, instance: str) -> str:
    """A runner by its id, another process by the last word of its service."""
    service = service.removeprefix("headrace-")
    return safe(instance if service == "runner" and instance else service)


def _more(line: LogLine) -> dict[str, Any]:
    fields = {key: value for key, value in line.fields.items() if key not in _SHOWN}
    if (runner := line.text("runner_id")) and runner != source(line):
        fields["runner"] = runner
    return {key: value for key, value in fields.items() if value not in ("", None)}


def _value(value: object) -> str:
    """As it is where that is one word, else as JSON."""
    if isinstance(value, str):
        return value if value.isprintable() and " " not in value else json.dumps(value)
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value, ensure_ascii=False, default=str)
