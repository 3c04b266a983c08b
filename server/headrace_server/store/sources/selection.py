"""Which files of a repository make up the model. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import NoReturn

from headrace.errors import FieldViolation, InvalidRequest, UnsupportedModel

_WEIGHTS = (".safetensors", ".gguf")
_BESIDE = {".json", ".txt", ".model", ".jinja", ".tiktoken"}
_DOCUMENTS = ("README", "LICENSE", "LICENCE", "NOTICE", "USE_POLICY")
_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".npz", ".h5", ".msgpack"}
_POOLING = re.compile(r"\d+_Pooling/config\.json")
_OF_IMAGES = re.compile(
    r"(transformer|unet|vae|text_encoder|tokenizer|scheduler|image_encoder)(_\d)?|loras"
)
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
_SHOWN = 12
"""Choices that an error names."""


@dataclass(frozen=True)
class Listed:
    """A file as the hub lists it."""

    path: str
    size: int | None
    """Bytes; None: it does not say."""
    sha256: str
    """In hex; empty for files that Git itself holds."""
    git_sha1: str


def select(listing: Sequence[Listed], patterns: Sequence[str]) -> list[Listed]:
    """The files to fetch: one GGUF file, or weights as safetensors and what belongs to them.

    Raises InvalidRequest where `patterns` choose nothing that can be fetched, or where there are
    several GGUF files and none is chosen, and UnsupportedModel where there are no such weights.
    """
    weights = _chosen(listing, patterns) if patterns else _suggested(listing)
    ggufs = [file for file in weights if file.path.endswith(".gguf")]
    if not ggufs:
        wanted = {file.path for file in weights}
        with_images = _draws(listing)
        return [f for f in listing if f.path in wanted or _belongs(f.path, with_images)]
    if len(weights) > 1:
        _blame("files", "a model is one GGUF file; choose one", weights)
    if _SHARD.search(ggufs[0].path):
        raise UnsupportedModel(
            f"{ggufs[0].path} is a part of a GGUF file that was split, which is not read; take one"
            " in a single piece, or safetensors"
        )
    return ggufs


def _suggested(listing: Sequence[Listed]) -> list[Listed]:
    """The weights that are taken where nobody chooses."""
    if _draws(listing):
        found = [f for f in listing if _of_images(f.path) and f.path.endswith(".safetensors")]
    else:
        found = [f for f in listing if fnmatchcase(f.path, "model*.safetensors")]
    found = [file for file in found if _draws(listing) or "/" not in file.path]
    if found:
        return found
    ggufs = [file for file in listing if file.path.endswith(".gguf")]
    if len(ggufs) > 1:
        _blame("files", "the repository has several GGUF files; choose one", ggufs)
    if not ggufs:
        raise _nothing(listing)
    return ggufs


def _chosen(listing: Sequence[Listed], patterns: Sequence[str]) -> list[Listed]:
    weights = [file for file in listing if file.path.endswith(_WEIGHTS)]
    for number, pattern in enumerate(patterns):
        matching = [file for file in listing if fnmatchcase(file.path, pattern)]
        if not matching:
            what = f"no file of the repository is called {pattern!r}"
            _blame(f"files[{number}]", what, weights)
        if not any(file in weights for file in matching):
            pickle = PurePosixPath(matching[0].path).suffix in _PICKLES
            why = "a pickle, which is never fetched" if pickle else "none of the weights"
            _blame(f"files[{number}]", f"{matching[0].path} is {why}", weights)
    return [f for f in weights if any(fnmatchcase(f.path, pattern) for pattern in patterns)]


def _belongs(path: str, with_images: bool) -> bool:
    """Whether a file that is no weights comes along with safetensors."""
    name = PurePosixPath(path)
    small = name.suffix in _BESIDE or name.name.startswith(_DOCUMENTS)
    if name.suffix in _PICKLES or not small:
        return False
    here = "/" not in path or bool(_POOLING.fullmatch(path))
    return here or (with_images and _of_images(path))


def _draws(listing: Iterable[Listed]) -> bool:
    """Whether the repository has the folders of an image model."""
    return any(fnmatchcase(file.path, "transformer/*.safetensors") for file in listing)


def _of_images(path: str) -> bool:
    folder, slash, rest = path.partition("/")
    return bool(slash) and "/" not in rest and bool(_OF_IMAGES.fullmatch(folder))


def _nothing(listing: Sequence[Listed]) -> UnsupportedModel:
    other = [file.path for file in listing if file.path.endswith(".safetensors")]
    if other:
        return UnsupportedModel(
            f"the repository has no model*.safetensors, only {_few(other, str)}, which is no whole"
            " model"
        )
    if any(PurePosixPath(file.path).suffix in _PICKLES for file in listing):
        return UnsupportedModel(
            "the weights are pickles, which are never fetched; take a repository with safetensors"
        )
    return UnsupportedModel("the repository has no weights: neither safetensors nor GGUF")


def _blame(field: str, what: str, choices: Sequence[Listed]) -> NoReturn:
    if choices:
        what += f": {_few(choices, _shown)}"
    # The message too: a violation travels with 256 bytes, which a few names would fill.
    raise InvalidRequest(f"{field}: {what}", violations=[FieldViolation(field, what)])


def _shown(file: Listed) -> str:
    return file.path if file.size is None else f"{file.path} ({file.size / 1e9:.1f} GB)"


def _few(items: Sequence[Listed] | Sequence[str], show: Callable[..., str]) -> str:
    shown = ", ".join(map(show, items[:_SHOWN]))
    return f"{shown} and {len(items) - _SHOWN} more" if len(items) > _SHOWN else shown
