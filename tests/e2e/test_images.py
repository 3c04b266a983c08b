"""Images through real processes, drawn by the model that comes with the runner."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from headrace import AsyncClient, AsyncImageStream, Client
from headrace.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    SourceUnavailable,
    UnsupportedCapability,
    UnsupportedParameter,
)
from headrace.types import ImageChunk, ImagePhase, ImageProgress, Images, ImageStarted
from headrace_server.store import Store, bundled
from headrace_server.store.catalogue import EMOJI
from tests.e2e.harness import (
    PATIENCE,
    Controller,
    Place,
    StartController,
    borrow_home,
    headrace,
)
from tests.e2e.test_metrics import Scrape, url_of

PAINTER = "emoji:64"
ROSE = "a red rose"
STEPS = 8
MANY_STEPS = 24
"""Of which the runner still has some before it when it is killed, also where it is fast."""


def has_weights() -> bool:
    try:
        bundled.directory_of(EMOJI)
    except SourceUnavailable:
        return False
    return True


pytestmark = pytest.mark.skipif(
    not has_weights(), reason="this checkout has no weights of emoji:64"
)


@pytest.fixture(scope="module")
def painter_home(shared_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the model that draws, besides those of all tests."""
    home = borrow_home(shared_home, tmp_path_factory.mktemp("painter") / "home")
    asyncio.run(Store(home).pull(PAINTER))
    return home


@pytest.fixture(scope="module")
def studio(painter_home: Path) -> Iterator[Controller]:
    """A controller that tests share, and that serves metrics."""
    with Controller(
        painter_home, "--preload", PAINTER, "--metrics-listen", "127.0.0.1:0"
    ) as running:
        yield running


@pytest_asyncio.fixture
async def client(studio: Controller) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(studio.target, timeout=PATIENCE) as made:
        yield made


@pytest.fixture(scope="module")
def undisturbed(studio: Controller) -> Images:
    """Three roses."""
    with (
        Client(studio.target, timeout=PATIENCE) as client,
        client.stream_image(ROSE, model=PAINTER, seed=7, count=3, steps=STEPS) as stream,
    ):
        return stream.collect()


def roses(client: AsyncClient, count: int, steps: int = STEPS) -> AsyncImageStream:
    return client.stream_image(ROSE, model=PAINTER, seed=7, count=count, steps=steps)


async def reach(stream: AsyncImageStream, step: int, index: int = 0) -> None:
    """Read until so many steps of an image are done."""
    async for event in stream:
        if isinstance(event, ImageProgress) and event.phase == ImagePhase.DENOISING:
            at = (event.index, event.step or 0)
            if at >= (index, step):
                return
    raise AssertionError(f"the stream ended before step {step} of image {index}")


def test_the_same_seed_gives_the_same_bytes_alone_and_among_others(
    studio: Controller, undisturbed: Images
) -> None:
    with Client(studio.target, timeout=PATIENCE) as client:
        alone = client.image(ROSE, model=PAINTER, seed=8, steps=STEPS)
    assert alone[0].data == undisturbed.images[1].data
    for image in undisturbed.images:
        assert hashlib.sha256(image.data).hexdigest() == image.sha256
        assert (image.seed, image.width, image.height) == (7 + image.index, 64, 64)
        assert image.data.startswith(b"\x89PNG")


async def test_progress_is_exact_and_never_goes_back(client: AsyncClient) -> None:
    async with roses(client, 1) as stream:
        events = [event async for event in stream]
    steps = [
        event.step
        for event in events
        if isinstance(event, ImageProgress) and event.phase == ImagePhase.DENOISING and event.step
    ]
    assert steps == sorted(steps)  # Not each is told where they follow one another fast.
    assert steps[-1] == STEPS
    assert sum(isinstance(event, ImageStarted) for event in events) == 1


@pytest.mark.parametrize("by", ["--preload", "LoadModel"])
async def test_a_load_that_is_under_way_puts_nobody_behind(
    start: StartController, painter_home: Path, by: str
) -> None:
    # Without a spare the load takes as long as a runner's imports.
    preload = ("--preload", PAINTER) if by == "--preload" else ()
    controller = start("--no-spare", *preload, home=painter_home)
    async with (
        AsyncClient(controller.target, timeout=PATIENCE) as other,
        asyncio.TaskGroup() as group,
    ):
        if by == "LoadModel":
            group.create_task(other.load_model(PAINTER))
            async with asyncio.timeout(PATIENCE), other.watch_models() as watch:
                async for _ in watch:
                    if any(model.runners for model in watch.models):
                        break
        async with roses(other, 1) as stream:
            told = [
                event.queue_position
                async for event in stream
                if isinstance(event, ImageProgress) and event.queue_position is not None
            ]
    assert len(told) > 1  # by the controller, and by the runner
    assert set(told) == {0}


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGABRT, marks=pytest.mark.slow)]
)
async def test_c1_a_runner_killed_at_step_3(
    number: signal.Signals, start: StartController, painter_home: Path, client: AsyncClient
) -> None:
    (undisturbed,) = (await roses(client, 1, MANY_STEPS).collect()).images
    controller = start("--preload", PAINTER, home=painter_home)
    runner = controller.runner()
    async with AsyncClient(controller.target, timeout=PATIENCE) as other:
        stream = roses(other, 1, MANY_STEPS)
        await reach(stream, 3)
        runner.send_signal(number)
        whole = await stream.collect()
    assert whole.images[0].data == undisturbed.data
    assert whole.completed.resumed == 1
    assert whole.started.runner == "r1"


async def test_c1_a_runner_killed_at_the_second_of_three(
    start: StartController, painter_home: Path, undisturbed: Images
) -> None:
    controller = start("--preload", PAINTER, home=painter_home)
    runner = controller.runner()
    async with AsyncClient(controller.target, timeout=PATIENCE) as client:
        stream = roses(client, 3)
        async for event in stream:
            # Where all are drawn together, the files come one after another.
            if isinstance(event, ImageChunk):
                break
        runner.kill()
        whole = await stream.collect()
    assert [image.data for image in whole.images] == [i.data for i in undisturbed.images]
    assert [image.seed for image in whole.images] == [7, 8, 9]


async def test_one_who_leaves_stops_the_work_and_the_next_is_served(client: AsyncClient) -> None:
    stream = client.stream_image(ROSE, model=PAINTER, steps=100, count=16)
    await reach(stream, 1)
    stream.cancel()
    with pytest.raises(Cancelled):
        await stream.collect()
    async with asyncio.timeout(PATIENCE):
        while (await client.list_runners()).runners[0].active_requests:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert len(await client.image(ROSE, model=PAINTER, steps=1)) == 1


async def test_a_deadline_ends_it(client: AsyncClient) -> None:
    with pytest.raises(DeadlineExceeded):
        await client.image(ROSE, model=PAINTER, steps=100, count=16, timeout=0.5)


async def test_one_who_reads_slowly_gets_all_of_it(
    client: AsyncClient, undisturbed: Images
) -> None:
    stream = roses(client, 3)
    await reach(stream, 1)
    await client.image(ROSE, model=PAINTER, steps=1)  # Others are served meanwhile.
    whole = await stream.collect()
    assert [image.data for image in whole.images] == [i.data for i in undisturbed.images]


async def test_what_the_model_does_not_take_is_refused(client: AsyncClient) -> None:
    with pytest.raises(InvalidRequest, match="width"):
        await client.image(ROSE, model=PAINTER, width=80)
    with pytest.raises(InvalidRequest, match=r"input_images\[0\].data"):
        await client.image(ROSE, model=PAINTER, input_images=[b"x"])
    with pytest.raises(UnsupportedParameter, match=r"loras\[0\].name"):
        await client.image(ROSE, model=PAINTER, loras=["oil"])
    with pytest.raises(UnsupportedCapability):
        await client.complete(PAINTER, "hello")
    with pytest.raises(UnsupportedCapability):
        await client.image(ROSE, model="tiny:q4")


def test_images_are_counted(studio: Controller, undisturbed: Images) -> None:
    scrape = Scrape(url_of(studio))
    assert scrape.sum("headrace_images_total", headrace_model_name=PAINTER) >= 3
    labels = {"gen_ai_operation_name": "generate_content", "gen_ai_request_model": PAINTER}
    assert scrape.sum("gen_ai_server_request_duration_seconds_count", **labels) >= 1


def test_the_command_line_draws_without_a_controller(
    painter_home: Path, tmp_path: Path, undisturbed: Images
) -> None:
    place = Place(painter_home)
    # As that of the studio: a BLAS may add up in another order for another number of threads.
    place.environment["HEADRACE_THREADS"] = "1"
    try:
        drawn = headrace(
            place,
            *("image", ROSE, "--seed", "7", "--steps", str(STEPS), "--json"),
            *("-o", str(tmp_path / "rose.png")),
        )
        (image,) = json.loads(drawn.stdout)["images"]
        assert Path(image["path"]).read_bytes() == undisturbed.images[0].data
        shown = headrace(place, "show", PAINTER).stdout
    finally:
        place.close()
    assert re.search(r"kind\s+image", shown)
    assert re.search(r"draws\s+64×64 pixels", shown)
