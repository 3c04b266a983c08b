"""What verifying a store finds, and what takes room in it for nothing."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class FileDamage(StrEnum):
    """A way in which a file is damaged."""

    MISSING = "missing"
    SIZE = "size"
    CHECKSUM = "checksum"
    UNREADABLE = "unreadable"
    MANIFEST = "manifest"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class DamagedFile:
    """A file of a model that is not as it was stored."""

    file: str
    """Its path inside the model."""

    damage: FileDamage
    """How it is damaged."""

    description: str
    """The same in words, such as "has 1000 bytes, not 1234"."""


@dataclass(frozen=True, slots=True)
class VerifyProgress:
    """How far a verification is."""

    model: str
    """Name of the model that is being read, with the tag."""

    done_bytes: int
    """Bytes that have been read. What models share is read once."""

    total_bytes: int
    """Bytes in all."""


@dataclass(frozen=True, slots=True)
class VerifiedModel:
    """What was found of one model."""

    model: str
    """Its name with the tag."""

    digest: str
    """Its digest. Empty: its manifest is damaged."""

    size_bytes: int
    """Bytes of all its files, as its manifest says."""

    damaged: tuple[DamagedFile, ...]
    """Its damaged files. Empty: all of it is as it was stored."""

    remedy: str
    """What gets it right again, in words. Empty: nothing is damaged."""


VerifyEvent = VerifyProgress | VerifiedModel
"""What a verification tells."""


class GarbageKind(StrEnum):
    """A kind of thing that takes room and belongs to no model."""

    SNAPSHOT = "snapshot"
    BLOB = "blob"
    DOWNLOAD = "download"
    UNFINISHED = "unfinished"
    DUPLICATE = "duplicate"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class GarbageItem:
    """One thing that belongs to no model."""

    kind: GarbageKind
    """What it is."""

    name: str
    """Its digest or name in the store; of a duplicate the model's name and the file's."""

    size_bytes: int
    """Bytes that it has. What several items share counts for each."""


@dataclass(frozen=True, slots=True)
class Garbage:
    """What takes room in the store and belongs to no model."""

    items: tuple[GarbageItem, ...]
    """Each thing."""

    freed_bytes: int
    """Bytes that are free once all of it is gone."""

    downloads_in_use: bool
    """Whether downloads are left alone, since a pull is under way that may use them."""


@dataclass(frozen=True, slots=True)
class Verification:
    """What was found of models, and of the store."""

    models: tuple[VerifiedModel, ...]
    """Each model that was read."""

    garbage: Garbage
    """What `collect_garbage` would remove."""

    @property
    def damaged(self) -> tuple[VerifiedModel, ...]:
        """The models that are damaged."""
        return tuple(model for model in self.models if model.damaged)
