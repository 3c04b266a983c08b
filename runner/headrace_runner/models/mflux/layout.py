"""What lies in a model's directory, and which model that is. Reads small files and headers only.

Three things say which model it is, the first that is there: `headrace.json`, written by hand;
`mflux_model.json`, which mflux-save writes; `model_index.json` of the diffusers layout.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from headrace.errors import ModelCorrupt, UnsupportedModel
from headrace_runner.models.files import read_json
from headrace_runner.models.mflux.catalogue import BASES
from headrace_runner.models.safetensors import INDEX, StoredTensor, read_header

DESCRIPTION = "headrace.json"
_SAVED = "mflux_model.json"
_DIFFUSERS = "model_index.json"
LORAS = "loras"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_TEXTS = (".json", ".jinja", ".txt", ".model")
_CARDS = ("README*", "LICENSE*", "NOTICE*")

_CANDIDATES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "FluxPipeline": ("schnell", "dev", "krea-dev"),
        "Flux2KleinPipeline": (
            "flux2-klein-4b",
            "flux2-klein-9b",
            "flux2-klein-base-4b",
            "flux2-klein-base-9b",
        ),
        "ZImagePipeline": ("z-image-turbo", "z-image"),
        "QwenImagePipeline": ("qwen-image",),
        "ErnieImagePipeline": ("ernie-image-turbo", "ernie-image"),
    }
)
"""By the class that `model_index.json` names."""
_KLEIN_BLOCKS = {5: "4b", 8: "9b"}
"""Size of a FLUX.2 klein by its double-stream blocks."""


@dataclass(frozen=True, slots=True)
class Layout:
    """A directory, and the model that it is said to hold."""

    directory: Path
    base: str
    """A key of `catalogue.BASES`."""
    references: bool = False
    """Whether input images are looked at, rather than drawn over."""
    shapes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Arguments of the components' constructors that differ from the base's."""


def knows(directory: Path) -> bool:
    """Whether the model is for mflux to draw with. Never raises."""
    try:
        return (
            "mflux" in read_json(directory, DESCRIPTION)
            or (directory / _SAVED).is_file()
            or read_json(directory, _DIFFUSERS).get("_class_name") in tuple(_CANDIDATES)
        )
    except ModelCorrupt:
        return False


def describe(directory: Path) -> Layout:
    """Which model the directory holds.

    Raises ModelCorrupt naming the file that makes no sense, and UnsupportedModel for a model that
    is not in the catalogue, or that its files leave open.
    """
    description = read_json(directory, DESCRIPTION)
    if "mflux" in description:
        return _described(directory, description["mflux"])
    saved = read_json(directory, _SAVED)
    if saved:
        return Layout(directory, _known(saved.get("base_model") or saved.get("model_name")))
    return Layout(directory, _diffusers(directory))


def _described(directory: Path, said: object) -> Layout:
    if not isinstance(said, dict) or said.keys() - {"base", "references", "shapes"}:
        raise _senseless("it may hold base, references and shapes, no more")
    base = _known(said.get("base"))
    references = said.get("references", False)
    shapes = said.get("shapes", {})
    if not isinstance(references, bool):
        raise _senseless("references is true or false")
    architecture = BASES[base].architecture
    if references and architecture.editing is None:
        raise UnsupportedModel(f"{base} cannot look at reference images", architecture=base)
    if not isinstance(shapes, dict) or not all(isinstance(s, dict) for s in shapes.values()):
        raise _senseless("shapes holds an object for each component")
    if strange := shapes.keys() - architecture.shaped.keys():
        raise _senseless(f"the shape of {min(strange)!r} of {base} cannot be given")
    return Layout(directory, base, references, shapes)


def _known(base: object) -> str:
    if not isinstance(base, str) or base not in BASES:
        raise UnsupportedModel(
            f"the model {base!r} of mflux is not served; these are: {', '.join(BASES)}",
            architecture=str(base),
        )
    return base


def _diffusers(directory: Path) -> str:
    name = read_json(directory, _DIFFUSERS).get("_class_name")
    candidates = _CANDIDATES.get(name, ()) if isinstance(name, str) else ()
    left = tuple(base for base in candidates if _fits(base, directory))
    if len(left) == 1:
        return left[0]
    if not left:
        raise UnsupportedModel(
            f"the pipeline {name!r} is not one of those that are served", architecture=str(name)
        )
    raise UnsupportedModel(
        f"its files do not say whether it is {' or '.join(left)}; say so in a file {DESCRIPTION}"
        f' beside them: {{"mflux": {{"base": "{left[0]}"}}}}',
        architecture=str(name),
    )


def _fits(base: str, directory: Path) -> bool:
    """Whether the configuration speaks for `base`, or not against it."""
    transformer = read_json(directory / "transformer", "config.json")
    match base.split("-"):
        case ["flux2", "klein", *rest]:
            distilled = read_json(directory, _DIFFUSERS).get("is_distilled") is True
            blocks = transformer.get("num_layers")
            size = _KLEIN_BLOCKS.get(blocks) if isinstance(blocks, int) else None
            return rest[-1] == size and distilled == ("base" not in rest)
        case ["schnell"]:
            return transformer.get("guidance_embeds") is False
        case ["dev"] | ["krea", "dev"]:
            return transformer.get("guidance_embeds") is True
    return True


def tensors(directory: Path) -> dict[str, dict[str, StoredTensor]]:
    """The tensors of each weight file, by the file's path in the directory, adapters left out.

    Raises ModelCorrupt naming a file that is damaged or missing, UnsupportedModel where the weights
    are pickles.
    """
    found: dict[str, dict[str, StoredTensor]] = {}
    for path in _weights(directory):
        name = path.relative_to(directory).as_posix()
        try:
            found[name] = read_header(path)
        except ModelCorrupt as error:
            raise ModelCorrupt(str(error), file=name) from error
    for component in _components(directory):
        _check_component(directory, component, found)
    if not found:
        raise ModelCorrupt("the directory has no weights", file="transformer")
    return found


def _check_component(directory: Path, component: Path, found: Mapping[str, object]) -> None:
    name = component.relative_to(directory).as_posix()
    inside = [path for path in found if Path(path).parent.as_posix() == name]
    pickles = [path for path in component.iterdir() if path.suffix in _PICKLES]
    if pickles and not inside:
        raise UnsupportedModel(
            f"the weights in {name} are pickles, which are never loaded; take the model's"
            " safetensors files"
        )
    for index in component.glob("*.safetensors.index.json"):
        where = f"{name}/{index.name}"
        shards = read_json(component, index.name).get("weight_map")
        if not isinstance(shards, dict):
            raise ModelCorrupt(f"{where} is no index of tensors", file=where)
        for shard in sorted({str(shard) for shard in shards.values()}):
            if f"{name}/{shard}" not in found:
                raise ModelCorrupt(
                    f"{name}/{shard} is missing: the index names it", file=f"{name}/{shard}"
                )


def _weights(directory: Path) -> Iterator[Path]:
    for component in _components(directory):
        yield from sorted(component.glob("*.safetensors"))


def _components(directory: Path) -> list[Path]:
    return sorted(
        path for path in directory.iterdir() if path.is_dir() and path.name not in (LORAS, ".git")
    )


def files(directory: Path) -> list[Path]:
    """All files that belong to the model, its adapters included."""
    found = [directory / name for name in (DESCRIPTION, _SAVED, _DIFFUSERS)]
    found += [path for pattern in _CARDS for path in directory.glob(pattern)]
    found += _weights(directory)
    found += (directory / LORAS).glob("*.safetensors")
    for component in _components(directory):
        found += [path for path in component.iterdir() if path.suffix in _TEXTS]
    return sorted({path for path in found if path.is_file()})


def saved_by_mflux(directory: Path) -> bool:
    """Whether mflux has saved the weights: all of a component's then, under its own names."""
    return bool(_metadata(directory, "mflux_version"))


def quantization(directory: Path) -> int | None:
    """Bits of the weights, where mflux has saved them quantised."""
    level = _metadata(directory, "quantization_level")
    return int(level) if level.isdecimal() else None


def _metadata(directory: Path, key: str) -> str:
    for component in _components(directory):
        metadata = read_json(component, INDEX).get("metadata")
        if isinstance(metadata, dict) and isinstance(metadata.get(key), str):
            return str(metadata[key])
    return ""


def _senseless(what: str) -> ModelCorrupt:
    return ModelCorrupt(f"{DESCRIPTION} makes no sense: {what}", file=DESCRIPTION)
