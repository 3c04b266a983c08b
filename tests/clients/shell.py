"""Programs of other languages' toolchains, run to their end."""

from __future__ import annotations

import os
import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
_PATIENCE = 600
"""Seconds: where nothing has been built yet, on a busy machine."""


def ended(
    *command: str | Path, folder: Path, host: str = "", **more: str
) -> subprocess.CompletedProcess[str]:
    """A program that has ended, however it did.

    `host`: of a controller, for what looks for one. `more`: variables of its environment, which has
    none of Headrace's otherwise.
    """
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("HEADRACE_")}
    return subprocess.run(
        command,
        cwd=folder,
        env={**inherited, "HEADRACE_HOST": host, **more},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_PATIENCE,
        check=False,
    )


def run(*command: str | Path, folder: Path, host: str = "", **more: str) -> str:
    """What a program that has to end well writes to its standard output."""
    told = ended(*command, folder=folder, host=host, **more)
    assert told.returncode == 0, (told.stdout + told.stderr)[-8000:]
    return told.stdout


def version() -> str:
    """Headrace's, which all its SDKs have."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found: str = project["version"]
    return found
