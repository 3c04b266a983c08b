"""Reads the small files of a model directory. Never touches weights."""

import json
from pathlib import Path
from typing import Any

from headrace.errors import ModelCorrupt


def read_text(model_dir: Path, name: str) -> str | None:
    """Read a UTF-8 file of a model directory; None where there is no such file.

    Raises ModelCorrupt when it cannot be read as UTF-8.
    """
    try:
        return (model_dir / name).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise _unreadable(name, "is not UTF-8") from error
    except OSError as error:
        raise _unreadable(name, f"cannot be read ({error.strerror})") from error


def read_json(model_dir: Path, name: str) -> dict[str, Any]:
    """Read a JSON object of a model directory; empty where there is no such file.

    Raises ModelCorrupt when the file is not a JSON object.
    """
    text = read_text(model_dir, name)
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _unreadable(name, f"is no JSON ({error})") from error
    if not isinstance(value, dict):
        raise _unreadable(name, "is no JSON object")
    return value


def _unreadable(name: str, what: str) -> ModelCorrupt:
    # It may be read before it is in the store, too: nothing is to be removed then.
    return ModelCorrupt(f"the model's file {name!r} {what}; get the model again", file=name)


def license_of(model_dir: Path) -> str | None:
    """The model card's "license:", in the block between the first two lines of three dashes."""
    card = read_text(model_dir, "README.md") or ""
    if card.startswith("---\n"):
        for line in card.split("\n---", 1)[0].splitlines():
            key, _, value = line.partition(":")
            if key == "license" and value.strip():
                return value.strip().strip("\"'")
    return None
