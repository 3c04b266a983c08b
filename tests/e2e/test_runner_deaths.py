"""Runners that die or hang: their clients see one stream, and it is the undisturbed one."""

from __future__ import annotations

import asyncio
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from headrace import AsyncClient
from headrace.errors import RunnerCrashed, from_rpc_error
from headrace.types import Delta, Progress, Started
from headrace.v1.completion_pb2 import (
    LogprobsOptions,
    SamplingOptions,
    StopOptions,
    StreamCompletionRequest,
)
from headrace.v1.runner_pb2 import DrainRequest
from headrace.v1.tokenize_pb2 import TokenizeRequest
from tests.e2e.conftest import TINY
from tests.e2e.harness import (
    MODEL,
    PATIENCE,
    Controller,
    StartController,
    aio_channel,
    python_path,
    runner_address,
)
from tests.integration.runner.api import ENDLESS, GREEDY, Answer, Stream, connected

STORY = 128
"""Tokens: so many that their runner is still busy when the first ones have come."""


def story(**fields: Any) -> StreamCompletionRequest:
    """A completion of so many tokens."""
    given: dict[str, Any] = {"sampling": GREEDY, "stop": ENDLESS, "max_tokens": STORY} | fields
    return StreamCompletionRequest(model=MODEL, prompt="The old lighthouse keeper said:", **given)


SEEDED = SamplingOptions(temperature=0.8, top_p=0.95, seed=11)
PENALISED = SamplingOptions(
    temperature=0.7, repetition_penalty=1.2, frequency_penalty=0.3, penalty_window=12, seed=12
)
LOGPROBS = LogprobsOptions(enabled=True, top=2)


def same(found: Answer, expected: Answer) -> None:
    """Holds a stream that lost its runner against the undisturbed one."""
    assert found.outputs.keys() == expected.outputs.keys()
    for choice, output in expected.outputs.items():
        assert found.outputs[choice].token_ids == output.token_ids
        assert found.outputs[choice].text == output.text
        logprobs = [each.logprob for each in output.logprobs]
        assert [e.logprob for e in found.outputs[choice].logprobs] == pytest.approx(
            logprobs, abs=1e-3
        )
    assert list(found.completed.choices) == list(expected.completed.choices)
    times = found.completed.timings
    parts = (times.queue, times.load, times.prefill, times.decode)
    assert sum(part.ToNanoseconds() for part in parts) <= times.total.ToNanoseconds()


async def reach(stream: Stream, tokens: int) -> None:
    """Read until so many tokens of each choice have come."""
    wanted = range(stream.choices)
    while min(len(stream.answer.outputs[choice].token_ids) for choice in wanted) < tokens:
        await stream.until("delta")


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGKILL,
        pytest.param(signal.SIGSEGV, marks=pytest.mark.slow),
        pytest.param(signal.SIGABRT, marks=pytest.mark.slow),
    ],
)
async def test_c1_killed_mid_stream(number: signal.Signals, start: StartController) -> None:
    """Streams of all kinds at once: none misses a token, none repeats one."""
    controller = start("--preload", MODEL)
    async with connected(controller.target) as api:
        plain = await api.complete(story())
        middle = plain.text[len(plain.text) // 2 :][:12]
        requests = [
            story(logprobs=LOGPROBS),
            story(sampling=SEEDED),
            story(sampling=PENALISED, n=3, logprobs=LOGPROBS),
            story(stop=StopOptions(strings=[middle], ignore_eos=True)),
            story(sampling=SEEDED, n=2, request_id="mine"),
        ]
        expected = await asyncio.gather(*map(api.complete, requests))
        streams = [api.stream(request) for request in requests]
        await asyncio.gather(*(reach(stream, 3) for stream in streams))
        controller.runner().send_signal(number)
        answers = await asyncio.gather(*(stream.rest() for stream in streams))
        for answer, undisturbed in zip(answers, expected, strict=True):
            same(answer, undisturbed)
            assert answer.completed.resumed == 1
            assert answer.started.runner == "r1"
        assert answers[-1].started.id == "mine"
        # The tokens that were cached are those that the client was told of.
        assert [a.completed.usage.cached_tokens for a in answers] == [
            a.started.cached_tokens for a in answers
        ]
        again = await api.complete(requests[0])
        assert again.started.runner == "r2"


async def test_c1_a_stream_moves_several_times(start: StartController) -> None:
    controller = start("--preload", MODEL)
    async with connected(controller.target) as api:
        request = story(sampling=SEEDED, logprobs=LOGPROBS, max_tokens=3 * STORY)
        expected = await api.complete(request)
        stream = api.stream(request)
        for move in range(3):
            await reach(stream, 4 + 8 * move)
            controller.runner().kill()
        answer = await stream.rest()
    same(answer, expected)
    assert answer.completed.resumed == 3
    times = answer.completed.timings
    # It waited for three loads, which take longer than all else that it did.
    assert times.load.ToNanoseconds() > times.total.ToNanoseconds() / 4
    assert await moves(controller, 3) == ["SIGNAL"] * 3


async def test_c1_killed_while_a_text_is_held_back(start: StartController) -> None:
    """What may become the stop string is not sent; nor is it lost with the runner."""
    controller = start("--preload", MODEL)
    async with connected(controller.target) as api:
        plain = await api.complete(story())
        begin = plain.text.index(" ", len(plain.text) // 3)
        # It looks like the stop for some words, and then is none.
        nearly = plain.text[begin : begin + 25] + "@@"
        request = story(stop=StopOptions(strings=[nearly], ignore_eos=True))
        stream = api.stream(request)
        while len(stream.answer.text) < begin - 1:
            await stream.until("delta")
        controller.runner().kill()
        same(await stream.rest(), plain)


async def moves(controller: Controller, count: int) -> list[str]:
    """Why streams have moved, so often at least."""
    return [line["cause"] for line in await controller.logged("moving to another runner", count)]


async def test_c2_killed_while_it_loads(start: StartController) -> None:
    controller = start()
    async with AsyncClient(controller.target, timeout=PATIENCE) as client:
        stream = client.stream_completion(TINY, "x", max_tokens=3)
        async for event in stream:
            if isinstance(event, Progress) and event.load_fraction is not None:
                controller.runner().kill()
                break
        whole = await stream.collect()
        assert whole.started.runner == "r2"
        assert whole.usage.output_tokens == 3


async def test_c2_killed_while_it_prefills(start: StartController) -> None:
    controller = start("--preload", MODEL)
    prompt = [100 + i % 50 for i in range(2500)]  # In several pieces, however fast it is read.
    async with AsyncClient(controller.target, timeout=100) as client:
        stream = client.stream_completion(MODEL, token_ids=prompt, max_tokens=2)
        kinds = []
        async for event in stream:
            kinds.append(type(event))
            if isinstance(event, Progress) and event.prompt_tokens_done:
                controller.runner().kill()
                break
        whole = await stream.collect()
        assert Started in kinds  # so that a second one would have broken the stream
        assert whole.usage.output_tokens == 2
        assert whole.completed.resumed == 1
        # The seed that was told is the one that drew.
        again = await client.complete(
            MODEL, token_ids=prompt, seed=whole.started.seed, max_tokens=2
        )
        assert again.token_ids == whole.token_ids
        assert again.started.runner == "r2"


async def test_c3_a_stopped_runner(start: StartController) -> None:
    """Its streams do not wait until it is killed; and when it wakes up, nobody listens."""
    stall_timeout = 10.0
    controller = start("--preload", MODEL, "--stall-timeout", f"{stall_timeout}s")
    async with (
        connected(controller.target) as api,
        aio_channel(controller.target) as channel,
    ):
        requests = [story(), story(sampling=SEEDED, n=2)]
        expected = await asyncio.gather(*map(api.complete, requests))
        streams = [api.stream(request) for request in requests]
        await asyncio.gather(*(reach(stream, 3) for stream in streams))
        runner = controller.runner()
        health = HealthStub(channel).Watch(HealthCheckRequest(service=f"model/{MODEL}"))
        assert (await health.read()).status == HealthCheckResponse.SERVING
        runner.suspend()
        stopped = time.monotonic()
        changed = await asyncio.wait_for(health.read(), PATIENCE)
        assert changed.status == HealthCheckResponse.NOT_SERVING
        assert time.monotonic() - stopped < stall_timeout + 5
        runner.resume()
        answers = await asyncio.gather(*(stream.rest() for stream in streams))
        for answer, undisturbed in zip(answers, expected, strict=True):
            same(answer, undisturbed)
            assert answer.completed.resumed == 1
        health.cancel()
    assert await moves(controller, 2) == ["STALLED"] * 2
    assert not any("killing runner" in line["message"] for line in controller.log())


async def test_c3_a_runner_that_goes_on_in_time_loses_nothing(start: StartController) -> None:
    controller = start("--preload", MODEL)
    async with AsyncClient(controller.target, timeout=PATIENCE) as client:
        stream = client.stream_completion(MODEL, "1, 2, 3,", max_tokens=STORY, ignore_eos=True)
        async for event in stream:
            if isinstance(event, Delta):
                break
        runner = controller.runner()
        runner.suspend()
        (told,) = (await client.get_model(MODEL)).runners
        assert told.active_requests == 1, "the stream had ended before"
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.to_thread(runner.wait, 1.0), 0.5)
        runner.resume()
        whole = await stream.collect()
        assert whole.usage.output_tokens == STORY
        assert whole.started.runner == "r1"


async def test_a_runner_that_is_drained_by_hand_loses_no_stream(start: StartController) -> None:
    controller = start("--preload", MODEL)
    async with connected(controller.target) as api:
        expected = await api.complete(story())
        stream = api.stream(story())
        await reach(stream, 3)
        async with connected(runner_address(controller.runner())) as runner:
            await runner.runner.Drain(DrainRequest(grace=Duration()), timeout=PATIENCE)
        answer = await stream.rest()
    same(answer, expected)
    assert answer.completed.resumed >= 1


@pytest.mark.parametrize("how", ["signal", pytest.param("call", marks=pytest.mark.slow)])
async def test_a_stream_that_can_end_within_the_grace_ends_where_it_is(
    start: StartController, how: str
) -> None:
    controller = start("--preload", MODEL)
    async with connected(controller.target) as api:
        expected = await api.complete(story())
        runner = controller.runner()
        stream = api.stream(story())
        await reach(stream, 3)
        if how == "signal":
            runner.terminate()
        else:
            async with connected(runner_address(runner)) as itself:
                await itself.runner.Drain(DrainRequest(grace=Duration(seconds=60)))
        answer = await stream.rest()
        same(answer, expected)
        assert answer.completed.resumed == 0
        # Whoever comes next gets another, and the one that drained goes though nobody waits for it.
        assert (await api.complete(story())).started.runner == "r2"
        runner.wait(PATIENCE)
    assert await moves(controller, 0) == []


DEADLY = """
import os, pathlib, signal, sys, threading

if "headrace_runner" in sys.orig_argv:
    from headrace_runner.engine.text.output import Output
    from headrace_runner.services import completion
    from headrace_runner.services.tokenize import TokenizeServicer

    once = pathlib.Path(__file__).with_name("once")

    def die():
        os.kill(os.getpid(), signal.SIGSEGV)

    def push(self, token, *rest, push=Output.push):
        name, _, place = self._request.id.partition(":")
        if name == "deadly" and self.tokens == int(place):
            die()
        return push(self, token, *rest)

    def completed(*arguments, completed=completion.completed):
        if once.exists():
            once.unlink()
            threading.Event().wait()  # Till it is killed.
        return completed(*arguments)

    async def tokenize(self, request, context, tokenize=TokenizeServicer.Tokenize):
        if request.text == "deadly":
            die()
        if request.text == "deadly once" and once.exists():
            once.unlink()
            die()
        return await tokenize(self, request, context)

    Output.push = push
    completion.completed = completed
    TokenizeServicer.Tokenize = tokenize
"""
"""Read by every Python process of a controller: makes its runners die of certain requests."""


@dataclass
class Deadly:
    """A controller whose runners die of certain requests."""

    controller: Controller
    once: Path
    """While it is there, the next `completed` hangs, and so on."""


@pytest.fixture
def deadly(tmp_path: Path, start: StartController) -> Deadly:
    path = python_path(tmp_path / "python", DEADLY)
    controller = start("--preload", MODEL, extra={"PYTHONPATH": path})
    return Deadly(controller, tmp_path / "python" / "once")


@pytest.mark.parametrize("place", [0, 5])
async def test_a_request_that_kills_its_runner_kills_no_third(deadly: Deadly, place: int) -> None:
    controller = deadly.controller
    async with connected(controller.target) as api:
        plain = await api.complete(story())
        bystander = api.stream(story(max_tokens=2 * STORY))
        await reach(bystander, 3)
        stream = api.stream(story(request_id=f"deadly:{place}"))
        with pytest.raises(RunnerCrashed) as caught:
            await stream.rest()
        error = caught.value
        sent = stream.answer.token_ids
        assert sent == plain.token_ids[: len(sent)]
        assert len(sent) <= place
        if sent:
            assert error.code is grpc.StatusCode.ABORTED
            assert error.metadata == {"cause": "NATIVE_ABORT", "tokens_sent": str(len(sent))}
        else:
            assert error.code is grpc.StatusCode.UNAVAILABLE
            assert error.metadata == {"cause": "NATIVE_ABORT"}
        deaths = await controller.logged("runner ended", 2)
        # A second one may have come a token further than the first.
        assert len(deaths) == 2 or (place and len(deaths) == 3)
        # Those computed beside it are not taken for the cause.
        whole = await bystander.rest()
        assert whole.token_ids[:STORY] == plain.token_ids
        assert len(whole.token_ids) == 2 * STORY


async def test_c1_killed_between_the_last_delta_and_completed(deadly: Deadly) -> None:
    async with connected(deadly.controller.target) as api:
        request = story(n=2, logprobs=LOGPROBS, sampling=SEEDED)
        expected = await api.complete(request)
        deadly.once.touch()
        stream = api.stream(request)
        await reach(stream, STORY)
        async with asyncio.timeout(PATIENCE):
            while deadly.once.exists():  # noqa: ASYNC110 - it is a file
                await asyncio.sleep(0.01)
        deadly.controller.runner().kill()
        answer = await stream.rest()
    same(answer, expected)
    assert answer.completed.resumed == 1


async def test_a_unary_call_outlives_one_runner_and_kills_two_at_most(deadly: Deadly) -> None:
    async with connected(deadly.controller.target) as api:
        deadly.once.touch()
        request = TokenizeRequest(model=MODEL, text="deadly once")
        response = await api.tokenize.Tokenize(request, timeout=PATIENCE)
        assert response.token_ids
        assert not deadly.once.exists()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await api.tokenize.Tokenize(
                TokenizeRequest(model=MODEL, text="deadly"), timeout=PATIENCE
            )
        error = from_rpc_error(caught.value)
        assert isinstance(error, RunnerCrashed)
        assert error.code is grpc.StatusCode.UNAVAILABLE
        assert len(await deadly.controller.logged("runner ended", 3)) == 3
