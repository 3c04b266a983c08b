"""The figures of a bench as a table and as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from tests.bench.speed import REFERENCE, Results, Row
from tests.bench.stats import Spread, ratio, spread

TUNED = "tuned"
WIDTH = 180
"""Columns that the table needs at most."""
_FIGURES = ("overall", "decode", "ttft_p50", "ttft_p95", "tpot")
_COLUMNS = (
    "streams",
    "contender",
    "tokens",
    "tokens/s",
    "decode\ntokens/s",
    "TTFT\np50 s",
    "TTFT\np95 s",
    "TPOT\nms",
    "× bare",
    "× bare\ndecode",
    "× tuned",
    "× tuned\ndecode",
    "text",
)


def figures(results: Results) -> list[dict[str, Any]]:
    """The figures of each row: a Spread, or None, by its name. Times in seconds."""
    return [_row(row, results) for row in results.rows.values()]


def show(results: Results, facts: dict[str, str], console: Console) -> None:
    """Prints the table, then what failed."""
    console.print(_facts(facts))
    table = Table(*_COLUMNS, box=SIMPLE_HEAD)
    for column in table.columns:
        column.justify, column.no_wrap = "right", True
    table.columns[1].justify = "left"
    last = None
    for row in figures(results):
        if last not in (None, row["streams"]):
            table.add_section()
        last = row["streams"]
        table.add_row(*_cells(row))
    console.print(table)
    for failure in results.failures:
        console.print(Text(failure, style="red"))


def to_json(results: Results, facts: dict[str, str]) -> str:
    """The same for programs."""
    document = {"facts": facts, "rows": figures(results), "failures": results.failures}
    return json.dumps(document, indent=2, default=asdict)


def table(title: str, rows: list[tuple[str, str]], facts: dict[str, str]) -> RenderableType:
    """Names and values under a title."""
    shown = Table(title, "", title_justify="left")
    for name, value in rows:
        shown.add_row(name, value)
    return Group(_facts(facts), shown)


def _row(row: Row, results: Results) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "contender": row.contender.name,
        "title": row.contender.title,
        "streams": row.streams,
        "tokens": row.figures("tokens"),
        "prompt_tokens": row.figures("prompt_tokens"),
        "same_text": row.same,
        "compared": row.compared,
    }
    for name in _FIGURES:
        shown[name] = spread(row.figures(name))
    for base_name in (REFERENCE, TUNED):
        base = results.rows.get((base_name, row.streams))
        for name in ("overall", "decode"):
            # Fewer tokens give the prefill a greater share: only decode rates compare then.
            fair = base is not None and (name == "decode" or base.tokens == row.tokens)
            shown[f"{name}_to_{base_name}"] = (
                ratio(row.figures(name), base.figures(name)) if base and fair else None
            )
    return shown


def _cells(row: dict[str, Any]) -> list[str]:
    streams, counts = row["streams"], [count for count in row["tokens"] if count is not None]
    each = {count / streams for count in counts}
    same = f"{row['same_text']}/{row['compared']}" if row["compared"] else "–"
    return [
        str(streams),
        row["title"],
        "/".join(f"{count:g}" for count in sorted(each)) or "–",
        _cell(row["overall"], 1, spread=True),
        _cell(row["decode"], 1),
        _cell(row["ttft_p50"], 3, spread=True),
        _cell(row["ttft_p95"], 3),
        _cell(row["tpot"], 1, scale=1000),
        *(_cell(row[f"{name}_to_{REFERENCE}"], 2) for name in ("overall", "decode")),
        *(_cell(row[f"{name}_to_{TUNED}"], 2) for name in ("overall", "decode")),
        same,
    ]


def _cell(value: Spread | None, digits: int, *, scale: float = 1.0, spread: bool = False) -> str:
    if value is None:
        return "–"
    median = f"{value.median * scale:.{digits}f}"
    if not spread or value.low == value.high:
        return median
    return f"{median} ({value.low * scale:.{digits}f}–{value.high * scale:.{digits}f})"


def _facts(facts: dict[str, str]) -> Text:
    return Text("\n".join(f"{name}: {value}" for name, value in facts.items()), style="dim")
