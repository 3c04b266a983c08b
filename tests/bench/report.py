"""The figures of a bench as tables and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from tests.bench.aims import Aim, reached
from tests.bench.speed import REFERENCE, Results, Row
from tests.bench.stats import Spread, ratio, spread

TUNED = "tuned"
WIDTH = 180
"""Columns that the table needs at most."""
_FIGURES = ("overall", "decode", "ttft_p50", "ttft_p95", "tpot")
_FIGURE_NAMES = {"overall": "tokens/s", "ttft_p50": "TTFT p50"}
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


@dataclass(frozen=True)
class Outcome:
    """What a command of the bench has found."""

    shown: RenderableType
    figures: object
    """The same for programs: what JSON can hold, and dataclasses of it."""
    failures: Sequence[str] = field(default=())
    """What could not be measured, or is not as it has to be."""


def show(outcome: Outcome, facts: dict[str, str], console: Console) -> None:
    """Prints what was found, then what failed."""
    console.print(Text("\n".join(f"{name}: {value}" for name, value in facts.items()), style="dim"))
    console.print(outcome.shown)
    for failure in outcome.failures:
        console.print(Text(failure, style="red"))


def to_json(outcome: Outcome, facts: dict[str, str]) -> str:
    """The same for programs."""
    document = {"facts": facts, "figures": outcome.figures, "failures": outcome.failures}
    return json.dumps(document, indent=2, default=asdict)


def grid(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table whose first column names its rows."""
    table = Table(*columns, box=SIMPLE_HEAD)
    for column in table.columns:
        column.justify, column.no_wrap = "right", True
    table.columns[0].justify = "left"
    for row in rows:
        table.add_row(*row)
    return table


def cell(value: Spread | None, digits: int, *, scale: float = 1.0, spread: bool = True) -> str:
    """The median, and least and greatest in brackets where they differ."""
    if value is None:
        return "–"
    median = f"{value.median * scale:.{digits}f}"
    if not spread or value.low == value.high:
        return median
    return f"{median} ({value.low * scale:.{digits}f}–{value.high * scale:.{digits}f})"


def speed(results: Results) -> Outcome:
    """The figures of all contenders, and the ratios that have an aim."""
    aims = reached(results.rows)
    return Outcome(
        Group(_speed_table(results), _aims_table(aims)) if aims else _speed_table(results),
        {
            "rows": rows(results),
            "aims": [
                {**asdict(aim), "ratio": value, "holds": aim.holds(value.median)}
                for aim, value in aims
            ],
        },
        results.failures,
    )


def rows(results: Results) -> list[dict[str, Any]]:
    """The figures of each row: a Spread, or None, by its name. Times in seconds."""
    return [_row(row, results) for row in results.rows.values()]


def _speed_table(results: Results) -> Table:
    table = grid(_COLUMNS, ())
    table.columns[0].justify, table.columns[1].justify = "right", "left"
    last = None
    for row in rows(results):
        if last not in (None, row["streams"]):
            table.add_section()
        last = row["streams"]
        table.add_row(*_cells(row))
    return table


def _aims_table(aims: Sequence[tuple[Aim, Spread]]) -> Table:
    return grid(
        ("ratio", "streams", "measured", "aim", ""),
        (
            (
                f"{_FIGURE_NAMES[aim.figure]}, {aim.contender} / {aim.base}",
                str(aim.streams),
                cell(value, 3),
                aim.bound,
                "holds" if aim.holds(value.median) else "missed",
            )
            for aim, value in aims
        ),
    )


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
        cell(row["overall"], 1),
        cell(row["decode"], 1, spread=False),
        cell(row["ttft_p50"], 3),
        cell(row["ttft_p95"], 3, spread=False),
        cell(row["tpot"], 1, scale=1000, spread=False),
        *(cell(row[f"{name}_to_{REFERENCE}"], 2, spread=False) for name in ("overall", "decode")),
        *(cell(row[f"{name}_to_{TUNED}"], 2, spread=False) for name in ("overall", "decode")),
        same,
    ]
