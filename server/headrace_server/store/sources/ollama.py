"""Reads a model of Ollama's store on this machine. Changes nothing there, and fetches nothing."""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.errors import ModelCorrupt, ModelNotFound, UnsupportedModel
from headrace_server.store.sources.reference import OllamaSource

_LAYER = "application/vnd.ollama.image."
_REFUSED = {
    "adapter": "an adapter (LoRA)",
    "projector": "a projector for pictures",
    "tensor": "weights in Ollama's own form for MLX",
}
"""Layers without which the model would be another one."""
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_LARGEST_MANIFEST = 4 << 20
_LARGEST_LICENSE = 1 << 20
_TITLE = 100
"""Characters of a licence's title."""
_CHUNK_BYTES = 4 << 20
_SHOWN = 12


@dataclass(frozen=True)
class OllamaModel:
    """A model of Ollama's store."""

    blob: Path
    """The GGUF file."""
    size: int
    """Bytes."""
    sha256: str
    """In hex."""
    license: str | None
    """The title of its licence's text."""


def ollama_home() -> Path:
    """The directory of Ollama's models: OLLAMA_MODELS, or ~/.ollama/models."""
    named = os.environ.get("OLLAMA_MODELS", "").strip("\"' ")
    return Path(named) if named else Path.home() / ".ollama" / "models"


def find(source: OllamaSource, home: Path) -> OllamaModel:
    """The model in the store at `home`. Blocks, for a moment.

    Raises ModelNotFound, ModelCorrupt for a manifest or a blob that is not as it should be, and
    UnsupportedModel for one that is more than a GGUF file.
    """
    # Built of parts that are checked, and of digests: no link and no name in a manifest leads
    # anywhere else, and a blob has to be what it is called.
    path = home / "manifests" / source.manifest
    try:
        with path.open("rb") as file:
            manifest = json.loads(file.read(_LARGEST_MANIFEST))
        layers = [_layer(layer) for layer in manifest["layers"]]
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise _not_found(source, home) from None
    except PermissionError as error:
        raise ModelCorrupt(f"{source} cannot be read: {error}", file=path.name) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelCorrupt(
            f"the manifest of {source} is damaged: {error}", file=path.name
        ) from error
    kinds = [kind for kind, _, _ in layers]
    for kind, what in _REFUSED.items():
        if kind in kinds:
            raise UnsupportedModel(
                f"{source} has {what}, which is not taken over; without it the model would be"
                " another one"
            )
    weights = [(digest, size) for kind, digest, size in layers if kind == "model"]
    if len(weights) != 1:
        raise UnsupportedModel(f"{source} has {len(weights)} files of weights, not one GGUF file")
    digest, size = weights[0]
    blob = home / "blobs" / f"sha256-{digest}"
    if not blob.is_file() or blob.stat().st_size != size:
        raise ModelCorrupt(
            f"the weights of {source} are missing or cut off: `ollama pull` it again",
            file=blob.name,
        )
    texts = [home / "blobs" / f"sha256-{digest}" for kind, digest, _ in layers if kind == "license"]
    return OllamaModel(blob, size, digest, _title(texts))


def verify(
    source: OllamaSource,
    model: OllamaModel,
    on_bytes: Callable[[int], None],
    stop: threading.Event,
) -> None:
    """Compare the weights with their digest, unless it is told to stop. Blocks.

    Raises ModelCorrupt.
    """
    digest = hashlib.sha256()
    done = 0
    with model.blob.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            if stop.is_set():
                return
            digest.update(chunk)
            done += len(chunk)
            on_bytes(done)
    if digest.hexdigest() != model.sha256:
        raise ModelCorrupt(
            f"the weights of {source} have not the digest that they are called by: `ollama pull` it"
            " again",
            file=model.blob.name,
        )


def _layer(layer: Mapping[str, Any]) -> tuple[str, str, int]:
    """Its kind, its SHA-256 in hex, and its bytes. Raises ValueError."""
    kind, digest = str(layer["mediaType"]), _DIGEST.fullmatch(str(layer["digest"]))
    if digest is None:
        raise ValueError(f"{str(layer['digest'])[:80]!r} is no digest")
    return kind.removeprefix(_LAYER), digest[1], int(layer["size"])


def _title(texts: list[Path]) -> str | None:
    """The first line that says something in the first of the licences that can be read."""
    for path in texts:
        try:
            with path.open("rb") as file:
                text = file.read(_LARGEST_LICENSE).decode("utf-8", errors="replace")
        except OSError:
            continue
        for line in text.splitlines():
            if line.strip(" \t#*=-"):
                return line.strip(" \t#*=-")[:_TITLE]
    return None


def _not_found(source: OllamaSource, home: Path) -> ModelNotFound:
    manifests = home / "manifests"
    names = sorted(
        "/".join(parts[-2:-1] if parts[-3] == "library" else parts[-3:-1]) + f":{parts[-1]}"
        for path in manifests.glob("*/*/*/*")
        if len(parts := path.relative_to(manifests).parts) > 1 and path.is_file()
    )
    if not names:
        hint = (
            f"there are no models of Ollama at {home}; OLLAMA_MODELS of the controller says where"
        )
    else:
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        hint = f"Ollama has {', '.join(names[:_SHOWN])}{more}"
    error = ModelNotFound(str(source), hint=hint)
    error.message = f"Ollama has no {str(source).removeprefix('ollama:')} at {home}; {hint}"
    error.args = (error.message,)
    return error
