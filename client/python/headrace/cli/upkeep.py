"""`verify` and `gc`: what of the store is damaged, and what takes room in it for nothing."""

from __future__ import annotations

import sys
from collections import Counter
from typing import TYPE_CHECKING

import click

from headrace.cli.connection import controller
from headrace.cli.output import echo_json, json_option, size
from headrace.cli.progress import bytes_bar

if TYPE_CHECKING:
    from headrace._streams import VerifyStream
    from headrace.types import Garbage, Verification, VerifiedModel

_WORDS = {
    "snapshot": ("model without a name", "models without a name"),
    "blob": ("file of no model", "files of no model"),
    "download": ("download that was broken off", "downloads that were broken off"),
    "unfinished": ("import that was broken off", "imports that were broken off"),
    "duplicate": ("file that is there twice", "files that are there twice"),
    "unknown": ("other thing", "other things"),
}


@click.command("verify")
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@json_option
@click.pass_context
def verify_command(context: click.Context, models: tuple[str, ...], as_json: bool) -> None:
    """Read every byte of each MODEL, or of all, and compare it with what was stored.

    The exit code is 1 if a file is damaged.
    """
    with controller(private=True) as client, client.verify_models(models) as stream:
        found = _follow(stream)
    if as_json:
        echo_json(found)
    else:
        for model in found.models:
            _echo_model(model)
        if found.garbage.items:
            _echo_garbage(found.garbage)
    if found.damaged:
        context.exit(1)


@click.command("gc")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@json_option
def gc_command(dry_run: bool, as_json: bool) -> None:
    """Remove what takes room in the store and belongs to no model.

    That is what killed or broken off commands have left, and files that are there twice. No model
    is removed.
    """
    with controller(private=True) as client:
        found = client.collect_garbage(dry_run=dry_run)
    if as_json:
        echo_json(found)
        return
    if found.downloads_in_use:
        click.echo("downloads are left alone: a pull is under way", err=True)
    if not found.items:
        click.echo("there is nothing to remove")
        return
    for item in found.items:
        click.echo(f"{_WORDS[item.kind][0]}: {item.name}, {size(item.size_bytes)}")
    click.echo(f"{size(found.freed_bytes)} {'would be freed' if dry_run else 'freed'}")


def _follow(stream: VerifyStream) -> Verification:
    """Shows on stderr how a verification goes, and gives what it has found."""
    if not sys.stderr.isatty():
        shown = ""
        for event in stream:
            if event.model != shown:
                shown = event.model
                click.echo(f"checking {shown}", err=True)
        return stream.collect()

    from headrace.types import VerifyProgress

    with bytes_bar() as bar:
        task = bar.add_task("checking", total=None)
        for event in stream:
            if isinstance(event, VerifyProgress):
                bar.update(
                    task,
                    description=f"checking {event.model}",
                    completed=event.done_bytes,
                    total=event.total_bytes,
                )
        return stream.collect()


def _echo_model(model: VerifiedModel) -> None:
    if not model.damaged:
        click.echo(f"{model.model} is whole, {size(model.size_bytes)}")
        return
    click.secho(f"{model.model} is damaged", fg="red")
    for damaged in model.damaged:
        click.echo(f"  {damaged.file} {damaged.description}")
    click.echo(f"  {model.remedy}")


def _echo_garbage(garbage: Garbage) -> None:
    counts = Counter(item.kind for item in garbage.items)
    parts = [f"{n} {_WORDS[kind][n != 1]}" for kind, n in counts.items()]
    click.echo(f"{', '.join(parts)}: `headrace gc` frees {size(garbage.freed_bytes)}")
