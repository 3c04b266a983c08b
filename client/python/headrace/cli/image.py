"""`image`: a model draws."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from headrace.cli.connection import controller
from headrace.cli.drawing import Drawing
from headrace.cli.output import echo_json, json_option
from headrace.cli.outputs import Outputs, format_of
from headrace.cli.progress import follow
from headrace.cli.stdin import read_stdin
from headrace.cli.terminal import Way, find_way

if TYPE_CHECKING:
    from headrace.client import Client
    from headrace.types import ImageResult, Images

DEFAULT_MODEL = "emoji:64"
_PREVIEW_STEPS = 2


def parse_size(context: object, parameter: object, text: str | None) -> tuple[int, int] | None:
    """Width and height, such as "64x64", or "64" for a square."""
    if text is None:
        return None
    width, by, height = text.lower().replace("×", "x").partition("x")
    try:
        return int(width), int(height if by else width)
    except ValueError:
        raise click.BadParameter(f"{text!r} is no size such as 512x768, or 512") from None


def parse_loras(context: object, parameter: object, texts: tuple[str, ...]) -> dict[str, float]:
    """Names of adapters, with a weight behind a colon where it is not 1."""
    found: dict[str, float] = {}
    for text in texts:
        name, _, scale = text.rpartition(":")
        try:
            weight = float(scale)
        except ValueError:
            name = ""  # A colon of the name's own.
            weight = 1.0
        found[name or text] = weight if name else 1.0
    return found


@click.command("image")
@click.argument("prompt", nargs=-1)
@click.option("-m", "--model", default=DEFAULT_MODEL, show_default=True, help="The model.")
@click.option("-o", "--output", metavar="FILE", help="Where to write; - is standard output.")
@click.option("--size", callback=parse_size, metavar="WxH", help="Pixels, such as 512x768.")
@click.option("--steps", type=int, help="Denoising steps.")
@click.option("--seed", type=int, help="Fix the noise; further pictures count on from it.")
@click.option("--guidance", type=float, help="How closely to follow the prompt.")
@click.option("--negative", metavar="TEXT", help="What not to draw.")
@click.option(
    "--input",
    "inputs",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    multiple=True,
    help="A picture to start from; repeatable.",
)
@click.option("--strength", type=float, help="How much of it is kept: 1 is all, 0 nothing.")
@click.option("--count", type=click.IntRange(1, 16), default=1, help="How many pictures.")
@click.option(
    "--format", "format_", type=click.Choice(["png", "jpeg", "webp"]), help="Of the files."
)
@click.option(
    "--lora",
    "loras",
    callback=parse_loras,
    multiple=True,
    metavar="NAME[:SCALE]",
    help="An adapter to apply; repeatable.",
)
@click.option("--preview", is_flag=True, help="Show the unfinished picture meanwhile.")
@click.option(
    "--show",
    type=click.Choice(["auto", *(way.value for way in Way)]),
    default="auto",
    help="How to show the picture on a terminal.",
)
@click.option("--no-parameters", is_flag=True, help="Leave prompt and settings out of the file.")
@json_option
def image_command(prompt: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Draw PROMPT into a file.

    Without PROMPT it is read from standard input. A controller is started for the occasion when
    none listens, and a model that is missing is pulled. The file is named after the prompt unless
    -o says otherwise, and a number is added rather than another file replaced. Its path is
    printed, below the picture itself on a terminal that can show one.
    """
    text = " ".join(prompt) or ("" if sys.stdin.isatty() else read_stdin().strip())
    if not text:
        raise click.UsageError("say what to draw, as in: headrace image a red rose")
    output: str | None = options["output"]
    _check(output, as_json, options)
    request = _request(output, options)
    outputs = None if output == "-" else Outputs(text, output, options["count"])
    model: str = options["model"]
    with controller(private=True, preload=model) as client:
        whole = draw(client, text, model, **request)
    if outputs is None:
        sys.stdout.buffer.write(whole.images[0].data)
        sys.stdout.buffer.flush()
    else:
        paths = [outputs.write(one.data, one.index, one.media_type) for one in whole.images]
        if as_json:
            echo_json(summary(whole, paths))
            return
        way = _way(options["show"])
        for one, path in zip(whole.images, paths, strict=True):
            _show(one, way)
            click.echo(path)
    _echo_summary(whole)


def draw(client: Client, prompt: str, model: str, **request: Any) -> Images:
    """Draws, and shows how it goes. A model that is missing is pulled first."""
    from headrace.errors import ModelNotFound

    try:
        return _draw(client, prompt, model, request)
    except ModelNotFound:
        follow(client.pull_model(model), model)
    return _draw(client, prompt, model, request)


def summary(whole: Images, paths: list[Path]) -> dict[str, Any]:
    """Pictures as they are printed with --json."""
    from dataclasses import asdict

    return {
        "model": whole.started.model,
        "steps": whole.started.steps,
        "images": [
            {
                "path": str(path),
                "seed": one.seed,
                "width": one.width,
                "height": one.height,
                "media_type": one.media_type,
                "size_bytes": len(one.data),
                "sha256": one.sha256,
            }
            for one, path in zip(whole.images, paths, strict=True)
        ],
        "timings": asdict(whole.timings),
        "resumed": whole.completed.resumed,
        "trace_id": whole.trace_id,
    }


def _check(output: str | None, as_json: bool, options: dict[str, Any]) -> None:
    """Raises UsageError for options that do not go together."""
    if output == "-":
        if as_json:
            raise click.UsageError("--json and the picture cannot both be standard output")
        if options["count"] > 1:
            raise click.UsageError("standard output takes one picture: leave out --count")
        if sys.stdout.isatty():
            raise click.UsageError("a terminal is no place for a file: redirect standard output")
    if options["preview"] and not sys.stderr.isatty():
        raise click.UsageError("--preview needs a terminal")


def _request(output: str | None, options: dict[str, Any]) -> dict[str, Any]:
    """The SDK's keyword arguments."""
    width, height = options["size"] or (None, None)
    return {
        "width": width,
        "height": height,
        "negative_prompt": options["negative"],
        "input_images": options["inputs"] or None,
        "loras": options["loras"] or None,
        "format": format_of(output, options["format_"]),
        "embed_parameters": False if options["no_parameters"] else None,
        "preview_every": _PREVIEW_STEPS if options["preview"] else None,
        "count": options["count"] if options["count"] > 1 else None,
        **{name: options[name] for name in ("steps", "seed", "guidance", "strength")},
    }


def _draw(client: Client, prompt: str, model: str, request: dict[str, Any]) -> Images:
    from headrace.types import ImagePreview, ImageProgress

    with (
        client.stream_image(prompt, model=model, **request) as stream,
        Drawing(model, request["count"] or 1) as drawing,
    ):
        for event in stream:
            if isinstance(event, ImageProgress):
                drawing.progress(event)
            elif isinstance(event, ImagePreview):
                drawing.preview(event)
        return stream.collect()


def _way(named: str) -> Way:
    """How to show all pictures: a terminal is asked once."""
    if not sys.stdout.isatty():
        return Way.NONE
    return find_way(os.environ) if named == "auto" else Way(named)


def _show(one: ImageResult, way: Way) -> None:
    """On a terminal; a reason not to goes to standard error."""
    if way is Way.NONE:
        return
    from headrace.cli.picture import CannotShow, show
    from headrace.cli.screen import console

    try:
        show(one.data, one.media_type, console(), way)
    except CannotShow as reason:
        click.secho(str(reason), dim=True, err=True)


def _echo_summary(whole: Images) -> None:
    """Prints the figures, on stderr."""
    started = whole.started
    parts = [
        f"{started.width}×{started.height}",
        f"{started.steps} step{'' if started.steps == 1 else 's'}",
        f"seed {started.seed}",
        f"{whole.timings.total:.2f} s",
        f"trace {whole.trace_id}",
    ]
    click.secho(" · ".join(parts), dim=True, err=True)
