"""Kills changes of a store before the steps that they take on the disk, and sees what is left.

`python -m tests.integration.store.kill_points FOLDER STRIDE SEED`; a program, since it forks. Each
`STRIDE`th step is tried, beginning with one that is drawn from the seed.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from headrace_server.store import Store, Verified
from tests.integration.store.operations import ONE, OPERATIONS, fill
from tests.stores import assert_whole, copy_store, put, spoil

_STEPS = {"open", "os.mkdir", "os.rmdir", "os.remove", "os.rename", "os.link", "os.chmod"}
"""Audit events of what changes a disk; opening a file may make it."""


def _as_it_is(home: Path) -> None:
    pass


def _damaged(home: Path) -> None:
    store = Store(home)
    spoil(store.path(store.get("one")) / "model.safetensors")


def _found_damaged(home: Path) -> None:
    _damaged(home)
    asyncio.run(OPERATIONS["verify"](Store(home), home))


def _full_of_garbage(home: Path) -> None:
    """Models that are not shared, a snapshot and a blob without a name, and a download."""
    for snapshot in list((home / "snapshots").iterdir()):
        copied = shutil.copytree(snapshot, snapshot.with_suffix(".new"))
        shutil.rmtree(snapshot)
        Path(copied).rename(snapshot)
    put(Store(home), "gone", {"model.safetensors": b"gone"})
    (home / "models" / "gone" / "latest.json").unlink()
    (home / "downloads" / "half").mkdir(parents=True)
    (home / "downloads" / "half" / "part").write_bytes(b"half")


SCENES: Mapping[str, tuple[Callable[[Path], None], str]] = {
    "a new model": (_as_it_is, "put"),
    "a model replaced": (_as_it_is, "put over"),
    "the same again": (_as_it_is, "put again"),
    "the same again, healing what nobody knew": (_damaged, "put again"),
    "the same again, healing what was found": (_found_damaged, "put again"),
    "another that shares, healing": (_damaged, "put"),
    "a copy": (_as_it_is, "copy"),
    "models removed": (_as_it_is, "remove"),
    "garbage collected": (_full_of_garbage, "collect"),
    "damage found": (_damaged, "verify"),
}
"""By name: what the store is like before, and the operation."""


def _run_until(home: Path, operation: str, step: int) -> bool:
    """Whether the operation was killed: before its `step`th step, if it has as many."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) in (0, -signal.SIGKILL), status
        return os.WIFSIGNALED(status)
    taken = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal taken
        # What is only read is no step.
        if event in _STEPS and not (event == "open" and arguments[1] in ("r", "rb")):
            taken += 1
            if taken == step:
                os.kill(os.getpid(), signal.SIGKILL)

    store = Store(home)
    sys.addaudithook(hook)
    try:
        asyncio.run(OPERATIONS[operation](store, home))
    except BaseException:  # noqa: BLE001 (told, and not to go on in the parent's place)
        sys.excepthook(*sys.exc_info())
        os._exit(1)
    os._exit(0)


def _damages(home: Path) -> set[str]:
    async def read() -> set[str]:
        steps = [step async for step in Store(home).verifying([])]
        return {step.model for step in steps if isinstance(step, Verified) and step.damages}

    return asyncio.run(read())


def _see(home: Path, operation: str) -> None:
    """What a kill has left: nothing half visible, nothing lost, and all goes on."""
    store = Store(home)
    damaged_before = (home / "was-damaged").exists()
    for manifest in store.list():
        if not damaged_before:
            store.verify(manifest)
    if operation != "remove":
        assert {"one:latest", "adapted:latest", "other:latest"} <= {
            manifest.full_name for manifest in store.list()
        }
    asyncio.run(OPERATIONS[operation](Store(home), home))
    if operation == "remove":  # What has no name any more cannot be removed again.
        asyncio.run(OPERATIONS["collect"](Store(home), home))
    if operation == "verify":
        assert _damages(home) == {"one:latest", "adapted:latest"}
        put(Store(home), "one", ONE, replace=True)
    assert _damages(home) == set()
    assert_whole(home)


def main(folder: Path, stride: int, seed: int) -> None:
    draw = random.Random(seed)
    # A kill loses nothing that was written, unlike a power cut.
    os.fsync = lambda fd: None
    base = folder / "base"
    fill(base)
    for name, (prepare, operation) in SCENES.items():
        scene = copy_store(base, folder / "scene")
        prepare(scene)
        if prepare in (_damaged, _found_damaged):
            (scene / "was-damaged").touch()
        kills, step = 0, draw.randint(1, stride)
        while True:
            home = copy_store(scene, folder / "home")
            killed = _run_until(home, operation, step)
            try:
                _see(home, operation)
            except BaseException as error:
                error.add_note(f"{name}: killed before step {step}")
                raise
            shutil.rmtree(home)
            if not killed:
                break
            kills += 1
            step += stride
        print(f"{name}: killed {kills} times")
        assert stride > 1 or kills > 10
        shutil.rmtree(scene)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
