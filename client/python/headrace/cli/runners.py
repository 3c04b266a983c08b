"""`ps`, `load` and `stop`: the models in memory. They need a controller that runs already."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from headrace.cli.connection import controller
from headrace.cli.output import (
    as_line,
    duration,
    echo_json,
    echo_table,
    json_option,
    size,
)

if TYPE_CHECKING:
    from headrace._streams import ModelWatch
    from headrace.types import Model, Runner

_UNITS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


_COLUMNS = ("MODEL", "RUNNER", "STATE", "MEMORY", "REQUESTS", "UNLOADED", "PID")


def parse_time(text: str) -> float:
    """Seconds of a time such as 90, 5m, 1h or forever, which is -1."""
    if text == "forever":
        return -1.0
    found = re.fullmatch(r"(-?\d+(?:\.\d+)?)(ms|[smhd]|)", text)
    if not found:
        raise click.BadParameter(f"{text!r} is no time such as 90, 5m, 1h, 2d or forever")
    return float(found[1]) * _UNITS[found[2]]


@click.command("ps")
@click.option("--watch", is_flag=True, help="Go on, and show every change.")
@json_option
def ps_command(watch: bool, as_json: bool) -> None:
    """List the loaded models."""
    with controller(private=False) as client:
        if watch:
            with client.watch_models(timeout=math.inf) as changes:
                _follow(changes, as_json)
            return
        runners = _runners(client.list_models(loaded=True))
    if as_json:
        echo_json(runners)
    else:
        echo_table(_COLUMNS, [_row(runner) for runner in runners])


def _follow(watch: ModelWatch, as_json: bool) -> None:
    """Shows the runners until the watch ends: anew on a terminal, else a line for each change."""
    terminal = not as_json and sys.stdout.isatty()
    known: dict[str, Runner] = {}
    if not terminal and not as_json:
        click.echo("  ".join(_COLUMNS))
    for _ in watch:
        runners = _runners(watch.models)
        if terminal:
            click.clear()
            echo_table(_COLUMNS, [_row(runner) for runner in runners])
            continue
        for runner in runners:
            if known.get(runner.id) != runner:
                click.echo(as_line(runner) if as_json else "  ".join(_row(runner)))
        known = {runner.id: runner for runner in runners}
        sys.stdout.flush()


def _runners(models: Iterable[Model]) -> list[Runner]:
    """Names of the same files share a runner, which is here once."""
    return list({r.id: r for model in models for r in model.runners}.values())


def state_of(runner: Runner) -> str:
    """Where it is in its life, how far its load is, and why it goes."""
    state = str(runner.state)
    if runner.load_fraction is not None:
        state += f" {runner.load_fraction:.0%}"
    return f"{state} ({runner.reason})" if runner.reason else state


def end_of(runner: Runner) -> str:
    """When it is unloaded if no request comes."""
    if runner.expires_in is not None:
        return f"in {duration(runner.expires_in)}"
    return "stays" if runner.pinned else "-"


def _row(runner: Runner) -> tuple[str, ...]:
    return (
        runner.model,
        runner.id,
        state_of(runner),
        size(runner.memory_bytes),
        str(runner.active_requests),
        end_of(runner),
        str(runner.pid),
    )


@click.command("load")
@click.argument("model")
@click.option(
    "--keep-alive",
    type=parse_time,
    metavar="TIME",
    help="How long it stays without a request, such as 90, 5m, 1h or forever.",
)
@json_option
def load_command(model: str, keep_alive: float | None, as_json: bool) -> None:
    """Load MODEL, and return when it serves."""
    with controller(private=False) as client:
        loaded = client.load_model(model, keep_alive=keep_alive)
    if as_json:
        echo_json(loaded)
    else:
        click.echo(f"{model} serves, loaded in {loaded.load_time:.1f} s")


@click.command("stop")
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@json_option
def stop_command(models: tuple[str, ...], as_json: bool) -> None:
    """Unload each MODEL once its requests have ended."""
    stopped: dict[str, int] = {}
    with controller(private=False) as client:
        for model in models:
            stopped[model] = client.unload_model(model)
            if not as_json:
                click.echo(f"{'stopped' if stopped[model] else 'was not loaded:'} {model}")
    if as_json:
        echo_json([{"model": model, "stopped": count} for model, count in stopped.items()])
