"""`run` and `chat`: a model answers."""

from __future__ import annotations

import sys
from typing import Any

import click

from headrace.cli.connection import controller
from headrace.cli.generate import answer, echo_summary, generation_options, summary
from headrace.cli.output import echo_json, json_option
from headrace.cli.stdin import read_stdin


@click.command("run")
@click.argument("model")
@click.argument("prompt", nargs=-1)
@generation_options
@click.option("--raw", is_flag=True, help="Take the prompt as it is, without a chat template.")
@json_option
def run_command(
    model: str, prompt: tuple[str, ...], raw: bool, as_json: bool, **options: Any
) -> None:
    """Answer PROMPT with MODEL, as one message of a chat.

    Without PROMPT it chats on a terminal, and reads the prompt from standard input otherwise.
    A controller is started for the occasion when none listens, and a model that is missing is
    pulled. After the answer one line on standard error has the tokens, tokens/s, the time to the
    first token and the trace id.
    """
    if raw and options["system"] is not None:
        raise click.UsageError("--system belongs to a chat: it does not go with --raw")
    if prompt:
        text = " ".join(prompt)
    elif sys.stdin.isatty() and sys.stdout.isatty():
        if raw or as_json:
            raise click.UsageError("give a prompt with --raw and --json")
        _chat(model, options)
        return
    else:
        text = read_stdin()
        if not text.strip():
            raise click.UsageError("the prompt is empty: give one, or pipe it in")

    request = _request(options)
    system = request.pop("system")
    if raw:
        request["prompt"] = text
    else:
        request["messages"] = [*system, {"role": "user", "content": text}]
    with controller(private=True, preload=model) as client:
        whole = answer(client, model, show=not as_json, **request)
    if as_json:
        echo_json(summary(whole))
    else:
        echo_summary(whole)


@click.command("chat")
@click.argument("model")
@generation_options
def chat_command(model: str, **options: Any) -> None:
    """Chat with MODEL: /clear forgets what was said, /exit leaves."""
    _chat(model, options)


def _chat(model: str, options: dict[str, Any]) -> None:
    from headrace.cli.chat import chat

    request = _request(options)
    system = request.pop("system")
    with controller(private=True, preload=model) as client:
        chat(client, model, system, request)


def _request(options: dict[str, Any]) -> dict[str, Any]:
    """The SDK's keyword arguments; `system` becomes the messages that the chat begins with."""
    system = options["system"]
    return {
        **options,
        "stop": options["stop"] or None,
        "choices": options["choices"] or None,
        "system": [] if system is None else [{"role": "system", "content": system}],
    }
