"""Models of mflux through store, controller and runner: tiny, with the real pipeline classes."""

from __future__ import annotations

import asyncio
import io
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from PIL import Image

from headrace import AsyncClient, AsyncImageStream
from headrace.errors import Cancelled, UnsupportedParameter
from headrace.types import ImagePhase, ImageProgress
from headrace_server.store import Store
from tests.e2e.harness import PATIENCE, Controller, StartController, borrow_home
from tests.mflux_models import build_flux2, build_z_image

pytestmark = pytest.mark.skipif(
    find_spec("mflux") is None, reason="mflux is not installed: make install-image"
)

Z_IMAGE, FLUX2 = "z-image:tiny", "flux2:tiny"
OPTIONS: dict[str, Any] = {"width": 64, "height": 64, "steps": 2, "seed": 5}
BUILDERS: dict[str, Callable[..., Path]] = {"z-image": build_z_image, "flux2": build_flux2}


@pytest.fixture(scope="module")
def painter_home(shared_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with both, each with its adapters."""
    home = borrow_home(shared_home, tmp_path_factory.mktemp("mflux") / "home")
    for name, build in ((Z_IMAGE, build_z_image), (FLUX2, build_flux2)):
        source = build(tmp_path_factory.mktemp("source") / "model", lora=True)
        asyncio.run(Store(home).import_model(source, name))
    return home


@pytest.fixture(scope="module")
def studio(painter_home: Path) -> Iterator[Controller]:
    with Controller(painter_home) as running:
        yield running


@pytest_asyncio.fixture
async def client(studio: Controller) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(studio.target, timeout=PATIENCE) as made:
        yield made


async def draw(client: AsyncClient, model: str, **options: Any) -> bytes:
    (image,) = await client.image("a rose", model=model, **(OPTIONS | options))
    with Image.open(io.BytesIO(image.data)) as opened:
        assert opened.size == (64, 64)
        assert "a rose" in opened.info["parameters"]
    return image.data


def sketch() -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize((64, 64)).convert("RGB").save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("model", [Z_IMAGE, FLUX2])
async def test_from_text_from_an_image_and_with_an_adapter(client: AsyncClient, model: str) -> None:
    base = await draw(client, model)
    adapted = await draw(client, model, loras={"style": 1.0})
    from_sketch = await draw(client, model, input_images=[sketch()], strength=0.5)
    assert len({base, adapted, from_sketch}) == 3
    # Whatever came between: the same seed, the same bytes.
    assert await draw(client, model) == base
    assert await draw(client, model, loras={"style": 1.0}) == adapted


async def test_what_it_cannot_honour_is_refused(client: AsyncClient) -> None:
    for field, options in (
        ("loras[0].name", {"loras": {"nobody": 1.0}}),
        ("negative_prompt", {"negative_prompt": "blue"}),
    ):
        with pytest.raises(UnsupportedParameter) as caught:
            await client.image("a rose", model=Z_IMAGE, **(OPTIONS | options))
        assert caught.value.metadata["field"] == field


async def test_progress_counts_what_is_done(client: AsyncClient) -> None:
    wanted = OPTIONS | {"steps": 4, "input_images": [sketch()], "strength": 0.5}
    async with client.stream_image("a rose", model=Z_IMAGE, **wanted) as stream:
        events = [event async for event in stream]
    steps = [
        (event.step, event.total)
        for event in events
        if isinstance(event, ImageProgress) and event.phase is ImagePhase.DENOISING
    ]
    assert steps[-1][0] == steps[-1][1] == 2
    assert [step for step, _ in dict.fromkeys(steps)] == sorted({step or 0 for step, _ in steps})


async def test_c1_a_runner_killed_while_it_draws(
    start: StartController, painter_home: Path, client: AsyncClient
) -> None:
    steps = 60  # Some are left when the runner is killed, on a busy machine too.
    base = await draw(client, Z_IMAGE, steps=steps)
    controller = start("--preload", Z_IMAGE, home=painter_home)
    runner = controller.runner()
    async with AsyncClient(controller.target, timeout=PATIENCE) as other:
        wanted = OPTIONS | {"steps": steps}
        stream = other.stream_image("a rose", model=Z_IMAGE, **wanted)
        await _reach(stream, ImagePhase.DENOISING)
        runner.send_signal(signal.SIGKILL)
        whole = await stream.collect()
    assert whole.images[0].data == base
    assert whole.completed.resumed == 1


@pytest.mark.parametrize(
    ("phase", "steps"),
    [(ImagePhase.ENCODING, 50), (ImagePhase.DENOISING, 50), (ImagePhase.DECODING, 2)],
)
async def test_who_leaves_frees_the_runner(
    client: AsyncClient, phase: ImagePhase, steps: int
) -> None:
    base = await draw(client, Z_IMAGE)
    wanted = OPTIONS | {"steps": steps, "count": 3}
    stream = client.stream_image("a rose", model=Z_IMAGE, **wanted)
    await _reach(stream, phase)
    stream.cancel()
    with pytest.raises(Cancelled):
        await stream.collect()
    assert await draw(client, Z_IMAGE) == base


async def _reach(stream: AsyncImageStream, phase: ImagePhase) -> None:
    async for event in stream:
        if isinstance(event, ImageProgress) and event.phase is phase:
            return
    raise AssertionError(f"the stream ended before {phase}")


@pytest.mark.slow
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("family", BUILDERS)
def test_quantised_weights_pass_through_and_give_the_same_after_a_reload(
    shared_home: Path, tmp_path: Path, family: str, bits: int
) -> None:
    home = borrow_home(shared_home, tmp_path / "home")
    source = BUILDERS[family](tmp_path / "model", bits=bits)
    manifest = asyncio.run(Store(home).import_model(source, "quantised:tiny"))
    assert str(bits) in manifest.quantization

    async def twice() -> list[bytes]:
        drawn = []
        with Controller(home) as controller:
            async with AsyncClient(controller.target, timeout=PATIENCE) as client:
                drawn.append(await draw(client, "quantised:tiny"))
                await client.unload_model("quantised:tiny")
                drawn.append(await draw(client, "quantised:tiny"))
        return drawn

    first, second = asyncio.run(twice())
    assert first == second
