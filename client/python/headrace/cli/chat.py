"""The chat on a terminal: reads a line, has it answered, remembers both."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import click

from headrace.cli.failures import report
from headrace.cli.generate import answer, echo_summary
from headrace.errors import HeadraceError

if TYPE_CHECKING:
    from headrace.client import Client

_PROMPT = ">>> "


def chat(client: Client, model: str, system: list[dict[str, str]], request: dict[str, Any]) -> None:
    """Chats until /exit or the end of input.

    An answer that fails or is interrupted with Ctrl-C is forgotten with its question, so that
    the next one starts from a chat that is whole.
    """
    _enable_line_editing()
    click.secho(
        "/clear forgets, /exit or Ctrl-D leaves, Ctrl-C stops an answer", dim=True, err=True
    )
    messages = list(system)
    while True:
        try:
            line = input(_PROMPT).strip()
        except EOFError:
            click.echo()
            return
        match line:
            case "":
                continue
            case "/exit" | "/quit" | "/bye":
                return
            case "/clear":
                messages = list(system)
                continue
        asked = [*messages, {"role": "user", "content": line}]
        try:
            whole = answer(client, model, show=True, messages=asked, **request)
        except KeyboardInterrupt:
            click.secho("stopped", dim=True, err=True)
        except HeadraceError as error:
            report(error)
        else:
            echo_summary(whole)
            messages = [*asked, {"role": "assistant", "content": whole.text}]


def _enable_line_editing() -> None:
    with contextlib.suppress(ImportError):  # some builds of Python lack it; plain input works
        import readline  # noqa: F401 (editing and history come with the import)
