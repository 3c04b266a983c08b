"""One change of a store in a process of its own, so that it can be killed.

`python -m tests.integration.store.operations HOME OPERATION` says "ready" before it begins, and
"done" after it; with `churn OWN SEED CHANGES` in place of the operation it makes so many changes of
models called OWN and a number.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from pathlib import Path

from headrace.errors import ModelNotFound
from headrace_server.store import Store
from tests.stores import put

WEIGHTS = b"weights " * 4000
ONE = {"model.safetensors": WEIGHTS, "config.json": b"{}", "parts/tokenizer.json": b"words"}
ADAPTED = ONE | {"README.md": b"adapted"}
OTHER = {"model.safetensors": b"more " * 5000, "config.json": b"{}"}
GGUF = "model.gguf"
"""Lies in the home, to be imported."""


async def _import(store: Store, home: Path) -> None:
    await store.import_model(home / GGUF, "imported", replace=True)


async def _replace(store: Store, home: Path) -> None:
    await store.import_model(home / GGUF, "one", replace=True)


async def _put(store: Store, home: Path) -> None:
    put(store, "new", ADAPTED, replace=True)


async def _put_over(store: Store, home: Path) -> None:
    put(store, "one", OTHER, replace=True)


async def _put_again(store: Store, home: Path) -> None:
    put(store, "one", ONE, replace=True)


async def _copy(store: Store, home: Path) -> None:
    store.copy("one", "second")


async def _remove(store: Store, home: Path) -> None:
    for name in ("adapted", "one"):
        with suppress(ModelNotFound):
            store.delete(name)


async def _collect(store: Store, home: Path) -> None:
    await store.collect_garbage()


async def _verify(store: Store, home: Path) -> None:
    async for _ in store.verifying([]):
        pass


Operation = Callable[[Store, Path], Coroutine[None, None, None]]
OPERATIONS: Mapping[str, Operation] = {
    "import": _import,
    "remove": _remove,
    "collect": _collect,
    "replace": _replace,
    "copy": _copy,
    "verify": _verify,
    "put": _put,
    "put over": _put_over,
    "put again": _put_again,
}


def fill(home: Path) -> None:
    """Two models that share files, and one of its own."""
    store = Store(home)
    put(store, "one", ONE)
    put(store, "adapted", ADAPTED)
    put(store, "other", OTHER)


def churn(home: Path, own: str, seed: int, changes: int) -> None:
    """Bring, copy and remove models whose files others have as well, and see each time that what is
    there by these names is whole."""
    draw, store = random.Random(seed), Store(home)
    parts = [bytes([n]) * 3000 for n in range(4)]
    mine: dict[str, set[bytes]] = {}
    for _ in range(changes):
        name = f"{own}{draw.randrange(3)}"
        match draw.choice(["put", "put", "copy", "delete", "collect"]):
            case "put":
                chosen = draw.sample(parts, draw.randint(1, 3))
                put(store, name, {f"{n}.bin": part for n, part in enumerate(chosen)}, replace=True)
                mine[name] = set(chosen)
            case "copy" if mine:
                source = draw.choice(sorted(mine))
                if name not in mine:
                    store.copy(source, name)
                    mine[name] = mine[source]
            case "delete" if name in mine:
                store.delete(name)
                del mine[name]
            case "collect":
                asyncio.run(store.collect_garbage())
        for known, chosen_parts in mine.items():
            directory = store.path(store.get(known))
            assert {path.read_bytes() for path in directory.iterdir()} == chosen_parts
    assert {m.full_name for m in store.list() if m.name.startswith(own)} == {
        f"{name}:latest" for name in mine
    }


if __name__ == "__main__":
    place = Path(sys.argv[1])
    made = Store(place)
    print("ready", flush=True)
    if sys.argv[2] == "churn":
        churn(place, sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    else:
        asyncio.run(OPERATIONS[sys.argv[2]](made, place))
    print("done", flush=True)
