"""Finds models by their names, and says what is wrong where it cannot. Reads manifests alone."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from headrace.errors import FieldViolation, InvalidRequest, ModelCorrupt, ModelNotFound
from headrace_server.store.catalogue import CATALOGUE, find
from headrace_server.store.layout import Layout
from headrace_server.store.manifest import Manifest, parse_manifest
from headrace_server.store.names import DEFAULT_TAG, ModelName, parse_name

_log = logging.getLogger(__name__)
_NEAREST = 3


class Lookup:
    """The manifests of one store."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._known: dict[Path, tuple[tuple[int, ...], Manifest]] = {}

    def list(self) -> list[Manifest]:
        """Every model, by name. A damaged manifest is logged and left out."""
        found = []
        for path in self._layout.manifests():
            try:
                found.append(self.read(path))
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
                return self.read(path)
        raise self.not_found(wanted)

    def find(self, name: ModelName) -> Path:
        """The manifest's path of the model called so. Raises ModelNotFound."""
        for path in self._paths(name):
            if path.exists():
                return path
        raise self.not_found(name)

    def read(self, path: Path) -> Manifest:
        """The manifest at `path`, read again only when the file is another: every request asks for
        one. Raises FileNotFoundError, ModelCorrupt."""
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

    def not_found(self, name: ModelName) -> ModelNotFound:
        """The error for a model that is not there, with the nearest names."""
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

    def _paths(self, name: ModelName) -> Iterator[Path]:
        """Where the model called so may have its manifest."""
        yield self._layout.manifest(name)
        if entry := find(name):
            yield self._layout.manifest(entry.name)


def taken(name: ModelName, field: str) -> InvalidRequest:
    """The error for a name that another model has. `field`: of the request, to blame."""
    what = f"there is a model {name} already; choose another name, or replace or remove it"
    return InvalidRequest(violations=[FieldViolation(field, what)])


def _parse(path: Path) -> Manifest:
    try:
        return parse_manifest(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelCorrupt(
            f"the manifest {path.name} in {path.parent.name} is damaged: {error}; remove the model"
            " and get it again",
            file=path.name,
        ) from error
