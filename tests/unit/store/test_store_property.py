"""Any sequence of changes leaves the store as a dictionary of dictionaries says that it is."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from headrace.errors import InvalidRequest, ModelCorrupt, ModelNotFound
from headrace_server.store import Store, Verified
from tests.stores import assert_whole, put, spoil

NAMES = st.sampled_from(["a:latest", "b:latest", "b:2", "team/c:latest"])
CONTENTS = [b"x" * 1000, b"y" * 1000, b"z" * 10]
FILES = st.dictionaries(
    st.sampled_from(["model.safetensors", "config.json", "parts/words.json"]),
    st.sampled_from(CONTENTS),
    min_size=1,
)


class Changes(RuleBasedStateMachine):
    """The store, and what it should be."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.home = Path(self.folder.name)
        self.models: dict[str, dict[str, bytes]] = {}
        self.damaged: set[bytes] = set()
        """Contents that lie on the disk with another bit in them."""

    @property
    def store(self) -> Store:
        """Each time as another process would have it."""
        return Store(self.home)

    @property
    def contents(self) -> set[bytes]:
        return {data for files in self.models.values() for data in files.values()}

    @rule(name=NAMES, files=FILES, replace=st.booleans())
    def bring(self, name: str, files: dict[str, bytes], replace: bool) -> None:
        try:
            put(self.store, name, files, replace=replace)
        except InvalidRequest:
            assert name in self.models
            assert not replace
            return
        assert replace or name not in self.models
        self.models[name] = files
        self.damaged -= set(files.values())  # All that share them are right again.
        self.damaged &= self.contents

    @rule(source=NAMES, name=NAMES)
    def copy(self, source: str, name: str) -> None:
        try:
            self.store.copy(source, name)
        except ModelNotFound:
            assert source not in self.models
        except InvalidRequest:
            assert self.models[name] != self.models[source]
        else:
            assert self.models.get(name) in (None, self.models[source])
            self.models[name] = self.models[source]

    @rule(name=NAMES)
    def delete(self, name: str) -> None:
        before = self.contents
        try:
            freed = self.store.delete(name)
        except ModelNotFound:
            assert name not in self.models
            return
        del self.models[name]
        self.damaged &= self.contents
        assert freed == sum(map(len, before - self.contents))

    @rule()
    def collect(self) -> None:
        assert asyncio.run(self.store.collect_garbage()).items == ()

    @precondition(lambda self: self.contents - self.damaged)
    @rule(data=st.data())
    def damage(self, data: st.DataObject) -> None:
        content = data.draw(st.sampled_from(sorted(self.contents - self.damaged)))
        name, path = next(
            (name, path)
            for name, files in self.models.items()
            for path, found in files.items()
            if found == content
        )
        spoil(self.store.path(self.store.get(name)) / path)
        self.damaged.add(content)

    @rule()
    def verify(self) -> None:
        async def found() -> dict[str, set[str]]:
            steps = [step async for step in self.store.verifying([])]
            return {s.model: {d.file for d in s.damages} for s in steps if isinstance(s, Verified)}

        expected = {
            name: {path for path, data in files.items() if data in self.damaged}
            for name, files in self.models.items()
        }
        assert asyncio.run(found()) == expected
        for name, damages in expected.items():
            manifest = self.store.get(name)
            if not damages:
                self.store.check(manifest)
                continue
            with pytest.raises(ModelCorrupt) as caught:
                self.store.check(manifest)
            assert caught.value.metadata["file"] in damages

    @invariant()
    def lists_what_there_is(self) -> None:
        assert {
            manifest.full_name: {file.path: file.size for file in manifest.files}
            for manifest in self.store.list()
        } == {
            name: {path: len(data) for path, data in files.items()}
            for name, files in self.models.items()
        }

    @invariant()
    def is_whole_unless_it_was_damaged(self) -> None:
        if not self.damaged:
            assert_whole(self.home)

    def teardown(self) -> None:
        self.folder.cleanup()


TestChanges = Changes.TestCase
TestChanges.settings = settings(max_examples=12, stateful_step_count=20)
