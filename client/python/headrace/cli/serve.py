"""`serve`: becomes the controller. What its options are is the controller's to say."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec

import click


@click.command(
    "serve",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def serve_command(arguments: tuple[str, ...]) -> None:
    """Run a controller."""
    if not find_spec("headrace_server"):
        raise click.ClickException(
            "the controller is not installed: pip install 'headrace[server,runner]'"
        )
    # This process becomes it, so that signals and exit codes are its own.
    os.execv(sys.executable, [sys.executable, "-m", "headrace_server", *arguments])
