"""Model names: `name[:tag]`. Pure; a name is never a path, so nothing outside the store is reached.

A name has one to three parts with a slash between them ("smollm2", "team/llama/base"), each of
lower-case letters, digits, ".", "_" and "-" and beginning with a letter or digit; so has a tag.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from headrace.errors import FieldViolation, InvalidRequest

DEFAULT_TAG = "latest"
MAX_PARTS = 3
MAX_LENGTH = 200
_PART = re.compile(r"[a-z0-9][a-z0-9._-]*")


@dataclass(frozen=True, order=True)
class ModelName:
    """A valid name; `str()` gives `name:tag`."""

    name: str
    tag: str

    def __str__(self) -> str:
        return f"{self.name}:{self.tag}"


@lru_cache(maxsize=256)  # Every request names a model.
def parse_name(text: str, field: str = "model") -> ModelName:
    """Parse `name[:tag]`, with the tag "latest" where none is given.

    `field` is the request's field that the error blames. Raises InvalidRequest.
    """
    name, colon, tag = text.partition(":")
    parts = name.split("/")
    valid = (
        len(text) <= MAX_LENGTH
        and len(parts) <= MAX_PARTS
        and all(_valid_part(part) for part in parts)
        and (not colon or _valid_part(tag))
    )
    if not valid:
        shown = text if len(text) <= MAX_LENGTH else text[:MAX_LENGTH] + "…"
        message = (
            f"{shown!r} is no model name; write name or name:tag, with lower-case letters, digits,"
            f" '.', '_' and '-', at most {MAX_LENGTH} characters and"
            f" {MAX_PARTS} parts separated by '/'"
        )
        raise InvalidRequest(message, violations=(FieldViolation(field, message),))
    return ModelName(name, tag or DEFAULT_TAG)


def _valid_part(part: str) -> bool:
    # A part that ends in .json would share its path with the manifest of a tag.
    return _PART.fullmatch(part) is not None and not part.endswith(".json")
