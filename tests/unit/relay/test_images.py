"""Images that lose their runner while they are drawn or sent."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import pytest
import pytest_asyncio

from headrace.errors import DeadlineExceeded, RunnerCrashed
from headrace.v1.image_pb2 import (
    IMAGE_PHASE_DENOISING,
    IMAGE_PHASE_QUEUED,
    ImageStarted,
    StreamImageRequest,
    StreamImageResponse,
)
from headrace_server.relay import ImageRecord, Relay, Terms
from headrace_server.scheduling.shell import Scheduler
from headrace_server.scheduling.state import Limits
from tests.unit.control.fakes import Context, FakeLauncher, FakeModel, FakeRunner
from tests.unit.relay.painter import CHOSEN, STEPS, drawn, png

Until = Callable[[StreamImageResponse], bool]


class Studio:
    """A scheduler, a relay, painters that die where they are told to, and what the client has."""

    def __init__(self, folder: Path) -> None:
        self.sent: list[StreamImageResponse] = []
        self._news = asyncio.Event()
        self.reads = asyncio.Event()
        self.reads.set()
        self.deaths: list[Until] = []
        """The message at which each of the first runners dies, before it is sent."""
        self.stays: Until = lambda _: False
        """The message at which whoever lives then waits for ever."""
        self.otherwise = False
        """Whether every further runner draws something else."""
        self.launcher = FakeLauncher(folder, self._draw)
        limits = Limits(100, backoff=0.001, max_crashes=99)
        self.scheduler = Scheduler(limits, self.launcher)
        self.relay = Relay(self.scheduler, max_time=20.0, diagnosis=2.0)

    async def _draw(
        self, runner: FakeRunner, request: StreamImageRequest, context: Context
    ) -> AsyncIterator[StreamImageResponse]:
        number = int(runner.id[1:]) - 1
        drawing = StreamImageRequest.FromString(request.SerializeToString())
        if self.otherwise and number:
            drawing.seed = 1000
        for message in drawn(drawing, runner=runner.id):
            if number < len(self.deaths) and self.deaths[number](message):
                await runner.die("OUT_OF_MEMORY", delay=0.02)
            if self.stays(message):
                await asyncio.Event().wait()
            if message.HasField("started"):
                message.started.seed = request.seed if request.HasField("seed") else CHOSEN
            yield message
            if number < len(self.deaths):
                # What is on its way when a connection breaks may be lost.
                await self.until(lambda known=message: self.has(known))  # type: ignore[misc]

    def has(self, message: StreamImageResponse) -> bool:
        """Whether the client knows what a runner has said."""
        told, chunk = message.progress, message.chunk
        if message.HasField("progress"):
            places = [m.progress for m in self.sent if m.progress.index == told.index]
            return any((p.phase, p.step) >= (told.phase, told.step) for p in places)
        ends = [m.chunk.offset + len(m.chunk.data) for m in self.sent if m.HasField("chunk")]
        return message.HasField("started") or chunk.offset + len(chunk.data) <= max(ends, default=0)

    async def write(self, data: bytes) -> None:
        self.sent.append(StreamImageResponse.FromString(data))
        self._news.set()
        await self.reads.wait()

    async def until(self, true: Callable[[], bool]) -> None:
        """Wait until it is so after some message to the client."""
        async with asyncio.timeout(5):
            while not true():
                self._news.clear()
                await self._news.wait()

    async def image(self, *, count: int = 1, time_remaining: float | None = None) -> None:
        request = StreamImageRequest(model="fake", prompt="a rose", count=count)
        terms = Terms(FakeModel(), time_remaining=time_remaining)
        await self.relay.stream(ImageRecord, request.SerializeToString(), terms, self.write)

    def kinds(self) -> list[str]:
        """Of the messages but for progress, each run of equal ones once."""
        kinds = [m.WhichOneof("event") or "" for m in self.sent if not m.HasField("progress")]
        return [k for i, k in enumerate(kinds) if i == 0 or kinds[i - 1] != k]

    def files(self) -> list[bytes]:
        """As the client has put them together, each by the sum that it was told."""
        results = self.sent[-1].completed.images
        files = []
        for result in results:
            pieces = [m.chunk for m in self.sent if m.HasField("chunk")]
            file = b"".join(p.data for p in pieces if p.index == result.index)
            assert hashlib.sha256(file).hexdigest() == result.sha256
            files.append(file)
        return files

    def asked(self) -> list[StreamImageRequest]:
        """What each runner was asked for."""
        return [
            StreamImageRequest.FromString(request)
            for runner in self.launcher.runners
            for request in runner.requests
        ]


@pytest_asyncio.fixture
async def studio(tmp_path: Path) -> AsyncIterator[Studio]:
    studio = Studio(tmp_path)
    yield studio
    await studio.scheduler.close()


def at_step(step: int, index: int = 0) -> Until:
    return lambda message: (
        message.progress.phase == IMAGE_PHASE_DENOISING
        and (message.progress.step, message.progress.index) == (step, index)
    )


def at_byte(offset: int, index: int = 0) -> Until:
    return lambda message: (message.chunk.offset, message.chunk.index) == (offset, index)


def steps(studio: Studio) -> list[int]:
    """That the client was told of image 0, in their order."""
    return [
        m.progress.step for m in studio.sent if m.progress.phase == IMAGE_PHASE_DENOISING
    ]  # fmt: skip


async def test_a_runner_killed_at_step_3_of_8_is_made_up_for(studio: Studio) -> None:
    studio.deaths = [at_step(4)]
    await studio.image()
    assert studio.kinds() == ["started", "chunk", "completed"]
    assert studio.files() == [png(CHOSEN)]
    assert studio.sent[-1].completed.resumed == 1
    assert steps(studio) == sorted(steps(studio))
    assert set(steps(studio)) == set(range(STEPS + 1))
    again = studio.asked()[1]
    assert (again.seed, again.width, again.height, again.steps) == (CHOSEN, 16, 16, STEPS)
    assert again.request_id == "made"


async def test_one_killed_while_its_file_is_on_the_way(studio: Studio) -> None:
    studio.deaths = [at_byte(400), at_byte(800)]
    await studio.image()
    assert studio.kinds() == ["started", "chunk", "completed"]
    assert studio.files() == [png(CHOSEN)]
    assert studio.sent[-1].completed.resumed == 2


async def test_images_that_are_there_are_not_drawn_again(studio: Studio) -> None:
    studio.deaths = [at_step(3, index=1)]
    await studio.image(count=3)
    assert studio.files() == [png(CHOSEN), png(CHOSEN + 1), png(0)]
    assert [result.seed for result in studio.sent[-1].completed.images] == [CHOSEN, CHOSEN + 1, 0]
    again = studio.asked()[1]
    assert (again.seed, again.count) == (CHOSEN + 1, 2)


async def test_a_death_between_the_last_byte_and_the_end(studio: Studio) -> None:
    studio.deaths = [lambda message: message.HasField("completed")]
    await studio.image(count=2)
    assert studio.files() == [png(CHOSEN), png(CHOSEN + 1)]
    assert studio.asked()[1].count == 1


async def test_two_deaths_without_a_step_between_them_are_the_request_s_doing(
    studio: Studio,
) -> None:
    studio.deaths = [at_step(4), at_step(4)]
    with pytest.raises(RunnerCrashed, match="may be the cause") as caught:
        await studio.image()
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    assert caught.value.metadata == {"cause": "OUT_OF_MEMORY"}
    assert len(studio.launcher.runners) == 2


async def test_one_that_comes_further_each_time_goes_on(studio: Studio) -> None:
    studio.deaths = [at_step(step) for step in (2, 3, 4, 5)]
    await studio.image()
    assert studio.files() == [png(CHOSEN)]
    assert studio.sent[-1].completed.resumed == 4


async def test_what_another_draws_otherwise_is_not_put_together(studio: Studio) -> None:
    studio.deaths, studio.otherwise = [at_byte(400)], True
    with pytest.raises(RunnerCrashed, match="drew image 0 otherwise") as caught:
        await studio.image()
    assert caught.value.code is grpc.StatusCode.ABORTED
    assert caught.value.metadata == {"cause": "OUT_OF_MEMORY", "bytes_sent": "400"}
    assert studio.kinds() == ["started", "chunk"]


async def test_who_waits_hears_where_he_stands_and_of_the_load(studio: Studio) -> None:
    studio.launcher.hold = True
    drawing = asyncio.create_task(studio.image())
    await studio.until(lambda: bool(studio.sent))
    assert studio.sent[0].progress.phase == IMAGE_PHASE_QUEUED
    runner = await studio.launcher.launched.get()
    runner.fraction = 0.5
    studio.scheduler.runner_changed()
    await studio.until(lambda: studio.sent[-1].progress.load_fraction == 0.5)
    runner.loaded.set()
    await drawing
    assert studio.files() == [png(CHOSEN)]


async def test_one_who_leaves_stops_the_runner(studio: Studio) -> None:
    studio.stays = at_step(3)
    drawing = asyncio.create_task(studio.image())
    await studio.until(lambda: 2 in steps(studio))
    drawing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await drawing
    await asyncio.wait_for(studio.launcher.runners[0].cancelled.wait(), 5)
    assert not studio.scheduler.in_use(FakeModel().key)


async def test_a_deadline_ends_it(studio: Studio) -> None:
    studio.stays = at_step(3)
    with pytest.raises(DeadlineExceeded):
        await studio.image(time_remaining=0.3)
    await asyncio.wait_for(studio.launcher.runners[0].cancelled.wait(), 5)


async def test_one_who_does_not_read_is_not_read_for(studio: Studio) -> None:
    drawing = asyncio.create_task(studio.image(count=3))
    await studio.until(lambda: any(m.HasField("chunk") for m in studio.sent))
    studio.reads.clear()
    had = len(studio.sent)
    for _ in range(200):  # turns of the loop, for a relay that would read on
        await asyncio.sleep(0)
    assert len(studio.sent) <= had + 1
    studio.reads.set()
    await drawing
    assert len(studio.files()) == 3


async def test_a_runner_s_started_is_the_client_s_once(studio: Studio) -> None:
    studio.deaths = [at_step(1), at_step(2)]
    await studio.image()
    begun: list[ImageStarted] = [m.started for m in studio.sent if m.HasField("started")]
    assert [started.runner for started in begun] == ["r1"]
