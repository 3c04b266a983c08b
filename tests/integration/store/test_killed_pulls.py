"""Processes that are killed while they download: nothing is seen, and nothing is fetched twice."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from headrace_server.store import PullOptions, Store
from tests.hub import Hub, Repo
from tests.integration.store.sources import nobody_downloads, pull_elsewhere
from tests.lengths import length

REPO = "acme/tiny"


class Trial:
    """One model that is pulled until it is there."""

    def __init__(
        self, server: Hub, home: Path, files: dict[str, bytes], gguf: bytes | None
    ) -> None:
        self.server = server
        self.home = home
        self.options: dict[str, Any] = {}
        server.chunk = 701
        if gguf is None:
            server.repos[REPO] = Repo(files)
            self.model = f"hf:{REPO}"
            useless = ("pytorch_model.bin", "onnx/model.onnx", "train.py")
            wanted = [data for path, data in files.items() if path not in useless]
            self.total = sum(map(len, wanted))
        else:
            server.files["/files/tiny.gguf"] = gguf
            self.model = f"{server.url}/files/tiny.gguf"
            self.options = {"sha256": hashlib.sha256(gguf).hexdigest()}
            self.total = len(gguf)

    @property
    def here(self) -> int:
        """Bytes that were kept."""
        found = (self.home / "downloads").glob("*/*")
        return sum(p.stat().st_size for p in found if p.suffix != ".etag" and p.name != "lock")

    async def killed(self, at: int) -> None:
        """Pull, and be killed once the server has sent `at` more bytes."""
        limit = self.server.sent + at
        process = await pull_elsewhere(self.home, self.model, json.dumps(self.options))

        def kill(sent: int) -> None:
            if sent >= limit and process.returncode is None:
                self.server.on_sent = lambda sent: None
                children = psutil.Process(process.pid).children()
                os.kill(process.pid, signal.SIGKILL)
                # Nothing more is sent before the child has noticed, which is to be soon.
                assert not psutil.wait_procs(children, 20)[1]

        self.server.on_sent = kill
        await process.communicate()
        self.server.on_sent = lambda sent: None
        await nobody_downloads(self.home)
        assert process.returncode == -signal.SIGKILL

    async def finish(self) -> None:
        """Pull to the end, without what is here."""
        here, promised = self.here, self.server.promised
        store = Store(self.home)
        assert store.list() == []
        manifest = await store.pull(self.model, options=PullOptions(**self.options))
        store.verify(manifest)
        assert self.server.promised - promised == self.total - here
        assert self.here == 0
        assert store.list() == [manifest]
        store.delete(manifest.full_name)


@pytest.mark.parametrize("source", ["hub", "address"])
@pytest.mark.parametrize(
    "rounds",
    [1, pytest.param(length(25, 5), marks=[pytest.mark.slow, pytest.mark.timeout(1800)])],
)
async def test_a_pull_that_is_killed_goes_on_from_its_last_byte(
    server: Hub,
    tmp_path: Path,
    tiny_files: dict[str, bytes],
    tiny_gguf: Path,
    source: str,
    rounds: int,
) -> None:
    gguf = tiny_gguf.read_bytes() if source == "address" else None
    trial = Trial(server, tmp_path / "home", tiny_files, gguf)
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    for _ in range(rounds):
        await trial.killed(at=chance.randrange(1, trial.total // 2))
        between = trial.here
        if trial.total - between > 4:  # Else the kill was late: what was on its way came.
            await trial.killed(at=chance.randrange(1, (trial.total - between) // 2))
        assert between <= trial.here <= trial.total
        await trial.finish()
