"""The TypeScript SDK's folder, and what it takes to run something of it."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import pytest

from tests.clients import shell

FOLDER = shell.ROOT / "client" / "typescript"
run = partial(shell.run, folder=FOLDER)
"""In its folder, unless another is named."""


def need_node() -> None:
    """Skips where there is no Node."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"the TypeScript SDK needs {program}")


def install(folder: Path = FOLDER) -> None:
    """What the lock file names, if it is not there yet."""
    need_node()
    lock = folder / "package-lock.json"
    # npm's own note of what it has installed.
    installed = folder / "node_modules" / ".package-lock.json"
    if not installed.exists() or installed.stat().st_mtime < lock.stat().st_mtime:
        run("npm", "ci", "--no-audit", "--no-fund", folder=folder)


def build() -> None:
    """The package, the conformance driver and the tests."""
    install()
    run("npm", "run", "--silent", "conformance:build")
