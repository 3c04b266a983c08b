"""`token`: makes, lists and revokes the tokens that a server asks for."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from fcntl import LOCK_EX, flock
from pathlib import Path
from typing import Any

import click

from headrace.cli.output import echo_json, echo_table, json_option
from headrace.rpc.tokens import (
    MOST,
    SCOPES,
    Token,
    Tokens,
    TokensError,
    new_token,
    read_tokens,
    write_tokens,
)

_LIFE = re.compile(r"(\d+)([mhd])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


def _default_file() -> str:
    home = os.environ.get("HEADRACE_HOME") or "~/.headrace"
    return os.environ.get("HEADRACE_TOKENS") or str(Path(home).expanduser() / "tokens.json")


file_option: Callable[[Any], Any] = click.option(
    "--file",
    type=click.Path(dir_okay=False, path_type=Path),
    default=_default_file,
    show_default="HEADRACE_TOKENS, else tokens.json in the home",
    help="The file that the server reads.",
)


@click.group("token")
def token_command() -> None:
    """Make, list and revoke tokens for a server started with --tokens.

    The server reads the file again when it changes: a new token holds at once, and a revoked one
    begins nothing more.
    """


@token_command.command("create")
@click.option("--name", default="", help="Whose it is, or what for.")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(SCOPES),
    help="infer: use models; observe: see what runs; manage: change what there is. "
    "May be given several times. [default: infer]",
)
@click.option("--expires", metavar="TIME", help="How long it holds, such as 90d or 12h.")
@click.option("--max-requests", type=click.IntRange(1, MOST), help="Requests at once.")
@click.option(
    "--tokens-per-minute",
    type=click.IntRange(1, MOST),
    help="Tokens of prompts and outputs, on the average.",
)
@file_option
@json_option
def create(
    name: str,
    scopes: tuple[str, ...],
    expires: str | None,
    max_requests: int | None,
    tokens_per_minute: int | None,
    file: Path,
    as_json: bool,
) -> None:
    """Make a token. It is printed once, and kept nowhere: the file has its hash."""
    made, secret = new_token(
        scopes or ("infer",),
        name=name,
        expires_at=None if expires is None else _after(expires),
        max_requests=max_requests,
        tokens_per_minute=tokens_per_minute,
    )
    with _changing(file) as tokens:
        write_tokens(file, Tokens((*tokens.tokens, made)))
    if as_json:
        echo_json({**_shown(made), "token": secret})
        return
    click.echo(secret)
    click.echo(f"token {made.id} is in {file}; keep what was printed: it is shown once", err=True)


@token_command.command("list")
@file_option
@json_option
def list_tokens(file: Path, as_json: bool) -> None:
    """List the tokens, without their secrets."""
    tokens = _read(file).tokens
    if as_json:
        echo_json([_shown(token) for token in tokens])
        return
    now = datetime.now(UTC)
    rows = [
        (
            token.id,
            token.name,
            ",".join(token.scopes),
            str(token.max_requests or ""),
            str(token.tokens_per_minute or ""),
            token.created_at,
            "expired" if token.has_expired(now) else token.expires_at or "never",
        )
        for token in tokens
    ]
    echo_table(("ID", "NAME", "SCOPES", "REQUESTS", "TOKENS/MIN", "CREATED", "EXPIRES"), rows)


@token_command.command("revoke")
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@file_option
def revoke(ids: tuple[str, ...], file: Path) -> None:
    """Revoke tokens by their ids. What runs under them is let finish."""
    with _changing(file) as tokens:
        try:
            left = tokens.without(ids)
        except TokensError as error:
            raise click.ClickException(f"{error}; `headrace token list` shows them") from None
        write_tokens(file, left)
    click.echo(f"revoked {', '.join(ids)}", err=True)


@contextmanager
def _changing(file: Path) -> Iterator[Tokens]:
    """The tokens as they are, while nobody else of these commands changes them."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(file.with_name(f".{file.name}.lock"), os.O_CREAT | os.O_RDWR, 0o600)
    try:
        flock(lock, LOCK_EX)
        yield _read(file) if file.exists() else Tokens()
    finally:
        os.close(lock)


def _read(file: Path) -> Tokens:
    try:
        return read_tokens(file)
    except TokensError as error:
        raise click.ClickException(f"{error}; `headrace token create` makes one") from None


def _shown(token: Token) -> dict[str, object]:
    return {
        "id": token.id,
        "name": token.name,
        "scopes": token.scopes,
        "created_at": token.created_at,
        "expires_at": token.expires_at,
        "max_requests": token.max_requests,
        "tokens_per_minute": token.tokens_per_minute,
    }


def _after(life: str) -> str:
    """The time so long from now, as RFC 3339."""
    found = _LIFE.fullmatch(life)
    if found is None or not 0 < int(found[1]) < 1_000_000:
        raise click.BadParameter(
            f"{life} is no time such as 90d, 12h or 30m", param_hint="--expires"
        )
    end = datetime.now(UTC) + timedelta(**{_UNITS[found[2]]: int(found[1])})
    return end.isoformat(timespec="seconds")
