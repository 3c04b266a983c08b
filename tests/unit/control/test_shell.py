"""The scheduler's shell: what it feeds the core, with runners that are fakes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from headrace.errors import DeadlineUnreachable, Draining, InsufficientMemory
from headrace_server.monitoring.levels import open_circuits
from headrace_server.runners.lifecycle import State as RunnerState
from headrace_server.scheduling.state import Limits, Phase, Policy, State
from headrace_server.scheduling.ticket import Runner, Wanted
from headrace_server.scheduling.timing import LONG_PROMPT
from tests.unit.control.fakes import FakeModel
from tests.unit.control.stages import Stage


@pytest_asyncio.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    stage = Stage(tmp_path)
    yield stage
    await stage.scheduler.close()


async def test_c3_a_runner_whose_health_says_so_is_stalled_and_another_stands_in(
    stage: Stage,
) -> None:
    with stage.scheduler.ask(FakeModel()) as first:
        await first.granted()
        runner = stage.launcher.runners[0]
        runner.state = RunnerState.STALLED
        stage.scheduler.runner_changed()
        assert stage.phases() == [Phase.STALLED]
        with stage.scheduler.ask(FakeModel()) as second:
            await second.granted()
            assert second.life is not first.life
        runner.state = RunnerState.SERVING
        stage.scheduler.runner_changed()
        assert stage.phases()[0] is Phase.SERVING


async def test_c3_one_that_stalls_while_it_is_to_go_frees_its_requests_too(stage: Stage) -> None:
    with stage.scheduler.ask(FakeModel()) as ticket:
        await ticket.granted()
        unloading = asyncio.create_task(stage.scheduler.unload(FakeModel().key))
        await stage.until(lambda: stage.phases() == [Phase.RETIRING])
        runner = stage.launcher.runners[0]
        runner.state = RunnerState.STALLED
        stage.scheduler.runner_changed()
        assert ticket.life.stalled.done()
        runner.state = RunnerState.SERVING
        stage.scheduler.runner_changed()
        assert not ticket.life.stalled.done()
        assert stage.phases() == [Phase.RETIRING]
    assert await unloading == 1


async def test_several_runners_of_a_model_are_told_counted_and_unloaded(stage: Stage) -> None:
    model = FakeModel(policy=Policy(concurrency=1, replicas=2))
    with stage.scheduler.ask(model) as first, stage.scheduler.ask(model) as second:
        await first.granted()
        await second.granted()
        assert first.life is not second.life
        assert {slot.runner for slot, _ in stage.scheduler.runners_of(model.key)} == {"r1", "r2"}
        assert stage.scheduler.in_use(model.key)
    assert not stage.scheduler.in_use(model.key)
    assert await stage.scheduler.unload(model.key) == 2
    assert await stage.scheduler.unload(model.key) == 0


async def test_a_first_token_is_told_once_and_crashes_after_it_do_not_count(stage: Stage) -> None:
    for _ in range(10):
        with stage.scheduler.ask(FakeModel()) as ticket:
            await ticket.granted()
            ticket.advanced()
            ticket.advanced()
            assert ticket.life.advanced
            await stage.launcher.runners[-1].die()
            await ticket.life.gone.wait()


async def test_crashes_without_a_first_token_open_the_circuit(stage: Stage) -> None:
    for _ in range(3):
        with stage.scheduler.ask(FakeModel()) as ticket:
            await ticket.granted()
            await stage.launcher.runners[-1].die()
            await ticket.life.gone.wait()
    with stage.scheduler.ask(FakeModel()) as ticket, pytest.raises(Exception, match="crash"):
        await ticket.granted()


async def test_nobody_is_given_a_runner_that_died_before_it_said_what_it_holds(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    deaths: list[asyncio.Task[None]] = []
    measure = stage.launcher.measure

    async def die(runner: Any, wanted: Wanted) -> int | None:
        if deaths:
            return await measure(runner, wanted)
        deaths.append(asyncio.create_task(runner.die("NATIVE_ABORT", delay=0.05)))
        return None

    monkeypatch.setattr(stage.launcher, "measure", die)
    with stage.scheduler.ask(FakeModel()) as ticket:
        await ticket.granted()
        assert ticket.life.id == "r2"


async def test_one_that_does_not_say_what_it_holds_and_lives_serves(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def silent(runner: Runner, wanted: Wanted) -> int | None:
        return None

    monkeypatch.setattr(stage.launcher, "measure", silent)
    with stage.scheduler.ask(FakeModel()) as ticket:
        await ticket.granted()
        assert ticket.life.id == "r1"


async def test_places_in_the_queue_are_counted_once_for_all_who_look(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []
    count = State.positions

    def positions(state: State) -> dict[int, int]:
        counted.append(len(state.waiting))
        return count(state)

    monkeypatch.setattr(State, "positions", positions)
    stage.launcher.hold = True
    with contextlib.ExitStack() as stack:
        tickets = [stack.enter_context(stage.scheduler.ask(FakeModel())) for _ in range(20)]
        counted.clear()
        stage.scheduler.runner_changed()
        for place, ticket in enumerate(tickets):
            async with contextlib.aclosing(ticket.waiting(30.0)) as waits:
                wait = await anext(waits)
            assert wait.queue_position == place
    assert len(counted) <= 1


async def test_a_runner_in_use_is_asked_what_it_holds_and_an_idle_one_is_not(
    stage: Stage,
) -> None:
    def held() -> int:
        return stage.scheduler.runners_of(FakeModel().key)[0][0].memory

    with stage.scheduler.ask(FakeModel()) as ticket:
        await ticket.granted()
        stage.launcher.memory = 33
        await stage.until(lambda: held() == 33)
        stage.launcher.memory = 44
        await stage.until(lambda: held() == 44)
    # What was grown since the last look is still seen; then nobody looks any more.
    stage.launcher.memory = 55
    await stage.until(lambda: held() == 55)
    assert not ticket.life.used.is_set()


async def test_a_machine_short_of_memory_loses_its_biggest_idle_model(stage: Stage) -> None:
    for model in (FakeModel("small", needs=10), FakeModel("big", needs=50)):
        with stage.scheduler.ask(model) as ticket:
            await ticket.granted()
    stage.short = 20
    await stage.until(lambda: not stage.scheduler.runners_of("big"))
    assert stage.phases("small") == [Phase.SERVING]
    stage.short = 0
    with stage.scheduler.ask(FakeModel("big", needs=50)) as ticket:
        await ticket.granted()


async def test_a_look_at_memory_that_goes_wrong_is_not_the_last(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: asyncio.Queue[str] = asyncio.Queue()

    def broken(*of: object) -> int:
        looks.put_nowait("runner" if of else "machine")
        raise KeyError("broken on purpose")

    with stage.scheduler.ask(FakeModel()) as ticket:
        await ticket.granted()
        with monkeypatch.context() as patch:
            patch.setattr(stage.launcher, "measure", broken)
            patch.setattr(stage.scheduler, "_shortage", broken)
            seen: list[str] = []
            async with asyncio.timeout(10):
                while min(seen.count("runner"), seen.count("machine")) < 2:
                    seen.append(await looks.get())
        stage.launcher.memory, stage.short = 33, 20
        await stage.until(lambda: stage.scheduler.runners_of(FakeModel().key)[0][0].memory == 33)
    # The machine is short of memory, and the runner is idle now.
    await stage.until(lambda: not stage.scheduler.runners())


async def test_a9_what_was_measured_decides_whether_a_deadline_can_be_met(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler, prompt = stage.scheduler, 100 * LONG_PROMPT
    now = scheduler.now()
    monkeypatch.setattr(scheduler, "now", lambda: now)
    for _ in range(20):
        with scheduler.ask(FakeModel(), prompt_bytes=LONG_PROMPT) as ticket:
            await ticket.granted()
            now += 1.0  # Its prompt takes a second.
            ticket.advanced()
    with (
        scheduler.ask(FakeModel(), deadline=scheduler.now() + 50.0, prompt_bytes=prompt) as ticket,
        pytest.raises(DeadlineUnreachable) as refused,
    ):
        await ticket.granted()
    assert 90.0 < float(refused.value.metadata["estimate"]) <= 100.0
    with scheduler.ask(
        FakeModel(), deadline=scheduler.now() + 150.0, prompt_bytes=prompt
    ) as ticket:
        await ticket.granted()


async def test_a_stream_from_before_has_a_runner_of_its_own_options_which_goes_after_it(
    stage: Stage,
) -> None:
    scheduler, old = stage.scheduler, FakeModel("old", policy=Policy(pinned=True))
    with scheduler.ask(old) as ticket:
        await ticket.granted()
        scheduler.keep_only({"new": Policy()})
        await stage.launcher.runners[0].die()
        await ticket.life.gone.wait()
    with scheduler.ask(old, moved=True) as ticket:
        await ticket.granted()
        await stage.until(lambda: stage.phases("old") == [Phase.RETIRING])
    await stage.until(lambda: not scheduler.runners())


async def test_c1_a_stream_whose_runner_dies_during_a_drain_goes_on_with_another(
    stage: Stage,
) -> None:
    scheduler = stage.scheduler
    with scheduler.ask(FakeModel()) as ticket:
        await ticket.granted()
        scheduler.drain()
        await stage.launcher.runners[0].die()
        await ticket.life.gone.wait()
    with scheduler.ask(FakeModel(), moved=True) as ticket:
        await ticket.granted()
        assert scheduler.runners()
    async with asyncio.timeout(10):
        await scheduler.drained()


async def test_a_scheduler_that_is_closed_gives_nobody_another_runner(stage: Stage) -> None:
    stage.launcher.hold = True
    with stage.scheduler.ask(FakeModel(), moved=True) as ticket:
        await stage.launcher.launched.get()
        async with asyncio.timeout(10):
            await stage.scheduler.close()
        with pytest.raises(Draining):
            await ticket.granted()
    assert stage.launcher.launched.empty()


async def test_one_that_waits_since_before_has_such_a_runner_too(stage: Stage) -> None:
    scheduler, old = stage.scheduler, FakeModel("old", policy=Policy(pinned=True))
    stage.launcher.hold = True
    with scheduler.ask(old) as ticket:
        await stage.launcher.launched.get()
        scheduler.keep_only({"new": Policy()})
        stage.launcher.hold = False
        await stage.launcher.runners[0].die("NATIVE_ABORT")
        await ticket.granted()
    await stage.until(lambda: not scheduler.runners())


async def test_a_model_that_another_process_has_stored_stays_loaded(stage: Stage) -> None:
    stage.scheduler.keep_only({"known": Policy()})
    with stage.scheduler.ask(FakeModel("unknown")) as ticket:
        await ticket.granted()
    assert stage.phases("unknown") == [Phase.SERVING]
    stage.scheduler.runner_changed()
    assert stage.phases("unknown") == [Phase.SERVING]


async def test_what_went_wrong_with_a_model_is_forgotten_with_it(stage: Stage) -> None:
    async def crash() -> None:
        with stage.scheduler.ask(FakeModel()) as ticket:
            await ticket.granted()
            await stage.launcher.runners[-1].die()
            await ticket.life.gone.wait()

    for _ in range(2):
        await crash()
    stage.scheduler.keep_only({})
    await crash()
    with stage.scheduler.ask(FakeModel()) as ticket:
        await ticket.granted()


async def test_the_policy_of_a_key_is_that_of_all_its_names(stage: Stage) -> None:
    strongest, weakest = Policy(pinned=True), Policy(keep_alive=0.0)
    stage.scheduler.keep_only({"shared": strongest})
    for moved in (False, True):
        with stage.scheduler.ask(FakeModel("shared", policy=weakest), moved=moved) as ticket:
            await ticket.granted()
    ((slot, _),) = stage.scheduler.runners_of("shared")
    assert slot.policy == strongest
    stage.scheduler.keep_only({"shared": weakest})
    await stage.until(lambda: not stage.scheduler.runners())


async def test_of_other_limits_who_waits_already_feels_the_memory_alone(stage: Stage) -> None:
    stage.launcher.hold = True
    big, small = FakeModel("big", needs=80), FakeModel("small", needs=40)
    with (
        stage.scheduler.ask(small) as loading,
        stage.scheduler.ask(big) as first,
        stage.scheduler.ask(small) as second,
    ):
        stage.scheduler.set_limits(Limits(60, queue_per_model=0, queue_total=0))
        with pytest.raises(InsufficientMemory):
            await first.granted()
        (await stage.launcher.launched.get()).loaded.set()
        await loading.granted()
        await second.granted()


async def test_who_waits_is_counted_by_model(stage: Stage) -> None:
    stage.launcher.hold = True
    models = [FakeModel(), FakeModel(), FakeModel(key="other", name="other:1", needs=20)]
    with ExitStack() as asking:
        for model in models:
            asking.enter_context(stage.scheduler.ask(model))
        assert stage.scheduler.state.queues() == {"fake:latest": 2, "other:1": 1}
    assert stage.scheduler.state.queues() == {}
    assert stage.scheduler.limits.memory == 100


async def test_a_runner_has_the_name_that_the_one_it_is_for_has_asked_for(stage: Stage) -> None:
    first, last = FakeModel("shared", needs=40, name="one:1"), FakeModel("shared", name="two:2")
    with stage.scheduler.ask(FakeModel("big", needs=80)) as big:
        await big.granted()
        waiting = ExitStack()
        tickets = [waiting.enter_context(stage.scheduler.ask(model)) for model in (first, last)]
    with waiting:
        assert stage.scheduler.state.queues() == {"one:1": 2}
        for ticket in tickets:
            await ticket.granted()
        ((slot, life),) = stage.scheduler.runners_of("shared")
        assert (slot.name, life.wanted.name) == ("one:1", "one:1")


async def test_a_model_that_crashed_keeps_its_name_though_nobody_wants_it(stage: Stage) -> None:
    for _ in range(3):
        with stage.scheduler.ask(FakeModel()) as ticket:
            await ticket.granted()
            await stage.launcher.runners[-1].die()
            await ticket.life.gone.wait()
    assert open_circuits(stage.scheduler.state) == {"fake:latest": 1}
