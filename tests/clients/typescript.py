"""The TypeScript SDK's folder, and what it takes to run something of it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.e2e.harness import PATIENCE

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "client" / "typescript"


def need_node() -> None:
    """Skips where there is no Node."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"the TypeScript SDK needs {program}")


def run(*command: str, folder: Path = FOLDER, environment: Mapping[str, str] | None = None) -> str:
    """The output of a command that has to end well."""
    ended = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=4 * PATIENCE,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-8000:]
    return ended.stdout


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
