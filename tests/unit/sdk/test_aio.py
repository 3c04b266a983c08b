"""The client for asyncio against the same scripted server."""

from __future__ import annotations

import asyncio
import inspect

import pytest

from headrace import AsyncClient, Client, Completed, Delta, Started
from headrace.errors import (
    Cancelled,
    DeadlineExceeded,
    Draining,
    HeadraceError,
    InvalidRequest,
    ModelNotFound,
    RpcFailed,
    RunnerCrashed,
)
from tests.unit.sdk import fake as say
from tests.unit.sdk.fake import Fake


async def test_events_text_and_the_whole(fake: Fake) -> None:
    async with AsyncClient(fake.target) as client:
        async with client.stream_completion("m", "p") as stream:
            assert [type(event) async for event in stream] == [Started, Delta, Delta, Completed]
            whole = await stream.collect()
        assert whole.text == "Hello"
        assert whole.trace_id == stream.trace_id
        assert len(whole.trace_id) == 32
        assert whole.trace_id in str(fake.metadata[0]["traceparent"])
        assert [piece async for piece in client.stream_completion("m", "p").text] == ["Hel", "lo"]
        assert (await client.complete("m", "p")).text == "Hello"


async def test_streams_side_by_side_have_traces_of_their_own(fake: Fake) -> None:
    async with AsyncClient(fake.target) as client:
        wholes = await asyncio.gather(*(client.complete("m", "p") for _ in range(4)))
    assert len({whole.trace_id for whole in wholes}) == 4


async def test_a_stream_that_is_not_completed_raises(fake: Fake) -> None:
    fake.completion = [say.started(), say.delta("Hel", 1)]
    async with AsyncClient(fake.target) as client:
        with pytest.raises(RpcFailed, match="without being completed"):
            await client.complete("m", "p")


async def test_failures_are_typed_traced_and_stay(fake: Fake) -> None:
    fake.completion = [say.started(), RunnerCrashed(cause="SIGNAL", tokens_sent=0)]
    async with AsyncClient(fake.target) as client:
        stream = client.stream_completion("m", "p")
        with pytest.raises(RunnerCrashed):
            await stream.collect()
        with pytest.raises(RunnerCrashed) as caught:
            await stream.collect()
        assert caught.value.__notes__ == [f"trace {stream.trace_id}"]
        with pytest.raises(ModelNotFound) as missing:
            await client.get_model("m")
        assert missing.value.__notes__[0].startswith("trace ")


async def test_leaving_the_block_cancels(fake: Fake) -> None:
    fake.completion = [say.started(), say.WAIT]
    async with AsyncClient(fake.target) as client:
        async with client.stream_completion("m", "p") as stream:
            assert isinstance(await anext(stream), Started)
        assert await asyncio.to_thread(fake.cancelled.wait, 5)
        with pytest.raises(Cancelled):
            await anext(stream)


async def test_another_task_may_cancel_the_stream(fake: Fake) -> None:
    fake.completion = [say.started(), say.WAIT]
    async with AsyncClient(fake.target) as client:
        stream = client.stream_completion("m", "p")
        await anext(stream)
        reader = asyncio.create_task(stream.collect())
        await asyncio.sleep(0.05)
        stream.cancel()
        with pytest.raises(Cancelled):
            await reader


async def test_a_cancelled_task_stays_cancelled_and_ends_the_call(fake: Fake) -> None:
    fake.completion = [say.started(), say.WAIT]
    async with AsyncClient(fake.target) as client:
        stream = client.stream_completion("m", "p")
        await anext(stream)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await stream.collect()
        assert await asyncio.to_thread(fake.cancelled.wait, 5)
        with pytest.raises(Cancelled):
            await stream.collect()


async def test_deadline_and_bad_arguments(fake: Fake) -> None:
    fake.completion = [say.started(), say.WAIT]
    async with AsyncClient(fake.target, timeout=0.2) as client:
        with pytest.raises(DeadlineExceeded):
            await client.complete("m", "p")
        with pytest.raises(InvalidRequest, match="max_tokens"):
            client.stream_completion("m", "p", max_tokens=2**40)


async def test_unary_calls(fake: Fake) -> None:
    fake.models["m:1"] = say.model("m:1", runners=[say.runner()])
    async with AsyncClient(fake.target) as client:
        assert (await client.tokenize("m", "hi")).token_ids == (104, 105)
        assert (await client.detokenize("m", [104])).text == "h"
        assert (await client.render_chat("m", [{"role": "user", "content": "x"}])).prompt == "x"
        assert (await client.count_tokens("m", "abc")).fits
        assert (await client.list_models())[0].name == "m:1"
        assert (await client.list_runners()).runners[0].id == "a"
        assert (await client.get_model("m:1")).chat_template
        assert (await client.copy_model("m:1", "x:1")).name == "x:1"
        assert (await client.load_model("m:1")).load_time == 1.25
        assert await client.unload_model("m:1") == 1
        assert await client.delete_model("m:1") == 98_362_432
        assert await client.health()


async def test_pull(fake: Fake) -> None:
    fake.transfer = []
    async with AsyncClient(fake.target) as client:
        for stream in (client.pull_model("m"), client.import_model("/m", "m")):
            with pytest.raises(HeadraceError):
                await stream.collect()


async def test_a_watch(fake: Fake) -> None:
    fake.watch = say.changes()
    async with AsyncClient(fake.target) as client, client.watch_models() as watch:
        with pytest.raises(Draining):
            await watch.collect()
        assert [model.name for model in watch.models] == ["m:1"]
        assert watch.resume_token == "t.4"


def test_both_clients_have_the_same_methods() -> None:
    def methods(kind: type) -> dict[str, list[str]]:
        return {
            name: list(inspect.signature(value).parameters)
            for name, value in vars(kind).items()
            if inspect.isfunction(value) and not name.startswith("_")
        }

    assert methods(Client) == methods(AsyncClient)
