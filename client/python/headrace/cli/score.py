"""`score`: how likely continuations of a prompt are."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from headrace.cli.connection import controller
from headrace.cli.output import echo_json, echo_table, json_option
from headrace.cli.progress import follow
from headrace.cli.stdin import read_stdin

if TYPE_CHECKING:
    from headrace.client import Client
    from headrace.types import ContinuationScore, Scores

_SHOWN = 60
"""Characters of a continuation in the table."""


@click.command("score")
@click.argument("model")
@click.argument("prompt")
@click.option(
    "-c",
    "--continuation",
    "continuations",
    multiple=True,
    metavar="TEXT",
    help="What may follow the prompt; repeatable. Without any, each line of standard input.",
)
@click.option("--chat", is_flag=True, help="Take the prompt as a user's message to the model.")
@click.option("--adapter", metavar="NAME", help="An adapter (LoRA) of the model to apply.")
@click.option("--mean", is_flag=True, help="Order by the mean of a token instead of the sum.")
@click.option("--tokens", is_flag=True, help="Show each token with its log-probability.")
@json_option
def score_command(
    model: str,
    prompt: str,
    continuations: tuple[str, ...],
    chat: bool,
    adapter: str | None,
    mean: bool,
    tokens: bool,
    as_json: bool,
) -> None:
    """Say how likely MODEL holds each continuation of PROMPT.

    Prints the likeliest first, with its log-probability and whether the model would write it at
    temperature 0. A space before a word belongs to the continuation, or to the end of the prompt.
    With --json they stay in the given order. A model that is missing is pulled.
    """
    given = continuations or tuple(line for line in read_stdin().splitlines() if line.strip())
    if not given:
        raise click.UsageError("there is no continuation to score; give one with -c")
    if mean and as_json:
        raise click.UsageError("--mean and --json cannot go together")
    asked: dict[str, Any] = {"continuations": given, "logprobs": tokens or None}
    asked["adapter"] = adapter
    asked |= {"messages": [{"role": "user", "content": prompt}]} if chat else {"prompt": prompt}
    with controller(private=True) as client:
        answer = _score(client, model, asked)
    if as_json:
        echo_json(answer)
        return
    order: Callable[[tuple[str, ContinuationScore]], float]
    order = (lambda one: -one[1].mean_logprob) if mean else (lambda one: -one[1].logprob)
    pairs = sorted(zip(given, answer.scores, strict=True), key=order)
    titles = ("LOGPROB", "MEAN", "TOKENS", "GREEDY", "CONTINUATION")
    echo_table(titles, [_row(text, score) for text, score in pairs])
    if tokens:
        for text, score in pairs:
            click.echo(f"\n{_short(text)}")
            pieces = [(_short(t.piece.decode(errors="replace")), t) for t in score.logprobs]
            rows = [(f"{t.logprob:.4f}", str(t.token_id), piece) for piece, t in pieces]
            echo_table(("LOGPROB", "ID", "TOKEN"), rows)


def _score(client: Client, model: str, asked: dict[str, Any]) -> Scores:
    """A model that is missing is pulled first."""
    from headrace.errors import ModelNotFound

    try:
        return client.score(model, **asked)
    except ModelNotFound:
        follow(client.pull_model(model), model)
    return client.score(model, **asked)


def _row(text: str, score: ContinuationScore) -> tuple[str, ...]:
    greedy = "yes" if score.is_greedy else "no"
    numbers = f"{score.logprob:.4f}", f"{score.mean_logprob:.4f}", str(len(score.token_ids))
    return (*numbers, greedy, _short(text))


def _short(text: str) -> str:
    """On one line, with the spaces at its borders to be seen."""
    shown = repr(text)
    return shown if len(shown) <= _SHOWN else f"{shown[: _SHOWN - 2]}…{shown[-1]}"
