"""What the store knows of a model without opening it. Pure: JSON in, JSON out."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from headrace.types import ImageTraits

SCHEMA = 1


@dataclass(frozen=True)
class ModelFile:
    """A file of a model: `path` relative to its directory, `size` in bytes, `sha256` in hex."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ImageFacts(ImageTraits):
    """What is known of a model for images, beside what it takes."""

    working_bytes: int
    """Memory beside the weights while it draws one image of its own size."""


@dataclass(frozen=True)
class EmbeddingFacts:
    """What a model for embeddings gives."""

    dimensions: int
    """Length of a vector where a request does not say."""
    working_bytes: int
    """Memory beside the weights while one batch is computed."""


@dataclass(frozen=True)
class AdapterFacts:
    """What an adapter changes of which model."""

    base: str
    """Full name of the model that it was imported over."""
    base_digest: str
    """Of that model's files, in hex alone: what it names is not kept for the adapter's sake."""
    rank: int
    layers: int
    modules: tuple[str, ...]

    def is_of(self, digest: str) -> bool:
        """Whether a model of this digest is its base."""
        return digest == f"sha256:{self.base_digest}"


@dataclass(frozen=True)
class Manifest:
    """A model of the store. A count of 0 means that its files do not say."""

    name: str
    tag: str
    kind: str
    """ "text", "image" or "embedding": what the model does; "adapter": it changes another."""
    format: str
    """ "mlx": how its directory is laid out."""
    architecture: str
    digest: str
    """ "sha256:…" over the files; two names of one digest are one model."""
    files: tuple[ModelFile, ...]
    tensor_bytes: int
    parameters: int
    context_length: int
    """Tokens."""
    quantization: str
    """As its source calls it: "Q4_1", "4-bit g64", "bfloat16"."""
    layers: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    chat_template: str | None
    license: str | None
    source: str
    """Where it came from: a catalogue entry's package, a pull's source with its commit or digest
    behind "@", or the imported file's name."""
    created_at: str
    """RFC 3339, UTC."""
    image: ImageFacts | None = None
    """Of a model for images."""
    embedding: EmbeddingFacts | None = None
    """Of a model for embeddings."""
    adapter: AdapterFacts | None = None
    """Of an adapter."""

    @property
    def full_name(self) -> str:
        return f"{self.name}:{self.tag}"

    @property
    def has_chat_template(self) -> bool:
        return self.chat_template is not None

    @property
    def size(self) -> int:
        """Bytes on the disk."""
        return sum(file.size for file in self.files)

    def files_of(self, sha256: str) -> list[ModelFile]:
        """The files of this checksum: more than one where it has the same twice."""
        return [file for file in self.files if file.sha256 == sha256]

    def to_json(self) -> str:
        return json.dumps({"schema": SCHEMA} | dataclasses.asdict(self), indent=2) + "\n"


def parse_manifest(text: str) -> Manifest:
    """The manifest in `text`. Raises ValueError where it is none of this schema."""
    try:
        fields: dict[str, Any] = json.loads(text)
        schema = fields.pop("schema")
        if schema != SCHEMA:
            raise ValueError(f"it has schema {schema!r}, this version reads {SCHEMA}")
        files = tuple(ModelFile(**file) for file in fields.pop("files"))
        return Manifest(
            files=files,
            image=_image(fields.pop("image", None)),
            embedding=_embedding(fields.pop("embedding", None)),
            adapter=_adapter(fields.pop("adapter", None)),
            **fields,
        )
    except (AttributeError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"it is no manifest: {error}") from error


def new_manifest(
    name: str,
    tag: str,
    facts: Mapping[str, Any],
    files: Iterable[Mapping[str, Any]],
    *,
    source: str,
    created_at: str,
) -> Manifest:
    """The manifest of a conversion's `facts` and `files`, as its "done" line gives them."""
    listed = tuple(sorted((ModelFile(**file) for file in files), key=lambda file: file.path))
    return Manifest(
        name=name,
        tag=tag,
        digest=digest_of(listed),
        files=listed,
        source=source,
        created_at=created_at,
        image=_image(facts.get("image")),
        embedding=_embedding(facts.get("embedding")),
        adapter=_adapter(facts.get("adapter")),
        **{key: value for key, value in facts.items() if key not in _OF_KIND},
    )


_OF_KIND = ("image", "embedding", "adapter")


def _image(fields: Mapping[str, Any] | None) -> ImageFacts | None:
    return None if fields is None else ImageFacts(**fields)


def _embedding(fields: Mapping[str, Any] | None) -> EmbeddingFacts | None:
    return None if fields is None else EmbeddingFacts(**fields)


def _adapter(fields: Mapping[str, Any] | None) -> AdapterFacts | None:
    if fields is None:
        return None
    return AdapterFacts(**{**fields, "modules": tuple(fields["modules"])})


def digest_of(files: Iterable[ModelFile]) -> str:
    """ "sha256:…" over (path, size, sha256) of every file, sorted by path."""
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda file: file.path):
        digest.update(f"{file.path}\0{file.size}\0{file.sha256}\n".encode())
    return f"sha256:{digest.hexdigest()}"
