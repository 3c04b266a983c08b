"""The service of models, for moments that no client can choose."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any, cast

import pytest

from headrace.v1.model_pb2 import (
    CopyModelRequest,
    StreamImportModelRequest,
    StreamPullModelRequest,
)
from headrace_server.services.model import ModelServicer
from headrace_server.store import (
    ImportOptions,
    Manifest,
    OnProgress,
    Progress,
    PullOptions,
    Store,
)
from tests.unit.control.fakes import put_manifest

NOBODY = cast("Any", None)


class SlowStore(Store):
    """One that stores a model when it is told to."""

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self.may_store = asyncio.Event()

    async def pull(
        self,
        model: str,
        on_progress: OnProgress = NOBODY,
        options: PullOptions = NOBODY,
    ) -> Manifest:
        on_progress(Progress("wait", 0, 0))
        await self.may_store.wait()
        return self.get(model)

    async def import_model(
        self,
        source: Path,
        name: str,
        on_progress: OnProgress = NOBODY,
        *,
        replace: bool = False,
        options: ImportOptions = NOBODY,
    ) -> Manifest:
        return await self.pull(name, on_progress)


class Stage:
    """A service whose changes take as long as the test wants."""

    def __init__(self, home: Path) -> None:
        put_manifest(home, "words", "text")
        self.store = SlowStore(home)
        self.service = ModelServicer(
            self.store, NOBODY, NOBODY, max_time=10.0, watch=NOBODY, on_change=self._on_change
        )
        self.telling = asyncio.Event()
        self.may_tell = asyncio.Event()
        self.told: list[tuple[str, str]] = []

    async def _on_change(self, name: str, why: str) -> None:
        self.telling.set()
        await self.may_tell.wait()
        self.told.append((name, why))


@pytest.fixture
async def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


@pytest.mark.parametrize("why", ["PULLED", "IMPORTED"])
async def test_a_model_that_is_stored_as_its_client_leaves_is_told_of(
    stage: Stage, why: str
) -> None:
    steps: AsyncIterator[Any] = (
        stage.service.StreamPullModel(StreamPullModelRequest(model="words"), NOBODY)
        if why == "PULLED"
        else stage.service.StreamImportModel(StreamImportModelRequest(model="words"), NOBODY)
    )
    async with asyncio.timeout(10), aclosing(cast("Any", steps)):
        await anext(steps)
        stage.store.may_store.set()
        # Nobody asks for the next step, which would say that it is stored.
        await stage.telling.wait()
        asyncio.get_running_loop().call_soon(stage.may_tell.set)
    assert stage.told == [("words:latest", why)]


async def test_a_copy_whose_client_leaves_is_told_of(stage: Stage) -> None:
    request = CopyModelRequest(source="words", destination="others")
    copying = asyncio.ensure_future(stage.service.CopyModel(request, NOBODY))
    async with asyncio.timeout(10):
        await stage.telling.wait()
        copying.cancel()
        asyncio.get_running_loop().call_soon(stage.may_tell.set)
        await asyncio.wait([copying])
    assert copying.cancelled()
    assert stage.told == [("others:latest", "COPIED")]
