"""`tokenize`: text as the model sees it."""

from __future__ import annotations

import click

from headrace.cli.connection import controller
from headrace.cli.output import echo_json, echo_table, json_option
from headrace.cli.stdin import read_stdin


@click.command("tokenize")
@click.argument("model")
@click.argument("text", required=False)
@click.option("--special", is_flag=True, help="Add the special tokens of a text's start and end.")
@click.option("--pieces", is_flag=True, help="Show each token's bytes and place.")
@json_option
def tokenize_command(
    model: str, text: str | None, special: bool, pieces: bool, as_json: bool
) -> None:
    """Print the tokens of TEXT, or of standard input."""
    if text is None:
        text = read_stdin()
    with controller(private=True) as client:
        tokens = client.tokenize(model, text, add_special=special, pieces=pieces)
    if as_json:
        echo_json(tokens)
    elif pieces:
        rows = [
            (
                str(piece.token_id),
                repr(piece.piece.decode(errors="replace")),
                f"{piece.start}:{piece.end}",
            )
            for piece in tokens.pieces
        ]
        echo_table(("TOKEN", "PIECE", "BYTES"), rows)
    else:
        click.echo(" ".join(map(str, tokens.token_ids)))
