"""What a person is told when a call fails, and the exit code that a script sees."""

from __future__ import annotations

import re

import click
from grpc import StatusCode

from headrace._target import is_local, resolve_target
from headrace.errors import HeadraceError

_EXIT_CODES = {
    StatusCode.INVALID_ARGUMENT: 2,
    StatusCode.OUT_OF_RANGE: 2,
    StatusCode.NOT_FOUND: 3,
    StatusCode.UNAVAILABLE: 4,
    StatusCode.RESOURCE_EXHAUSTED: 4,
    StatusCode.DEADLINE_EXCEEDED: 4,
    StatusCode.UNAUTHENTICATED: 5,
    StatusCode.PERMISSION_DENIED: 5,
    StatusCode.CANCELLED: 130,
}

_REMEDIES = {
    "MODEL_NOT_FOUND": "`headrace list` shows the models that are here",
    "MODEL_IN_USE": "`headrace ps` shows what is busy, `headrace list` which adapters there are",
    "INSUFFICIENT_MEMORY": "`headrace ps` shows what is loaded, `headrace stop` unloads it",
    "LOAD_FAILED": "`headrace doctor` looks at this machine",
    "RUNNER_CRASHED": "ask again: a new runner is started",
    "CIRCUIT_OPEN": "`headrace doctor` looks at this machine",
    "UNAUTHENTICATED": "whoever runs the controller makes tokens: `headrace token create`",
    "PERMISSION_DENIED": "`headrace token create --scope` makes a token that may do more",
    "SOURCE_UNAVAILABLE": "check the network, then pull again: it goes on where it was",
    "INSUFFICIENT_DISK": "`headrace gc` and `headrace rm` make room; `headrace list` shows sizes",
}


_NO_CONNECTION = "failed to connect"
_TRACE = re.compile(r"trace ([0-9a-f]{32})")
_OBVIOUS = {StatusCode.INVALID_ARGUMENT, StatusCode.OUT_OF_RANGE, StatusCode.NOT_FOUND}
"""Whose message says all: no trace tells more."""


def exit_code(error: HeadraceError) -> int:
    """The exit code of a command that failed with this error."""
    return _EXIT_CODES.get(error.code, 1)


def report(error: HeadraceError) -> None:
    """Tells the error on stderr: what happened, what helps, and the trace to look for."""
    notes: list[str] = getattr(error, "__notes__", [])
    traced = next(filter(None, map(_TRACE.fullmatch, notes)), None)
    # A call that was under way, and gRPC's own words for what became of it.
    lost = traced is not None and error.code is StatusCode.UNAVAILABLE and not error.reason
    click.secho("error: ", fg="red", nl=False, err=True)
    if lost:
        what = (
            "cannot be reached" if _NO_CONNECTION in error.message else "does not answer any more"
        )
        click.echo(f"the controller at {resolve_target()} {what}", err=True)
        click.secho(f"  {error.message}", dim=True, err=True)
    else:
        click.echo(error.message, err=True)
    remedy = _REMEDIES.get(error.reason)
    if error.reason == "SOURCE_UNAVAILABLE" and error.retry_after is None:
        remedy = None  # It is not the network: the message says what it is.
    if remedy and remedy not in error.message:
        click.echo(f"  {remedy}", err=True)
    if error.retry_after:
        click.echo(f"  a new try makes sense in {error.retry_after:.0f} s", err=True)
    for note in notes:
        for line in note.splitlines():
            click.secho(f"  {line}", dim=True, err=True)
    if traced and not lost and error.code not in _OBVIOUS:
        there = "" if is_local(resolve_target()) else ", on the controller's machine"
        click.echo(f"  `headrace trace {traced[1][:8]}` shows how it came to that{there}", err=True)
