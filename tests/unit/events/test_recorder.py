"""What is noted of runners that change, and what is logged, with a scheduler made of values."""

from __future__ import annotations

import asyncio
import logging
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.context import Context

from headrace_server.config import ServerConfig
from headrace_server.events import recorder as recorders
from headrace_server.events.recorder import Recorder
from headrace_server.events.views import ModelView, runner_view
from headrace_server.runners.diagnosis import Death
from headrace_server.runners.lifecycle import State
from headrace_server.scheduling.loading import Load
from headrace_server.scheduling.planner import runner_key
from headrace_server.scheduling.state import Phase, Policy, Slot, Why
from headrace_server.scheduling.ticket import Life
from headrace_server.store.manifest import Manifest
from tests.unit.control.fakes import FakeModel

OPTIONS = ServerConfig().options("words:latest")


@dataclass
class Process:
    """A runner as far as it is looked at."""

    dead: asyncio.Task[Death]
    state: State = State.STARTING
    fraction: float = 0.0
    pid: int = 7


class Stage:
    """One model, its runners, and who records them."""

    def __init__(self) -> None:
        self.runners: dict[str, tuple[Slot, Life]] = {}
        self.recorder = Recorder(self.runners.values)
        self.recorder.store_has([self.model("words")], None)
        self.recorder.look()
        self.seen = self.recorder.journal.revision

    def model(self, name: str, digest: str = "sha256:w") -> ModelView:
        manifest = Manifest(
            name=name,
            tag="latest",
            kind="text",
            format="mlx",
            architecture="llama",
            digest=digest,
            files=(),
            tensor_bytes=1,
            parameters=1,
            context_length=1,
            quantization="",
            layers=1,
            kv_heads=1,
            head_dim=1,
            vocab_size=1,
            chat_template=None,
            license=None,
            source="test",
            created_at="2026-01-02T03:04:05+00:00",
        )
        return ModelView(manifest, OPTIONS, runner_key(digest, OPTIONS))

    async def start(self, name: str = "r1", digest: str = "sha256:w") -> Any:
        async def dies() -> Death:
            return Death("SIGNAL", "killed")

        process: Any = Process(asyncio.create_task(dies()))
        await process.dead
        wanted = FakeModel(runner_key(digest, OPTIONS), digest, name="words:latest")
        slot = Slot(
            name, wanted.key, wanted.name, 10, Policy(), 300.0, started_at=0.0, idle_since=0.0
        )
        load = Load(name, wanted.name, digest, 0.0, Context())
        self.runners[name] = (slot, Life(name, wanted, load, runner=process))
        return process

    def slot(self, name: str = "r1", **changes: Any) -> None:
        slot, life = self.runners[name]
        self.runners[name] = (replace(slot, **changes), life)

    def told(self) -> list[list[tuple[str, str, str]]]:
        """Runners of each new entry: id, state, why."""
        self.recorder.look()
        changes = self.recorder.journal.since(self.seen)
        assert changes is not None
        self.seen = self.recorder.journal.revision
        return [
            [(r.id, r.state.value, r.why) for r in change.value.runners]
            for change in changes
            if change.value is not None
        ]


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str, str]]:
    """From, to and why of each line about a runner."""
    told = [vars(record) for record in caplog.records if hasattr(record, "runner_id")]
    assert all(line["model"] == "words:latest" for line in told)
    return [(line["from"], line["to"], line["why"]) for line in told]


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, recorders.__name__)


async def test_a_life_is_told_state_by_state(caplog: pytest.LogCaptureFixture) -> None:
    stage = Stage()
    process = await stage.start()
    assert stage.told() == [[("r1", "starting", "")]]
    for state in (State.LOADING, State.SERVING, State.STALLED, State.SERVING):
        process.state = state
        assert stage.told() == [[("r1", state.value, "")]]
    assert stage.told() == []
    stage.slot(phase=Phase.RETIRING, leases=frozenset({1}))
    assert stage.told() == [[("r1", "stopping", "")]]
    stage.slot(phase=Phase.STOPPING, leases=frozenset())
    stage.runners["r1"][1].why = "keep_alive"
    assert stage.told() == [[("r1", "stopping", "KEEP_ALIVE")]]
    process.state = State.DEAD
    assert stage.told() == [[("r1", "dead", "KEEP_ALIVE")]]
    stage.runners.clear()
    assert stage.told() == [[]]
    assert lines(caplog) == [
        ("none", "starting", ""),
        ("starting", "loading", ""),
        ("loading", "serving", ""),
        ("serving", "stalled", ""),
        ("stalled", "serving", ""),
        ("serving", "stopping", ""),
        ("stopping", "dead", "KEEP_ALIVE"),
    ]
    levels = [record.levelname for record in caplog.records]
    assert levels == ["INFO", "INFO", "INFO", "WARNING", "INFO", "INFO", "INFO"]


@pytest.mark.parametrize("why", Why)
async def test_an_end_by_order_is_no_warning(why: Why, caplog: pytest.LogCaptureFixture) -> None:
    stage = Stage()
    process = await stage.start()
    stage.told()
    stage.runners["r1"][1].why = why
    process.state = State.DEAD
    assert stage.told() == [[("r1", "dead", why.name)]]
    assert {record.levelname for record in caplog.records} == {"INFO"}


@pytest.mark.parametrize(
    "page", ["docs/operations.md", "docs/scheduling.md", "protos/headrace/v1/common.proto"]
)
def test_the_pages_have_every_end_by_order(page: str) -> None:
    text = (Path(__file__).parents[3] / page).read_text(encoding="utf-8").upper()
    assert {why.name for why in Why} <= set(re.findall(r"\w+", text))


async def test_a_death_has_its_cause_and_the_next_runner_its_own_entries(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stage = Stage()
    process = await stage.start()
    process.state = State.SERVING
    stage.told()
    process.state = State.DEAD
    assert stage.told() == [[("r1", "dead", "SIGNAL")]]
    stage.runners.clear()
    await stage.start("r2")
    assert stage.told() == [[("r2", "starting", "")]]
    assert lines(caplog)[1:] == [("serving", "dead", "SIGNAL"), ("none", "starting", "")]
    assert [r.levelname for r in caplog.records] == ["INFO", "WARNING", "INFO"]


async def test_one_that_was_gone_between_two_looks_is_still_shown_dead(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stage = Stage()
    await stage.start()
    stage.told()
    stage.runners.pop("r1")[1].why = "LOAD_FAILED"
    assert stage.told() == [[("r1", "dead", "LOAD_FAILED")], []]
    assert lines(caplog)[-1] == ("starting", "dead", "LOAD_FAILED")


async def test_what_changes_all_the_time_is_told_at_a_pace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recorders, "PACE", 0.01)
    stage = Stage()
    process = await stage.start()
    process.state = State.LOADING
    stage.told()
    for percent in range(1, 90):
        process.fraction = percent / 100
        assert stage.told() == []
    async with asyncio.timeout(10):
        await stage.recorder.news()
    changes = stage.recorder.journal.since(stage.seen)
    assert changes is not None
    (change,) = changes
    assert change.value
    assert change.value.runners[0].fraction == 0.89
    # And what is pending goes with what is told at once.
    process.fraction, process.state = 0.95, State.SERVING
    assert stage.told()[-1] == [("r1", "serving", "")]
    stage.recorder.close()


async def test_models_that_come_and_go_are_logged_with_the_reason(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stage = Stage()
    words, more, new = stage.model("words"), stage.model("more"), stage.model("words", "sha256:n")
    stage.recorder.store_has([words, more], {"more:latest": "PULLED"})
    stage.recorder.store_has([words, more], {"more:latest": "PULLED"})
    stage.recorder.store_has([new], {"more:latest": "DELETED"})
    told = [vars(record) for record in caplog.records]
    assert [(line["model"], line["from"], line["to"], line["why"]) for line in told] == [
        ("more:latest", "none", "stored", "PULLED"),
        ("words:latest", "stored", "stored", "CHANGED_ELSEWHERE"),
        ("more:latest", "stored", "gone", "DELETED"),
    ]
    names = [
        (change.name, change.value is None) for change in stage.recorder.journal.since(1) or ()
    ]
    assert names == [("more:latest", False), ("more:latest", True), ("words:latest", False)]


async def test_names_of_one_digest_share_a_runner_with_equal_options_only() -> None:
    stage = Stage()
    other = replace(OPTIONS, context=9)
    alias = stage.model("alias")
    apart = replace(stage.model("apart"), options=other, key=runner_key("sha256:w", other))
    await stage.start()
    runner = runner_view(*stage.runners["r1"])
    assert stage.model("words").served_by(runner)
    assert alias.served_by(runner)
    assert not apart.served_by(runner)
    # A runner of earlier options is still one of the model it was loaded for.
    assert replace(apart, manifest=stage.model("words").manifest).served_by(runner)


async def test_those_who_watch_are_woken_at_the_end() -> None:
    stage = Stage()
    waiting = asyncio.create_task(stage.recorder.news())
    await asyncio.sleep(0)
    stage.recorder.end()
    async with asyncio.timeout(5):
        await waiting
    assert stage.recorder.ended
