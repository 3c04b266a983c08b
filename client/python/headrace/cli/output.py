"""How the command line shows things: JSON for programs, plain columns for people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from datetime import datetime
from typing import Any

import click

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def echo_json(value: object) -> None:
    """Prints a value, dataclasses included, as JSON."""
    click.echo(json.dumps(_plain(value), default=_scalar, ensure_ascii=False, indent=2))


def as_line(value: object) -> str:
    """A value as JSON on one line."""
    return json.dumps(_plain(value), default=_scalar, ensure_ascii=False)


def echo_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints rows in aligned columns."""
    widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
    for row in (headers, *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


def echo_fields(fields: Sequence[tuple[str, str]]) -> None:
    """Prints names and values, one a line; those without a value are left out."""
    width = max(len(name) for name, _ in fields)
    for name, value in fields:
        if value:
            click.echo(f"{name.ljust(width)}  {value}")


def size(count: float) -> str:
    """Bytes for people, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 10 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def duration(seconds: float) -> str:
    """Seconds for people."""
    whole = round(seconds)
    for length, unit, smaller in ((86400, "d", "h"), (3600, "h", "m"), (60, "m", "s")):
        if whole >= length:
            part = whole % length // {"h": 3600, "m": 60, "s": 1}[smaller]
            return (
                f"{whole // length}{unit} {part}{smaller}" if part else f"{whole // length}{unit}"
            )
    return f"{whole}s"


def _plain(value: object) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value


def _scalar(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.hex()
    raise TypeError(f"{type(value).__name__} has no JSON form")
