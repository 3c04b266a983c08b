"""Text that is piped in."""

from __future__ import annotations

import sys

import click


def read_stdin() -> str:
    """All of standard input; bytes that are no UTF-8 are wrong usage."""
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise click.UsageError(f"standard input is not UTF-8: {error}") from None
