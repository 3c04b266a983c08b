"""A store with a tiny model and no other."""

from __future__ import annotations

import asyncio
from pathlib import Path

from headrace_server.store import Store
from tests.unit.convert.tiny import write_gguf

TINY = "tiny:q4"


def tiny_home(model_home: Path, directory: Path) -> Path:
    """Makes it in `directory`. A fast BLAS is shared with another home."""
    home = directory / "home"
    home.mkdir()
    (model_home / "cache").mkdir(exist_ok=True)
    (home / "cache").symlink_to(model_home / "cache")
    gguf = directory / "tiny.gguf"
    write_gguf(gguf)
    asyncio.run(Store(home).import_model(gguf, TINY))
    return home
