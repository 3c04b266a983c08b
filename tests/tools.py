"""Programs that came with the Python environment, which need not be on the PATH."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path


def tool(name: str) -> str | None:
    """The program; None where there is none."""
    beside = Path(sys.executable).parent
    return shutil.which(name, path=f"{beside}{os.pathsep}{os.environ.get('PATH', '')}")


def needed(name: str) -> str:
    """The program, which has to be there."""
    found = tool(name)
    assert found is not None, f"{name} is missing; `make install` brings it"
    return found
