"""`embed`: texts as vectors, and how near they are to each other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import click

from headrace.cli.connection import controller
from headrace.cli.output import as_line, echo_json, echo_table, json_option
from headrace.cli.progress import follow
from headrace.cli.stdin import read_stdin

if TYPE_CHECKING:
    from headrace.client import Client
    from headrace.types import Embeddings

_MOST_COMPARED = 16
"""Texts in a table."""
_SHOWN = 40
"""Characters of a text in the table."""
_TOGETHER = 256
"""Texts in one request where each has a line of its own."""


@click.command("embed")
@click.argument("model")
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@click.option("--vectors", is_flag=True, help="Print each vector as a JSON array, one a line.")
@click.option("--dimensions", type=click.IntRange(1), metavar="N", help="Length of the vectors.")
@click.option("--no-normalize", is_flag=True, help="Leave the vectors as the model makes them.")
@click.option("--truncate", is_flag=True, help="Cut texts that are over the model's context.")
@json_option
def embed_command(
    model: str,
    texts: tuple[str, ...],
    vectors: bool,
    dimensions: int | None,
    no_normalize: bool,
    truncate: bool,
    as_json: bool,
) -> None:
    """Embed each TEXT, or each line of standard input.

    Prints how near the texts are to each other, by the cosine of their vectors; of a single text
    its vector. A model that is missing is pulled.
    """
    given = texts or tuple(line for line in read_stdin().splitlines() if line.strip())
    if not given:
        raise click.UsageError("there is no text to embed")
    if vectors and as_json:
        raise click.UsageError("--vectors and --json cannot go together")
    table = not (vectors or as_json) and len(given) > 1
    if table and len(given) > _MOST_COMPARED:
        raise click.UsageError(
            f"{len(given)} texts are too many for a table; take --vectors or --json"
        )
    with controller(private=True) as client:
        for some in _parts(given, len(given) if as_json else _TOGETHER):
            answer = _embed(
                client,
                model,
                some,
                dimensions=dimensions,
                normalize=False if no_normalize else None,
                truncate=truncate or None,
            )
            if as_json:
                echo_json(answer)
            elif table:
                _echo_similarities(some, answer.vectors)
            else:
                for vector in answer.vectors:
                    click.echo(as_line(vector))


def _embed(client: Client, model: str, texts: Sequence[str], **options: Any) -> Embeddings:
    """A model that is missing is pulled first."""
    from headrace.errors import ModelNotFound

    try:
        return client.embed(model, texts, **options)
    except ModelNotFound:
        follow(client.pull_model(model), model)
    return client.embed(model, texts, **options)


def _parts(texts: Sequence[str], most: int) -> Iterator[list[str]]:
    rest = iter(texts)
    while part := list(islice(rest, most)):
        yield part


def _echo_similarities(texts: Sequence[str], vectors: Sequence[Sequence[float]]) -> None:
    numbers = [str(index) for index in range(1, len(texts) + 1)]
    rows = [
        (number, _short(text), *(f"{cosine(one, other):.2f}" for other in vectors))
        for number, text, one in zip(numbers, texts, vectors, strict=True)
    ]
    echo_table(("", "TEXT", *numbers), rows)


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    """The cosine of the angle between two vectors; 0 where one has no direction."""
    lengths = math.hypot(*one) * math.hypot(*other)
    return math.fsum(a * b for a, b in zip(one, other, strict=True)) / lengths if lengths else 0.0


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else line[: _SHOWN - 1] + "…"
