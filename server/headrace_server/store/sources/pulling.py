"""One pull from a source other than the catalogue: looked up, fetched, imported, in this order.

Fetches and imports through others; what it decides is whether there is anything to do, and what
becomes of a download.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from headrace.errors import FieldViolation, InvalidRequest, ModelCorrupt, UnsupportedModel
from headrace_server.store.layout import Layout
from headrace_server.store.locks import held
from headrace_server.store.manifest import Manifest
from headrace_server.store.names import ModelName, parse_name
from headrace_server.store.progress import OnProgress, Progress
from headrace_server.store.sources import ollama, remote
from headrace_server.store.sources.limits import Limits
from headrace_server.store.sources.plan import RemoteFile
from headrace_server.store.sources.reference import (
    HubSource,
    OllamaSource,
    PullOptions,
    Source,
    UrlSource,
)
from headrace_server.store.threads import (
    in_thread,
    in_thread_until_cancelled,
    progress_from_thread,
)

LIMITS = Limits()


class TakeIn(Protocol):
    """Imports a GGUF file or a directory. `presumed`: facts, where the files do not say."""

    async def __call__(
        self,
        source: Path,
        name: ModelName,
        origin: str,
        on_progress: OnProgress,
        *,
        replace: bool,
        presumed: Mapping[str, Any],
    ) -> Manifest:
        """Raises as `Store.import_model` does."""
        ...


@dataclass(frozen=True)
class Shelf:
    """What a pull needs of the store."""

    layout: Layout
    list: Callable[[], list[Manifest]]
    """Every model."""
    check: Callable[[Manifest], None]
    """Raises ModelCorrupt where files are missing."""
    copy: Callable[[str, str], Manifest]
    """Gives a model a further name."""
    staging: Callable[[], AbstractAsyncContextManager[Path]]
    """A directory of one's own on the store's disk."""
    take_in: TakeIn


class Pull:
    """A pull of `source` into a store."""

    def __init__(self, shelf: Shelf, source: Source, options: PullOptions) -> None:
        self._shelf = shelf
        self._layout = shelf.layout
        self._source = source
        self._name = parse_name(options.name, "name") if options.name else None

    async def run(self, on_progress: OnProgress) -> Manifest:
        """Fetch and import the model, unless it is there and whole.

        One at a time of each source, in this process and others: who comes second finds what the
        first has brought, or goes on where that one stopped.
        """
        on_progress(Progress("wait", 0, 0))
        async with held(self._layout.lock(f"pull-{self._source.key}")):
            if isinstance(self._source, HubSource):
                return await self._from_hub(self._source, on_progress)
            if isinstance(self._source, UrlSource):
                return await self._from_url(self._source, on_progress)
            return await self._from_ollama(self._source, on_progress)

    async def _from_hub(self, source: HubSource, on_progress: OnProgress) -> Manifest:
        plan = await remote.look_up(source, LIMITS)
        name = self._name or source.local_name(plan.gguf)
        what = f"{source}/{plan.gguf}" if plan.gguf else _with_choice(source)
        origin = f"{what}@{plan.version}"
        if present := await in_thread(self._present, name, origin):
            return present
        return await self._fetched(source, plan.files, name, origin, plan.license, on_progress)

    async def _from_url(self, source: UrlSource, on_progress: OnProgress) -> Manifest:
        name = self._name or source.local_name()
        origin = f"{source}@sha256:{source.sha256}"
        if present := await in_thread(self._present, name, origin):
            return present
        files = (RemoteFile("model.gguf", source.url, None, source.sha256),)
        return await self._fetched(source, files, name, origin, None, on_progress)

    async def _from_ollama(self, source: OllamaSource, on_progress: OnProgress) -> Manifest:
        found = await in_thread(ollama.find, source, ollama.ollama_home())
        name = self._name or source.local_name()
        origin = f"{source}@sha256:{found.sha256}"
        if present := await in_thread(self._present, name, origin):
            return present
        tell = progress_from_thread(on_progress)

        def verify(stop: threading.Event) -> None:
            ollama.verify(source, found, lambda n: tell(Progress("verify", n, found.size)), stop)

        await in_thread_until_cancelled(verify)
        return await self._imported(found.blob, name, origin, found.license, on_progress)

    async def _fetched(
        self,
        source: HubSource | UrlSource,
        files: tuple[RemoteFile, ...],
        name: ModelName,
        origin: str,
        license: str | None,
        on_progress: OnProgress,
    ) -> Manifest:
        downloads = self._layout.downloads / source.key
        await remote.fetch(source, files, downloads, LIMITS, on_progress)
        try:
            async with self._shelf.staging() as staging:
                model = await in_thread(_lay_out, files, downloads, staging)
                manifest = await self._imported(model, name, origin, license, on_progress)
        except (ModelCorrupt, UnsupportedModel):
            # It is as its source has it: another try would fetch the same.
            await in_thread(shutil.rmtree, downloads, ignore_errors=True)
            raise
        await in_thread(shutil.rmtree, downloads, ignore_errors=True)
        return manifest

    async def _imported(
        self,
        model: Path,
        name: ModelName,
        origin: str,
        license: str | None,
        on_progress: OnProgress,
    ) -> Manifest:
        # Who takes a free name meanwhile keeps it.
        there = self._layout.manifest(name).exists
        replace = await in_thread(lambda: there() and self._may_replace(name, origin))
        return await self._shelf.take_in(
            model, name, origin, on_progress, replace=replace, presumed={"license": license}
        )

    def _present(self, name: ModelName, origin: str) -> Manifest | None:
        """The model that is there, under its name or given it now.

        Raises InvalidRequest where the name is another model's.
        """
        if not self._may_replace(name, origin):
            raise _taken(name, self._of(name), origin, given=self._name is not None)
        whole = [manifest for manifest in self._shelf.list() if self._is(manifest, origin)]
        here = next((m for m in whole if m.full_name == str(name)), None)
        if here is not None or not whole or self._of(name) is not None:
            return here
        return self._shelf.copy(whole[0].full_name, str(name))

    def _is(self, manifest: Manifest, origin: str) -> bool:
        try:
            self._shelf.check(manifest)
        except ModelCorrupt:
            return False
        return manifest.source == origin

    def _may_replace(self, name: ModelName, origin: str) -> bool:
        """Whether what has the name, if anything, is an earlier version of the same, or damaged."""
        manifest = self._of(name)
        if manifest is None:
            return True
        if manifest.source.rpartition("@")[0] == origin.rpartition("@")[0]:
            return True
        try:
            self._shelf.check(manifest)
        except ModelCorrupt:
            return True
        return False

    def _of(self, name: ModelName) -> Manifest | None:
        return next((m for m in self._shelf.list() if m.full_name == str(name)), None)


def _with_choice(source: HubSource) -> str:
    """The source's name, with the weights that were asked for: others are another model."""
    return f"{source}/{','.join(source.files)}" if source.files else str(source)


def _lay_out(files: tuple[RemoteFile, ...], downloads: Path, staging: Path) -> Path:
    """Give the files the names that they have in the model; they stay among the downloads."""
    model = staging / "model"
    for file in files:
        target = model / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(downloads / file.key, target)
        except OSError:  # A file system without hard links.
            shutil.copyfile(downloads / file.key, target)
    only = model / files[0].path
    return only if only.suffix == ".gguf" else model


def _taken(
    name: ModelName, present: Manifest | None, origin: str, *, given: bool
) -> InvalidRequest:
    of = f" from {present.source}" if present is not None else ""
    what = (
        f"there is a model {name}{of} already, and {origin} would replace it;"
        f" {'choose another name' if given else 'give a name'}, or remove it first"
    )
    return InvalidRequest(violations=[FieldViolation("name", what)])
