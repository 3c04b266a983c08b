"""`list`, `show`, `pull`, `import`, `cp` and `rm`: the models of the store."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from headrace.cli.connection import controller
from headrace.cli.output import echo_fields, echo_json, echo_table, json_option, size
from headrace.cli.progress import follow
from headrace.errors import HeadraceError

if TYPE_CHECKING:
    from headrace.types import AdapterTraits, ImageTraits, Model, Quantize

_QUANTIZE: Mapping[str, Quantize] = {"4": 4, "8": 8, "none": "none"}


@click.command("list")
@json_option
def list_command(as_json: bool) -> None:
    """List the models of the store."""
    with controller(private=True) as client:
        models = client.list_models()
    if as_json:
        echo_json(models)
        return
    rows = [
        (
            model.name,
            model.kind,
            model.architecture,
            _count(model.parameters),
            model.quantization or "-",
            size(model.size_bytes),
            f"{model.created_at.astimezone():%Y-%m-%d}",
        )
        for model in models
    ]
    echo_table(("NAME", "KIND", "ARCHITECTURE", "WEIGHTS", "QUANTIZED", "SIZE", "SINCE"), rows)


@click.command("show")
@click.argument("model")
@json_option
def show_command(model: str, as_json: bool) -> None:
    """Show what is known of MODEL."""
    with controller(private=True) as client:
        found = client.get_model(model)
    if as_json:
        echo_json(found)
        return
    echo_fields(
        (
            ("name", found.name),
            ("kind", found.kind),
            ("architecture", found.architecture),
            ("weights", _count(found.parameters)),
            ("quantized", found.quantization or "no"),
            *_of_kind(found),
            ("size", size(found.size_bytes)),
            ("memory", f"{size(found.memory_estimate_bytes)} when loaded"),
            ("format", found.format),
            ("digest", found.digest),
            ("license", found.license),
            ("source", found.source),
            ("since", f"{found.created_at.astimezone():%Y-%m-%d %H:%M}"),
            ("runners", ", ".join(f"{r.id} {r.state}" for r in found.runners)),
        )
    )
    if found.memory_estimates:
        click.echo("\nmemory by --context and --max-concurrency:")
        _echo_memory(found)


@click.command("pull")
@click.argument("model")
@click.option("--as", "name", metavar="NAME", help="Name to give it; default: one made of its own.")
@click.option("--revision", metavar="REV", help="Branch, tag or commit of a repository.")
@click.option(
    "--file",
    "files",
    metavar="PATTERN",
    multiple=True,
    help="Weights to take from a repository, such as one of several GGUF files; repeatable.",
)
@click.option("--sha256", metavar="HEX", help="Of a GGUF file; needed for an address.")
@click.option("--allow-http", is_flag=True, help="Take http:// from other machines too.")
@json_option
def pull_command(
    model: str,
    name: str | None,
    revision: str | None,
    files: tuple[str, ...],
    sha256: str | None,
    allow_http: bool,
    as_json: bool,
) -> None:
    """Fetch MODEL into the store.

    \b
    MODEL is one of
      NAME[:TAG]            of the catalogue
      hf:ORG/REPO[@REV]     a repository of the Hugging Face hub
      https://HOST/PATH     a GGUF file
      ollama:NAME[:TAG]     of the Ollama store on the controller's machine

    A pull that was broken off goes on where it was.
    """
    with controller(private=True) as client:
        stream = client.pull_model(
            model,
            name=name,
            revision=revision,
            files=files,
            sha256=sha256,
            allow_http=allow_http or None,
        )
        found = follow(stream, name or model.partition("?")[0])
    _echo_arrival(found, as_json)


@click.command("import")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("model")
@click.option("--replace", is_flag=True, help="Replace a model of this name.")
@click.option(
    "--quantize",
    type=click.Choice(list(_QUANTIZE)),
    help="Keep a language model's matrices at 4 or 8 bits, or in floating point. Without it they"
    " stay as they are, and types of GGUF that MLX cannot hold get 8 bits.",
)
@click.option("--no-check", is_flag=True, help="Take a language model without trying it out.")
@click.option("--base", metavar="NAME", help="The model that an adapter belongs to.")
@json_option
def import_command(
    source: Path,
    model: str,
    replace: bool,
    quantize: str | None,
    no_check: bool,
    base: str | None,
    as_json: bool,
) -> None:
    """Bring SOURCE into the store under the name MODEL.

    SOURCE is a GGUF file, or a directory in the form of MLX or Hugging Face, on the controller's
    machine. It is left as it is. A language model is tried out before its name appears.

    An adapter (LoRA) is the directory that mlx-lm or PEFT has written; it needs --base.
    """
    with controller(private=True) as client:
        storing = client.import_model(
            source.expanduser().absolute(),
            model,
            replace=replace,
            quantize=None if quantize is None else _QUANTIZE[quantize],
            unchecked=no_check,
            base=base,
        )
        found = follow(storing, model)
    _echo_arrival(found, as_json)


@click.command("cp")
@click.argument("source")
@click.argument("destination")
@json_option
def cp_command(source: str, destination: str, as_json: bool) -> None:
    """Give the model SOURCE the second name DESTINATION. No weights are copied."""
    with controller(private=True) as client:
        found = client.copy_model(source, destination)
    _echo_arrival(found, as_json)


@click.command("rm")
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@json_option
def rm_command(models: tuple[str, ...], as_json: bool) -> None:
    """Remove each MODEL, and its files when no other name holds them."""
    freed: dict[str, int] = {}
    failed: list[HeadraceError] = []
    with controller(private=True) as client:
        for model in models:
            try:
                freed[model] = client.delete_model(model)
            except HeadraceError as error:  # The others are removed all the same.
                failed.append(error)
                continue
            if not as_json:
                click.echo(f"removed {model}, {size(freed[model])} freed")
    if as_json:
        echo_json([{"model": model, "freed_bytes": count} for model, count in freed.items()])
    if failed:
        for earlier in failed[:-1]:
            click.echo(f"error: {earlier.message}", err=True)
        raise failed[-1]


def _echo_arrival(model: Model, as_json: bool) -> None:
    if as_json:
        echo_json(model)
    else:
        click.echo(f"{model.name} is in the store, {size(model.size_bytes)}")


def _echo_memory(model: Model) -> None:
    """The estimates: a row for each context, a column for each number of requests."""
    together = sorted({estimate.concurrency for estimate in model.memory_estimates})
    rows: dict[int, list[str]] = {}
    for estimate in model.memory_estimates:
        rows.setdefault(estimate.context_length, []).append(size(estimate.bytes))
    headers = [f"{n} REQUEST" if n == 1 else f"{n} REQUESTS" for n in together]
    echo_table(("CONTEXT", *headers), [(str(n), *cells) for n, cells in rows.items()])


def _of_kind(model: Model) -> tuple[tuple[str, str], ...]:
    if model.image is not None:
        return _of_images(model.image)
    if model.adapter is not None:
        return _of_adapter(model.adapter)
    if model.embedding_dimensions:
        return (
            ("context", f"{model.context_length} tokens"),
            ("vectors", f"{model.embedding_dimensions} numbers unless told"),
        )
    return _of_text(model)


def _of_text(model: Model) -> tuple[tuple[str, str], ...]:
    return (
        ("context", f"{model.context_length} tokens" if model.context_length else "unknown"),
        ("chat template", "yes" if model.chat_template else "no"),
    )


def _of_adapter(traits: AdapterTraits) -> tuple[tuple[str, str], ...]:
    return (
        ("base", traits.base),
        ("changes", f"{', '.join(traits.modules)} of {traits.layers} layers"),
        ("rank", str(traits.rank)),
    )


def _of_images(traits: ImageTraits) -> tuple[tuple[str, str], ...]:
    sides = f"sides of {traits.min_size} to {traits.max_size} in steps of {traits.size_step}"
    if traits.min_size == traits.max_size:
        sides = "no other size"
    inputs = f"up to {traits.max_input_images}" if traits.max_input_images else "none"
    if traits.strength is not None:
        inputs += f", strength {traits.strength:g} unless told"
    return (
        ("draws", f"{traits.width}×{traits.height} pixels unless told; {sides}"),
        ("steps", f"{traits.steps} unless told, up to {traits.max_steps}"),
        ("guidance", "none" if traits.guidance is None else f"{traits.guidance:g} unless told"),
        ("negative prompt", "yes" if traits.negative_prompt else "no"),
        ("input images", inputs),
        ("together", f"up to {traits.max_batch} images of one size"),
    )


def _count(parameters: int) -> str:
    """A number of weights for people, such as 135M or 1.7B."""
    for scale, unit in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if parameters >= scale:
            number = parameters / scale
            return f"{number:.1f}{unit}" if number < 9.95 else f"{number:.0f}{unit}"
    return str(parameters)
