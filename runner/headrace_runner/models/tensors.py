"""Reads the tensors of a safetensors file into MLX."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx

from headrace.errors import ModelCorrupt


def load_tensors(path: Path) -> dict[str, mx.array]:
    """The tensors of the file at `path` by name; their data is read when they are evaluated.

    Raises ModelCorrupt for a file that MLX cannot read.
    """
    try:
        read = mx.load(str(path))
    except RuntimeError as error:
        raise ModelCorrupt(f"{path.name} cannot be read: {error}", file=path.name) from error
    assert isinstance(read, dict)  # As it is for all of this format, if not for its others.
    return read
