"""What the tests of pulls share: a hub with a small model, and pulls in processes of their own."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path

from headrace_server.store.locks import held

PULL = """
import asyncio, json, sys
from pathlib import Path
from headrace_server.store import PullOptions, Store

home, model, options = sys.argv[1:]
fields = json.loads(options)
asyncio.run(Store(Path(home)).pull(model, options=PullOptions(**fields)))
"""


async def pull_elsewhere(home: Path, model: str, options: str = "{}") -> Process:
    """A process that pulls `model` into `home`."""
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", PULL, str(home), model, options, stderr=PIPE
    )


def partials(home: Path) -> dict[str, int]:
    """The bytes that are there of each file on its way, by its key."""
    found = (home / "downloads").glob("*/*.partial")
    return {path.name.removesuffix(".partial"): path.stat().st_size for path in found}


async def nobody_downloads(home: Path) -> None:
    """Return when the last process has let go of the downloads in `home`."""
    for directory in (home / "downloads").iterdir():
        async with asyncio.timeout(30), held(directory / "lock"):
            pass
