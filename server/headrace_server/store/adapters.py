"""Adapters among the models of a store: which there are of a model, and what they need of it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headrace.errors import (
    FieldViolation,
    InvalidRequest,
    ModelCorrupt,
    ModelInUse,
    UnsupportedCapability,
    UnsupportedParameter,
)
from headrace_server.store.layout import Layout
from headrace_server.store.lookup import Lookup
from headrace_server.store.manifest import Manifest
from headrace_server.store.names import parse_name

_SHOWN = 5


class Adapters:
    """The adapters of one store."""

    def __init__(self, layout: Layout, lookup: Lookup) -> None:
        self._layout = layout
        self._lookup = lookup

    def find(self, model: Manifest, name: str) -> Manifest:
        """The adapter of `model` that is called so.

        Raises InvalidRequest for what is no name, UnsupportedParameter with the names that there
        are, and ModelCorrupt for a damaged manifest.
        """
        path = self._layout.manifest(parse_name(name, field="adapter"))
        try:
            found = self._lookup.read(path)
        except FileNotFoundError:
            raise self._unknown(model, name) from None
        if found.adapter is None:
            what = f"{found.full_name} is a model and no adapter; ask it itself"
            raise UnsupportedParameter(what, field="adapter")
        if not found.adapter.is_of(model.digest):
            what = (
                f"{found.full_name} is an adapter of {found.adapter.base}, whose files are not "
                f"those of {model.full_name}; import it over this one, or ask its own base"
            )
            raise UnsupportedParameter(what, field="adapter")
        return found

    def base(self, name: str) -> Manifest:
        """The model called `name`, for an adapter to be imported over.

        Raises ModelNotFound, UnsupportedCapability for what is no language model, ModelCorrupt.
        """
        parse_name(name, field="base")
        found = self._lookup.get(name)
        if found.kind != "text":
            what = "an adapter itself" if found.adapter else f"a model for {found.kind}"
            raise UnsupportedCapability(
                f"{found.full_name} is {what}; an adapter needs a language model as its base",
                model=found.full_name,
                capability="adapter",
            )
        return found

    def check_base(self, manifest: Manifest) -> None:
        """See that an adapter's base is still there, within `changing`. Raises InvalidRequest."""
        facts = manifest.adapter
        if facts and not any(facts.is_of(model.digest) for model in self._lookup.list()):
            what = f"{facts.base} was removed or replaced meanwhile; import the adapter again"
            raise InvalidRequest(violations=[FieldViolation("base", what)])

    def check_unneeded(self, path: Path) -> None:
        """See that no adapter needs the model whose manifest is at `path`, within `changing`.

        One that has another name may go. Raises ModelInUse naming the adapters.
        """
        try:
            digest = self._lookup.read(path).digest
        except ModelCorrupt:
            return  # It serves nobody.
        listed = self._lookup.list()
        if sum(model.digest == digest for model in listed) > 1:
            return
        names = [m.full_name for m in listed if m.adapter and m.adapter.is_of(digest)]
        if names:
            model = self._lookup.read(path).full_name
            what = f"{model} has adapters that need it: {_few(names)}; remove these first"
            raise ModelInUse(what, model=model)

    def _unknown(self, model: Manifest, name: str) -> UnsupportedParameter:
        known = [
            found.full_name
            for found in self._lookup.list()
            if found.adapter and found.adapter.is_of(model.digest)
        ]
        stems = {full.partition(":")[0]: full for full in known} | {full: full for full in known}
        near = dict.fromkeys(stems[word] for word in difflib.get_close_matches(name, stems))
        hint = f"did you mean {', '.join(near)}?" if near else f"it has {_few(known) or 'none'}"
        what = f"{model.full_name} has no adapter {name!r}; {hint}"
        return UnsupportedParameter(what, field="adapter")


def over(base: Manifest, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a manifest says of an adapter, with its base."""
    digest = base.digest.removeprefix("sha256:")
    return {**facts, "base": base.full_name, "base_digest": digest}


def _few(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
