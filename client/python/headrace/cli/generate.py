"""One answer of a model on the command line: the model fetched if need be, the text as it comes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from headrace.cli.progress import Waiting, follow
from headrace.cli.runners import parse_time

if TYPE_CHECKING:
    from headrace.client import Client
    from headrace.types import Completion

_CommandT = TypeVar("_CommandT", bound=Callable[..., Any])


def _text(_: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """A JSON object, or true, is taken as it is; anything else names a file."""
    if value is None or value.lstrip().startswith("{") or value.strip() == "true":
        return value
    path = Path(value)
    if not path.is_file():
        raise click.BadParameter(f"{value} is neither a file nor a JSON object", param=option)
    return _contents(_, option, path)


def _contents(_: click.Context, option: click.Parameter, path: Path | None) -> str | None:
    try:
        return None if path is None else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise click.BadParameter(f"{path} cannot be read: {error}", param=option) from None


_OPTIONS = (
    click.option("--system", help="Instructions above the chat, instead of the template's own."),
    click.option(
        "--temperature",
        type=float,
        default=0.7,
        show_default=True,
        help="0 takes the likeliest token, 1 draws from the model's own distribution.",
    ),
    click.option("--top-p", type=float, help="Draw from the likeliest up to this probability."),
    click.option("--top-k", type=int, help="Draw from so many of the likeliest; 0 for all."),
    click.option("--min-p", type=float, help="Draw from those this likely beside the likeliest."),
    click.option("--seed", type=int, help="Fix the draws."),
    click.option("--max-tokens", type=int, help="Tokens to generate at most."),
    click.option("--stop", multiple=True, metavar="TEXT", help="End the output here; repeatable."),
    click.option(
        "--json-schema",
        metavar="FILE|JSON",
        callback=_text,
        help="Answer in JSON that follows this schema.",
    ),
    click.option("--regex", help="Answer with what matches this expression as a whole."),
    click.option(
        "--grammar",
        "lark_grammar",
        metavar="FILE",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        callback=_contents,
        help="Answer with what this grammar, in Lark's notation, derives.",
    ),
    click.option("--choice", "choices", multiple=True, help="Answer with one of these."),
    click.option(
        "--reasoning-max-tokens", type=int, metavar="N", help="End the reasoning after so many."
    ),
    click.option(
        "--adapter",
        metavar="NAME",
        help="An adapter (LoRA) of the model to apply; '' for none where the settings name one.",
    ),
    click.option(
        "--keep-alive",
        type=parse_time,
        metavar="TIME",
        help="How long the model stays loaded after it, such as 90, 5m, 1h or forever.",
    ),
)


def generation_options(command: _CommandT) -> _CommandT:
    """Adds the options that say how an answer is made."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def answer(client: Client, model: str, *, show: bool, **request: Any) -> Completion:
    """Generates one answer; with `show`, writes its text to stdout as it comes.

    A model that is missing is pulled first.
    """
    from headrace.errors import ModelNotFound

    try:
        return _answer(client, model, show, request)
    except ModelNotFound:
        follow(client.pull_model(model), model)
    return _answer(client, model, show, request)


def echo_summary(whole: Completion) -> None:
    """Prints the figures of an answer, on stderr."""
    parts = [f"{whole.usage.output_tokens} tokens"]
    if whole.tokens_per_second is not None:
        parts.append(f"{whole.tokens_per_second:.1f} tokens/s")
    if whole.time_to_first_token is not None:
        parts.append(f"first token {whole.time_to_first_token:.2f} s")
    parts.append(f"trace {whole.trace_id}")
    click.secho(" · ".join(parts), dim=True, err=True)


def summary(whole: Completion) -> dict[str, Any]:
    """An answer as it is printed with --json."""
    from dataclasses import asdict

    return {
        "model": whole.started.model,
        "text": whole.text,
        "finish_reason": whole.finish_reason,
        "seed": whole.started.seed,
        "adapter": whole.started.adapter or None,
        "usage": asdict(whole.usage),
        "timings": asdict(whole.timings),
        "tokens_per_second": whole.tokens_per_second,
        "time_to_first_token": whole.time_to_first_token,
        "trace_id": whole.trace_id,
    }


def _answer(client: Client, model: str, show: bool, request: dict[str, Any]) -> Completion:
    from headrace.types import Delta, Progress

    waiting = Waiting(model)
    last = "\n"
    with client.stream_completion(model, **request) as stream:
        try:
            for event in stream:
                if isinstance(event, Progress):
                    waiting.show(event)
                elif isinstance(event, Delta) and event.text and show:
                    waiting.clear()
                    last = event.text
                    sys.stdout.write(last)
                    sys.stdout.flush()
        finally:
            waiting.clear()
            # What comes next, an error included, begins on a line of its own.
            if not last.endswith("\n"):
                sys.stdout.write("\n")
                sys.stdout.flush()
        return stream.collect()
