"""What the planner makes of models and their options: policies, and the keys that there were."""

import asyncio
import math
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from headrace.host.kernels import Kernels
from headrace.host.machine import Machine
from headrace_server.config import ServerConfig
from headrace_server.hosting import Hosting
from headrace_server.runners.spares import Activity
from headrace_server.scheduling.planner import Planner, policies
from headrace_server.scheduling.state import Policy
from headrace_server.store import AdapterFacts, Manifest, Store
from tests.unit.control.fakes import put_manifest
from tests.unit.host.machines import GIB, LINUX_CPU, LINUX_CUDA

PLAIN = ServerConfig().options("a:latest")


def test_names_that_share_runners_get_what_any_of_them_asks_for() -> None:
    pinned = replace(PLAIN, pinned=True, keep_alive=10.0)
    many = replace(PLAIN, replicas=3)
    lasting = replace(PLAIN, keep_alive=math.inf)
    strongest = Policy(PLAIN.max_concurrency, math.inf, pinned=True, replicas=3)
    for names in ((pinned, many, lasting), (lasting, many, pinned)):
        found = policies([*(("shared", options) for options in names), ("other", PLAIN)])
        assert found["shared"] == strongest
        assert found["other"] == Policy(PLAIN.max_concurrency, PLAIN.keep_alive)


async def test_keys_of_before_are_known_until_the_files_are_gone(tmp_path: Path) -> None:
    async def host() -> Hosting:
        return Hosting(LINUX_CPU, {}, has_blas=True, kernels=Kernels(), problem="")

    put_manifest(tmp_path, "words", "text")
    store, config = Store(tmp_path), ServerConfig(spare=False)
    manifest, hosting = store.get("words"), asyncio.create_task(host())
    planner = Planner(config, store, hosting, GIB, lambda _: None, lambda: Activity.QUIET)
    old = (await planner.plan(manifest)).key
    planner.set_config(replace(config, context=64), GIB)
    new = (await planner.plan(manifest)).key
    planner.store_has([manifest])
    assert planner.keys(manifest.digest) == {old, new}
    planner.store_has([])
    assert not planner.keys(manifest.digest)


@pytest.mark.parametrize(
    ("machine", "dtype", "each"),
    [(LINUX_CPU, "auto", 4), (LINUX_CPU, "stored", 4), (LINUX_CUDA, "auto", 2)],
)
async def test_the_largest_adapters_of_a_model_count_for_its_memory(
    tmp_path: Path, machine: Machine, dtype: Literal["auto", "stored"], each: int
) -> None:
    """`each`: bytes of a number in memory, of adapters that are stored in half precision."""

    async def host() -> Hosting:
        return Hosting(machine, {}, has_blas=True, kernels=Kernels(), problem="")

    def adapter(number: int, base: str) -> Manifest:
        facts = AdapterFacts("words:latest", base.removeprefix("sha256:"), 4, 1, ("q",))
        name, digest = f"a{number}", f"sha256:{number}"
        made = replace(words, name=name, digest=digest, kind="adapter", adapter=facts)
        return replace(made, parameters=number, tensor_bytes=2 * number)

    put_manifest(tmp_path, "words", "text")
    store, config = Store(tmp_path), ServerConfig(spare=False, dtype=dtype)
    words, hosting = store.get("words"), asyncio.create_task(host())
    planner = Planner(config, store, hosting, GIB, lambda _: None, lambda: Activity.QUIET)
    planner.store_has([words])
    plain = await planner.plan(words)
    adapters = [adapter(number, words.digest) for number in range(1, 11)]
    planner.store_has([words, *adapters, adapter(99, "sha256:other")])
    more = await planner.plan(words)
    assert more.needs - plain.needs == each * sum(range(3, 11))
    assert [one.needs for one in more.estimates] == [
        one.needs + more.adapter_bytes for one in plain.estimates
    ]
    assert (await planner.plan(words)) is more
    own = await planner.plan(adapters[-1])
    assert (own.needs, own.estimates) == (10 * each, ())
    planner.store_has([words])
    assert (await planner.plan(words)).needs == plain.needs
