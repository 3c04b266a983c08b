"""Adapters in a store: found by their base, refused by name, and a base that they need stays."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from headrace.errors import (
    InvalidRequest,
    ModelCorrupt,
    ModelInUse,
    ModelNotFound,
    UnsupportedCapability,
    UnsupportedParameter,
)
from headrace_server.store import ImportOptions, Store
from headrace_server.store.manifest import parse_manifest
from tests.adapters import of_directory, write_mlx, write_peft
from tests.stores import copy_store

BASE = "tiny:q4"


@pytest.fixture(scope="module")
def adapted_home(filled_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with the base, and one adapter of it that came in both forms."""
    folder = tmp_path_factory.mktemp("adapted")
    store = Store(copy_store(filled_home, folder / "home"))
    made = of_directory(store.path(store.get(BASE)), seed=1)
    over = ImportOptions(base=BASE)
    asyncio.run(store.import_model(write_mlx(folder / "mlx", made), "pirate", options=over))
    asyncio.run(
        store.import_model(write_peft(folder / "peft", made), "crew/pirate:2", options=over)
    )
    return folder / "home"


@pytest.fixture
def store(adapted_home: Path, tmp_path: Path) -> Store:
    return Store(copy_store(adapted_home, tmp_path / "home"))


async def test_an_adapter_is_a_model_of_the_store_with_a_base(store: Store) -> None:
    base, pirate, same = (store.get(name) for name in (BASE, "pirate", "crew/pirate:2"))
    assert pirate.digest == same.digest
    assert pirate.adapter is not None
    assert (pirate.kind, pirate.source, pirate.adapter.base) == ("adapter", "mlx", BASE)
    assert pirate.adapter.is_of(base.digest)
    assert parse_manifest(pirate.to_json()) == pirate
    assert store.adapter(base, "pirate") == pirate
    assert store.adapter(store.copy(BASE, "again"), "crew/pirate:2") == same
    store.verify(pirate)
    assert not (await store.collect_garbage()).items
    store.check(pirate)


async def test_a_base_stays_as_long_as_it_has_adapters(store: Store) -> None:
    with pytest.raises(ModelInUse, match=r"tiny:q4 has adapters .*: crew/pirate:2, pirate:latest;"):
        store.delete(BASE)
    store.copy(BASE, "again")
    assert store.delete(BASE) == 0  # Another name still has it.
    with pytest.raises(ModelInUse, match=r"again:latest has adapters"):
        store.delete("again")
    assert store.delete("pirate") == 0
    assert store.delete("crew/pirate:2") > 0
    assert store.delete("again") > 0
    assert store.list() == []


async def test_a_base_that_is_replaced_is_not_kept_for_its_adapters(
    store: Store, tiny_gguf: Path
) -> None:
    old = store.path(store.get(BASE))
    other = ImportOptions(quantize="none")
    replaced = await store.import_model(tiny_gguf, BASE, replace=True, options=other)
    assert not old.exists()
    with pytest.raises(UnsupportedParameter, match=r"pirate:latest is an adapter of tiny:q4, who"):
        store.adapter(replaced, "pirate")


async def test_unknown_names_are_answered_with_near_ones(store: Store) -> None:
    base = store.get(BASE)
    for name, answer in {
        "pirat": r"tiny:q4 has no adapter 'pirat'; did you mean pirate:latest, crew/pirate:2\?",
        "zebra": r"'zebra'; it has crew/pirate:2, pirate:latest",
        BASE: r"tiny:q4 is a model and no adapter",
    }.items():
        with pytest.raises(UnsupportedParameter, match=answer):
            store.adapter(base, name)
    with pytest.raises(InvalidRequest, match=r"is no model name") as caught:
        store.adapter(base, "../pirate")
    assert [violation.field for violation in caught.value.violations] == ["adapter"]


async def test_the_base_has_to_be_a_language_model_that_is_there(store: Store) -> None:
    source = store.path(store.get("pirate"))
    with pytest.raises(ModelNotFound, match=r"tiny:q5"):
        await store.import_model(source, "second", options=ImportOptions(base="tiny:q5"))
    with pytest.raises(UnsupportedCapability, match=r"pirate:latest is an adapter itself"):
        await store.import_model(source, "second", options=ImportOptions(base="pirate"))


async def test_a_damaged_adapter_says_how_to_get_it_again(store: Store) -> None:
    weights = store.path(store.get("pirate")) / "adapters.safetensors"
    weights.unlink()
    with pytest.raises(ModelCorrupt, match=r"import mlx again .* --replace and --base tiny:q4"):
        store.adapter(store.get(BASE), "pirate")
