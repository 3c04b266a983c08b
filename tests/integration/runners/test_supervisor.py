"""Real child processes with a real health service, under a supervisor."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import tempfile
from dataclasses import replace

import grpc.aio
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from headrace_server.runners.lifecycle import Limits, State
from headrace_server.runners.spec import RunnerSpec
from headrace_server.runners.supervisor import RunnerDied, Supervisor
from tests.integration.runners.support import Supervise


async def test_a_life_from_start_to_stop(supervise: Supervise, spec: RunnerSpec) -> None:
    watched = supervise("serve")
    runner = watched.start(spec)
    with pytest.raises(RuntimeError, match="not listening"):
        _ = runner.channel
    await asyncio.wait_for(runner.ready(), 30)
    assert (runner.state, runner.fraction) == (State.SERVING, 1.0)
    check = runner.channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=HealthCheckRequest.SerializeToString,
        response_deserializer=HealthCheckResponse.FromString,
    )
    assert (await check(HealthCheckRequest())).status == HealthCheckResponse.SERVING
    death = await runner.stop(grace=10)
    assert (death.cause, death.expected, runner.state) == ("EXITED", True, State.DEAD)
    assert watched.states == [State.LOADING, State.SERVING, State.STOPPING, State.DEAD]


async def test_a_death_reaches_every_waiter(supervise: Supervise, spec: RunnerSpec) -> None:
    runner = supervise("fail").start(spec)
    results = await asyncio.gather(*(runner.ready() for _ in range(3)), return_exceptions=True)
    causes = {result.death.cause for result in results if isinstance(result, RunnerDied)}
    assert (len(results), causes) == (3, {"MODEL_CORRUPT"})


async def test_a_cancelled_waiter_leaves_the_load_to_the_others(
    supervise: Supervise, spec: RunnerSpec
) -> None:
    runner = supervise("serve").start(spec)
    first, second = asyncio.create_task(runner.ready()), asyncio.create_task(runner.ready())
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait_for(second, 30)
    assert first.cancelled()
    assert runner.state is State.SERVING


async def test_sigkill_ends_calls_in_flight_with_unavailable(
    supervise: Supervise, spec: RunnerSpec
) -> None:
    watched = supervise("serve")
    runner = watched.start(spec)
    await runner.ready()
    assert runner.pid is not None
    watch = runner.channel.unary_stream(
        "/grpc.health.v1.Health/Watch",
        request_serializer=HealthCheckRequest.SerializeToString,
        response_deserializer=HealthCheckResponse.FromString,
    )
    call = watch(HealthCheckRequest())
    await call.read()
    os.kill(runner.pid, signal.SIGKILL)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert (await runner.dead).cause == "SIGNAL"
    assert watched.states[-1] is State.DEAD


async def test_a_child_that_never_listens(supervise: Supervise, spec: RunnerSpec) -> None:
    runner = supervise("silent", Limits(start=0.5)).start(spec)
    with pytest.raises(RunnerDied, match="did not report an address"):
        await asyncio.wait_for(runner.ready(), 10)
    assert (await runner.dead).cause == "STALLED"


async def test_a_load_without_progress(supervise: Supervise, spec: RunnerSpec) -> None:
    runner = supervise("stuck", Limits(load=0.5)).start(spec)
    with pytest.raises(RunnerDied, match="no progress"):
        await asyncio.wait_for(runner.ready(), 30)


@pytest.mark.parametrize("mode", ["mute-at-start", "mute-at-load"])
async def test_a_child_that_closes_its_report_pipe(
    supervise: Supervise, spec: RunnerSpec, mode: str
) -> None:
    runner = supervise(mode, Limits(leave=0.3)).start(spec)
    with pytest.raises(RunnerDied, match="closed its report pipe"):
        await asyncio.wait_for(runner.ready(), 30)
    assert (await runner.dead).cause == "STALLED"


async def test_a_report_pipe_that_closes_in_service_harms_nobody(
    supervise: Supervise, spec: RunnerSpec
) -> None:
    watched = supervise("mute-in-service", Limits(leave=0.1))
    runner = watched.start(spec)
    await asyncio.wait_for(runner.ready(), 30)
    assert runner.pid is not None
    os.kill(runner.pid, signal.SIGUSR1)
    with pytest.raises(TimeoutError):  # It lives on for many times what it would have to leave.
        await asyncio.wait_for(asyncio.shield(runner.dead), 1.0)
    assert (await runner.stop(grace=10)).expected
    assert State.STALLED not in watched.states


async def test_a_failure_that_was_told_explains_a_child_that_does_not_go(
    supervise: Supervise, spec: RunnerSpec
) -> None:
    watched = supervise("lingers", Limits(leave=0.3))
    runner = watched.start(spec)
    with pytest.raises(RunnerDied, match="no such architecture"):
        await asyncio.wait_for(runner.ready(), 30)
    assert (await runner.dead).cause == "UNSUPPORTED_MODEL"
    assert State.FAILING in watched.states


async def test_a_child_that_is_ready_by_its_word_alone(
    supervise: Supervise, spec: RunnerSpec
) -> None:
    runner = supervise("claims", Limits(agree=0.3)).start(spec)
    with pytest.raises(RunnerDied, match="health service did not say so"):
        await asyncio.wait_for(runner.ready(), 30)
    assert (await runner.dead).cause == "STALLED"


async def test_a_health_service_that_answers_nonsense(
    supervise: Supervise, spec: RunnerSpec
) -> None:
    runner = supervise("babbles", Limits(agree=0.3)).start(spec)
    with pytest.raises(RunnerDied, match="health service"):
        await asyncio.wait_for(runner.ready(), 30)
    assert (await runner.dead).cause == "STALLED"


async def test_a_child_that_ends_unasked_while_it_serves(
    supervise: Supervise, spec: RunnerSpec
) -> None:
    """Its exit status is that of a clean stop, and it is a death all the same."""
    runner = supervise("serve").start(spec)
    await runner.ready()
    assert runner.pid is not None
    os.kill(runner.pid, signal.SIGTERM)
    death = await asyncio.wait_for(asyncio.shield(runner.dead), 20)
    assert (death.cause, death.returncode, death.expected) == ("EXITED", 0, False)


async def test_a_child_that_drains_is_not_taken_for_stalled(
    supervise: Supervise, spec: RunnerSpec
) -> None:
    watched = supervise("drains", Limits(stalled=0.1))
    runner = watched.start(replace(spec, stall_timeout=2.0))
    await runner.ready()
    assert runner.pid is not None
    os.kill(runner.pid, signal.SIGTERM)
    await watched.reach(State.DRAINING)
    with pytest.raises(TimeoutError):  # Its health says NOT_SERVING all the time, to probes too.
        await asyncio.wait_for(asyncio.shield(runner.dead), 2.0)
    assert (await runner.stop(grace=10)).expected
    assert watched.states == [
        *(State.LOADING, State.SERVING, State.DRAINING),
        *(State.STOPPING, State.DEAD),
    ]


async def test_a_runner_of_another_model(supervise: Supervise, spec: RunnerSpec) -> None:
    runner = supervise("impostor").start(spec)
    with pytest.raises(RunnerDied, match="sha256:other"):
        await asyncio.wait_for(runner.ready(), 30)
    assert (await runner.dead).cause == "LOAD_FAILED"


async def test_a_stall_that_passes(supervise: Supervise, spec: RunnerSpec) -> None:
    watched = supervise("serve")
    runner = watched.start(spec)
    await runner.ready()
    assert runner.pid is not None
    os.kill(runner.pid, signal.SIGUSR1)
    await watched.reach(State.STALLED)
    os.kill(runner.pid, signal.SIGUSR2)
    await watched.reach(State.SERVING)


async def test_c3_a_stopped_process_is_noticed_and_killed(
    supervise: Supervise, spec: RunnerSpec
) -> None:
    watched = supervise("serve", Limits(stalled=0.3))
    runner = watched.start(replace(spec, stall_timeout=1.0))
    await runner.ready()
    assert runner.pid is not None
    os.kill(runner.pid, signal.SIGSTOP)
    death = await asyncio.wait_for(asyncio.shield(runner.dead), 10)
    assert (death.cause, death.expected) == ("STALLED", False)
    assert State.STALLED in watched.states


async def test_stop_during_the_start(supervise: Supervise, spec: RunnerSpec) -> None:
    runner = supervise("serve").start(spec)
    death = await asyncio.wait_for(runner.stop(grace=5), 15)
    assert death.expected
    with pytest.raises(RunnerDied):
        await runner.ready()


async def test_a_program_that_is_not_there(spec: RunnerSpec) -> None:
    supervisor = Supervisor({}, on_change=lambda _: None, command=("/no-such-program",))
    with pytest.raises(RunnerDied, match="could not be started"):
        await supervisor.start(spec).ready()


async def test_a_want_of_file_descriptors_is_not_the_model_s_fault(spec: RunnerSpec) -> None:
    supervisor = Supervisor({}, on_change=lambda _: None)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    runner = supervisor.start(spec)
    with tempfile.TemporaryFile() as last:
        resource.setrlimit(resource.RLIMIT_NOFILE, (last.fileno(), hard))
        try:
            await asyncio.wait({runner.dead})
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    death = runner.dead.result()
    assert (death.cause, death.returncode) == ("EXITED", None)
    assert "Too many open files" in death.detail
