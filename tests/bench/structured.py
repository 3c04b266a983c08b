"""What a form costs: tokens a second of streams that follow a JSON Schema, beside free ones.

Through controller and runner, each round both ways with the same prompts and as many tokens.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

from headrace import AsyncClient
from tests.bench.prompts import prompts
from tests.bench.report import Outcome, cell, grid
from tests.bench.servers import controller
from tests.bench.setting import MODEL, Setting
from tests.bench.stats import Spread, ratio, spread

AIM = 0.8
"""Of the free tokens a second, at 8 streams."""
STREAMS = (1, 8, 32)

_PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 30},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 12}, "maxItems": 4},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
# Longer than what is generated of it, so that every stream has as many tokens.
_SCHEMA = json.dumps({"type": "array", "items": _PERSON, "minItems": 100})
_WAYS: dict[str, dict[str, Any]] = {
    "free": {"ignore_eos": True},
    "JSON Schema": {"json_schema": _SCHEMA},
}


async def measure(
    setting: Setting, rounds: int, tokens: int, note: Callable[[str], None]
) -> dict[int, dict[str, list[float]]]:
    """Tokens a second, by streams and way, one for each round."""
    found: dict[int, dict[str, list[float]]] = {n: {way: [] for way in _WAYS} for n in STREAMS}
    async with controller(setting) as (_, address), AsyncClient(address) as client:
        for way in _WAYS.values():  # The first form of a model has its vocabulary prepared.
            await _round(client, 1, 4, way)
        for number in range(rounds):
            for streams in STREAMS:
                for name, way in _WAYS.items():
                    note(f"round {number + 1} of {rounds}: {streams} streams, {name}")
                    found[streams][name].append(await _round(client, streams, tokens, way))
    return found


async def _round(client: AsyncClient, streams: int, tokens: int, way: dict[str, Any]) -> float:
    async def one(prompt: str) -> int:
        options: dict[str, Any] = {"temperature": 0.7, "seed": 1, "max_tokens": tokens} | way
        return len((await client.complete(MODEL, prompt, **options)).token_ids)

    began = time.perf_counter()
    made = await asyncio.gather(*map(one, prompts(streams)))
    return sum(made) / (time.perf_counter() - began)


def outcome(found: dict[int, dict[str, list[float]]]) -> Outcome:
    """The table, and whether the aim is reached."""
    rows, ratios = [], dict[int, Spread | None]()
    for streams, ways in found.items():
        free, held = ways.values()
        ratios[streams] = ratio(held, free)
        speeds = [cell(spread(values), 1) for values in (free, held)]
        rows.append((str(streams), *speeds, cell(ratios[streams], 2)))
    table = grid(("streams", *(f"{way}, tokens/s" for way in _WAYS), "ratio"), rows)
    table.caption = f"aim at 8 streams: ≥ {AIM:g}"
    return Outcome(table, {"speeds": found, "ratios": ratios})
