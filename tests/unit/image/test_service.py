"""StreamImage over a real server: what it promises, whoever reads and whatever goes wrong."""

from __future__ import annotations

import asyncio
import io
import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from headrace.errors import (
    Cancelled,
    Draining,
    HeadraceError,
    InsufficientMemory,
    InternalError,
    InvalidRequest,
    ModelMismatch,
    ModelTooLarge,
    QueueFull,
    UnsupportedCapability,
    UnsupportedParameter,
    from_rpc_error,
)
from headrace.v1.completion_pb2 import StreamCompletionRequest
from headrace.v1.completion_pb2_grpc import CompletionServiceStub
from headrace.v1.image_pb2 import (
    ImageFormat,
    ImagePhase,
    InputImage,
    LoraOptions,
    PreviewOptions,
    StreamImageRequest,
)
from headrace.v1.tokenize_pb2 import TokenizeRequest
from headrace.v1.tokenize_pb2_grpc import TokenizeServiceStub
from headrace_runner.images.decode import decode
from headrace_runner.models.pipeline import Phase, Pixels
from headrace_runner.services import image as image_service
from tests.painter import PLAIN, TRAITS, save_painter
from tests.unit.image.serving import MODEL, Served, ask, serving

PNG, JPEG, WEBP = (
    ImageFormat.IMAGE_FORMAT_PNG,
    ImageFormat.IMAGE_FORMAT_JPEG,
    ImageFormat.IMAGE_FORMAT_WEBP,
)


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def picture(size: tuple[int, int] = (32, 32), colour: str = "blue") -> InputImage:
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, "PNG")
    return InputImage(data=out.getvalue())


async def test_a_stream_keeps_its_promises(served: Served) -> None:
    answer = await served.api.draw(ask(seed=7, request_id="mine"))
    started, (image,) = answer.started, answer.completed.images
    assert (started.id, started.model, started.digest) == ("mine", MODEL, "sha256:ab")
    assert (started.seed, started.width, started.height, started.steps) == (7, 32, 32, 4)
    assert (image.media_type, image.seed) == ("image/png", 7)
    drawn = opened(answer.files[0])
    assert drawn.size == (32, 32)
    assert drawn.info["parameters"] == (
        f'a rose\nSteps: 4, CFG scale: 2, Seed: 7, Size: 32x32, Model: "{MODEL}"'
    )
    phases = ImagePhase
    after = answer.progress[answer.kinds.index("started") :]
    told = [(p.phase, p.step, p.total) for p in after]
    assert told == sorted(told)
    assert set(told) - {(phases.IMAGE_PHASE_DENOISING, step, 4) for step in (1, 2, 3)} == {
        (phases.IMAGE_PHASE_ENCODING, 0, 1),
        (phases.IMAGE_PHASE_ENCODING, 1, 1),
        (phases.IMAGE_PHASE_DENOISING, 0, 4),
        (phases.IMAGE_PHASE_DENOISING, 4, 4),
        (phases.IMAGE_PHASE_DECODING, 0, 1),
        (phases.IMAGE_PHASE_DECODING, 1, 1),
    }
    timings = answer.completed.timings
    parts = (timings.queue, timings.load, timings.prefill, timings.decode)
    total = timings.total.ToNanoseconds()
    assert total > 0
    assert timings.prefill.ToNanoseconds() > 0
    assert sum(part.ToNanoseconds() for part in parts) <= total


async def test_the_same_seed_gives_the_same_bytes_alone_and_in_company(served: Served) -> None:
    many = await served.api.draw(ask(seed=2**63 - 2, count=5))
    assert [image.seed for image in many.completed.images] == [2**63 - 2, 2**63 - 1, 0, 1, 2]
    assert [len(batch) for batch in served.pipeline.batches] == [4, 1]
    for index, seed in ((1, 2**63 - 1), (3, 1)):
        alone = await served.api.draw(ask(seed=seed))
        assert alone.files[0] == many.files[index]


async def test_a_seed_that_nobody_gave_is_told_and_gives_the_image_again(served: Served) -> None:
    first, second = await served.api.draw(ask()), await served.api.draw(ask())
    assert first.started.seed != second.started.seed
    again = await served.api.draw(ask(seed=first.started.seed))
    assert again.files[0] == first.files[0] != second.files[0]


@pytest.mark.parametrize(
    ("format", "name"), [(PNG, "png"), (JPEG, "jpeg"), (WEBP, "webp"), (None, "png")]
)
async def test_files_of_every_format_and_without_parameters(
    served: Served, format: ImageFormat.ValueType | None, name: str
) -> None:
    fields: dict[str, Any] = {} if format is None else {"format": format}
    with_text = await served.api.draw(ask(seed=1, **fields))
    bare = await served.api.draw(ask(seed=1, embed_parameters=False, **fields))
    assert with_text.completed.images[0].media_type == f"image/{name}"
    assert opened(with_text.files[0]).format == name.upper()
    text = "a rose" if name == "png" else "a rose".encode("utf-16-be").decode("latin-1")
    assert text.encode("latin-1") in with_text.files[0]
    assert text.encode("latin-1") not in bare.files[0]
    same = np.asarray(opened(bare.files[0])) == np.asarray(opened(with_text.files[0]))
    assert same.all()


async def test_large_files_come_in_pieces(served: Served) -> None:
    answer = await served.api.draw(ask(width=256, height=256, steps=1, seed=3))
    assert answer.kinds.count("chunk") == math.ceil(len(answer.files[0]) / (64 << 10)) > 1


async def test_previews_are_sent_where_asked_for(served: Served) -> None:
    plain = await served.api.draw(ask(count=2))
    assert plain.previews == []
    served.pipeline.batches.clear()
    options = PreviewOptions(every_steps=2)
    answer = await served.api.draw(ask(count=2, steps=6, preview=options))
    shown = [(p.index, p.step, p.media_type) for p in answer.previews]
    assert shown == [(i, s, "image/jpeg") for s in (2, 4) for i in (0, 1)]
    as_png = await served.api.draw(ask(preview=PreviewOptions(every_steps=3, format=PNG)))
    (only,) = as_png.previews
    assert opened(only.data).format == "PNG"


async def test_an_input_image_is_brought_to_size_and_kept_as_far_as_asked(served: Served) -> None:
    answer = await served.api.draw(ask(input_images=[picture((400, 200))], strength=1.0))
    assert [p.total for p in answer.progress if p.phase == ImagePhase.IMAGE_PHASE_DENOISING] == [0]
    half = await served.api.draw(ask(input_images=[picture()] * 2))
    assert {p.total for p in half.progress if p.phase == ImagePhase.IMAGE_PHASE_DENOISING} == {2}
    (batch, _) = served.pipeline.batches
    (image,) = batch[0].input_images
    assert image.shape == (32, 32, 3)
    assert image[0, 0].tolist() == [0, 0, 255]


async def test_who_brings_no_image_does_not_wait_for_those_who_do(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()

    def slowly(*given: Any) -> Pixels:
        assert go_on.wait(20)
        return decode(*given)

    monkeypatch.setattr("headrace_runner.services.image_options.decode", slowly)
    slow = asyncio.create_task(served.api.draw(ask(input_images=[picture()])))
    while not served.runner._calls:  # noqa: ASYNC110 - nobody tells of it
        await asyncio.sleep(0.005)
    await served.api.draw(ask())
    assert not slow.done()
    go_on.set()
    await slow


async def test_no_memory_for_an_input_image_is_not_its_fault(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", short)
    with pytest.raises(InsufficientMemory) as caught:
        await served.api.draw(ask(input_images=[picture()]))
    assert "input_images[0]" in caught.value.message


async def test_all_that_is_asked_for_reaches_the_model(served: Served) -> None:
    options: dict[str, Any] = {
        "negative_prompt": "thorns",
        "guidance": 3.5,
        "loras": [LoraOptions(name="sepia", scale=0.25)],
        "width": 48,
        "height": 16,
        "steps": 3,
        "strength": 0.25,
        "input_images": [picture()],
        "seed": 5,
    }
    answer = await served.api.draw(ask(**options))
    ((drawing,),) = served.pipeline.batches
    assert (drawing.width, drawing.height, drawing.steps, drawing.seed) == (48, 16, 3, 5)
    assert (drawing.negative_prompt, drawing.guidance, drawing.strength) == ("thorns", 3.5, 0.25)
    assert drawing.loras == (("sepia", 0.25),)
    assert "Negative prompt: thorns" in opened(answer.files[0]).info["parameters"]


BAD = [
    ("width", InvalidRequest, {"width": 40}),
    ("width", InvalidRequest, {"width": 512}),
    ("height", InvalidRequest, {"height": 17}),
    ("steps", InvalidRequest, {"steps": 101}),
    ("steps", InvalidRequest, {"steps": 0}),
    ("count", InvalidRequest, {"count": 17}),
    ("prompt", InvalidRequest, {"prompt": ""}),
    ("guidance", InvalidRequest, {"guidance": math.nan}),
    ("seed", InvalidRequest, {"seed": -1}),
    ("strength", UnsupportedParameter, {"strength": 0.5}),
    ("loras[1].name", UnsupportedParameter, {"loras": [{"name": "sepia"}, {"name": "ink"}]}),
    ("preview.format", InvalidRequest, {"preview": PreviewOptions(format=PNG)}),
    ("input_images", InvalidRequest, {"input_images": [picture()] * 3}),
    (
        "input_images[1].data",
        InvalidRequest,
        {"input_images": [picture(), InputImage(data=b"no image")]},
    ),
    (
        "input_images[0].data",
        InvalidRequest,
        {"input_images": [InputImage(data=picture().data[:-30])]},
    ),
]


@pytest.mark.parametrize(("field", "kind", "options"), BAD)
async def test_what_is_wrong_is_said_with_the_fields_name(
    served: Served, field: str, kind: type[HeadraceError], options: dict[str, Any]
) -> None:
    if "loras" in options:
        options = {"loras": [LoraOptions(**lora) for lora in options["loras"]]}
    with pytest.raises(kind) as caught:
        await served.api.draw(ask(**options))
    assert type(caught.value) is kind
    assert {violation.field for violation in caught.value.violations} == {field}
    assert served.pipeline.batches == []


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("negative_prompt", {"negative_prompt": "x"}),
        ("guidance", {"guidance": 1.0}),
        ("input_images", {"input_images": [picture()]}),
        ("strength", {"strength": 0.5}),
    ],
)
async def test_what_the_model_takes_none_of_is_refused(
    painter_dir: Path, tmp_path: Path, field: str, options: dict[str, Any]
) -> None:
    save_painter(painter_dir, PLAIN)
    async with serving(painter_dir, tmp_path / "p.sock") as served:
        with pytest.raises(UnsupportedParameter) as caught:
            await served.api.draw(ask(**options))
        assert caught.value.metadata["field"] == field
        plain = await served.api.draw(ask(seed=1))
        assert (
            opened(plain.files[0]).info["parameters"].splitlines()[1].startswith("Steps: 4, Seed")
        )


async def test_text_is_none_of_its_business(served: Served) -> None:
    completion: Any = CompletionServiceStub(served.api.channel)
    tokenize: Any = TokenizeServiceStub(served.api.channel)
    calls = (
        completion.StreamCompletion(StreamCompletionRequest(model=MODEL, prompt="x")).read(),
        tokenize.Tokenize(TokenizeRequest(model=MODEL, text="x")),
    )
    for call in calls:
        with pytest.raises(Exception) as caught:  # noqa: PT011 - gRPC's, which is translated
            await call
        error = from_rpc_error(caught.value)  # type: ignore[arg-type]
        assert isinstance(error, UnsupportedCapability)
        assert error.metadata == {"model": MODEL, "capability": "text"}


async def test_another_model_is_refused(served: Served) -> None:
    with pytest.raises(ModelMismatch):
        await served.api.draw(ask(model="other"))
    stream = served.api.stream(ask(model="alias"), metadata=(("headrace-digest", "sha256:ab"),))
    assert (await stream.rest()).started.model == "alias"


async def test_who_waits_is_told_where_and_how_long(served: Served) -> None:
    await served.api.draw(ask(steps=2))  # What a step takes is learnt.
    steps = threading.Semaphore(0)

    def at(phase: Phase, done: int) -> None:
        assert steps.acquire(timeout=20)

    served.pipeline.at = at
    first = served.api.stream(ask(width=64))
    steps.release()
    await first.until("started")
    waiting = [served.api.stream(ask(width=width)) for width in (48, 80)]
    while served.runner.engine.active < 3:  # noqa: ASYNC110 - nobody tells of it
        await asyncio.sleep(0.005)
    steps.release()
    for stream in waiting:
        await stream.until("progress")
    told = [stream.answer.progress[-1] for stream in waiting]
    assert [p.phase for p in told] == [ImagePhase.IMAGE_PHASE_QUEUED] * 2
    assert [p.queue_position for p in told] == [0, 1]
    left = [p.remaining.ToNanoseconds() for p in told]
    assert 0 < left[0] < left[1]
    steps.release(1000)
    for stream in (first, *waiting):
        await stream.rest()


async def test_a_sign_of_life_comes_in_every_phase(
    painter_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_service, "_HEARTBEAT", 0.02)
    async with serving(painter_dir, tmp_path / "r.sock", load=False) as served:
        stream = served.api.stream(ask())
        for _ in range(3):
            await stream.until("progress")
            loading = stream.answer.progress[-1]
            assert loading.phase == ImagePhase.IMAGE_PHASE_LOADING
            assert loading.load_fraction == 0
        await served.load()
        served.pipeline.go_on.clear()
        await stream.until("started")
        beats = len(stream.answer.progress)
        for _ in range(3):
            await stream.until("progress")
        # Who has begun is in no queue any more.
        assert {p.phase for p in stream.answer.progress[beats:]} == {
            ImagePhase.IMAGE_PHASE_ENCODING
        }
        served.pipeline.go_on.set()
        await stream.rest()


async def test_a_cancelled_stream_frees_the_model_at_its_next_step(served: Served) -> None:
    loop = asyncio.get_running_loop()
    for phase in Phase:
        reached = asyncio.Event()

        def at(now: Phase, done: int, phase: Phase = phase, reached: Any = reached) -> None:
            if now is phase:
                loop.call_soon_threadsafe(reached.set)
                served.pipeline.go_on.clear()

        served.pipeline.at = at
        stream = served.api.stream(ask(steps=50))
        await stream.until("started")
        await reached.wait()
        after: list[int] = []
        served.pipeline.at = lambda phase, done, after=after: after.append(done)  # type: ignore[misc]
        stream.call.cancel()
        while served.runner.engine.active:  # noqa: ASYNC110 - nobody tells of it
            await asyncio.sleep(0.005)
        served.pipeline.go_on.set()
        await served.idle()
        assert len(after) <= 1
    served.pipeline.at = lambda phase, done: None
    answer = await served.api.draw(ask(seed=1))
    assert opened(answer.files[0]).size == (32, 32)
    assert served.runner.engine.requests_total == 4


async def test_a_fault_is_internal_and_the_next_request_works(served: Served) -> None:
    served.pipeline.fault = lambda drawings: ZeroDivisionError("a bug")
    with pytest.raises(InternalError):
        await served.api.draw(ask())
    served.pipeline.fault = lambda drawings: RuntimeError("[malloc] Unable to allocate 1 bytes.")
    with pytest.raises(InsufficientMemory):
        await served.api.draw(ask())
    served.pipeline.fault = lambda drawings: None
    await served.api.draw(ask())


async def test_a_size_that_never_fits_is_refused_with_one_that_does(served: Served) -> None:
    served.runner.free = lambda: 0
    loaded = served.runner.loaded.result()
    object.__setattr__(loaded, "memory_available", 100 * 100 * 100)
    with pytest.raises(ModelTooLarge) as caught:
        await served.api.draw(ask(width=256, height=256))
    assert caught.value.metadata == {"needs": "6553600", "has": "1000000"}
    assert "ask for 96x96 or smaller" in caught.value.message
    await served.api.draw(ask(width=96, height=96))


async def test_an_abort_ends_the_stream_and_a_drain_waits_for_it(served: Served) -> None:
    served.pipeline.go_on.clear()
    aborted = served.api.stream(ask(request_id="one"))
    kept = served.api.stream(ask(request_id="two", width=64))
    await aborted.until("started")
    while served.runner.engine.active < 2:  # noqa: ASYNC110 - nobody tells of it
        await asyncio.sleep(0.005)
    assert served.runner.abort("one", Cancelled("The request was aborted."))
    with pytest.raises(Cancelled):
        await aborted.rest()
    draining = asyncio.create_task(served.runner.drain(20))
    await served.runner.draining.wait()
    with pytest.raises(Draining):
        await served.api.draw(ask())
    served.pipeline.go_on.set()
    await kept.rest()
    assert await draining == 0


async def test_a_drain_whose_time_is_up_ends_what_runs(served: Served) -> None:
    served.pipeline.go_on.clear()
    stream = served.api.stream(ask())
    await stream.until("started")
    assert await served.runner.drain(0.05) == 1
    with pytest.raises(Draining):
        await stream.rest()
    served.pipeline.go_on.set()


async def test_no_more_wait_than_may(painter_dir: Path, tmp_path: Path) -> None:
    few = ("--max-concurrency", "1", "--max-waiting", "1")
    async with serving(painter_dir, tmp_path / "f.sock", *few) as served:
        served.pipeline.go_on.clear()
        streams = [served.api.stream(ask()) for _ in range(2)]
        await streams[0].until("started")
        while served.runner.engine.active < 2:  # noqa: ASYNC110 - nobody tells of it
            await asyncio.sleep(0.005)
        with pytest.raises(QueueFull):
            await served.api.draw(ask())
        served.pipeline.go_on.set()
        for stream in streams:
            await stream.rest()
        assert max(map(len, served.pipeline.batches)) == 1


async def test_a_model_that_draws_one_at_a_time_has_no_more_in_line_for_that(
    painter_dir: Path, tmp_path: Path
) -> None:
    save_painter(painter_dir, PLAIN)
    async with serving(painter_dir, tmp_path / "f.sock", "--max-waiting", "1") as served:
        served.pipeline.go_on.clear()
        streams = [served.api.stream(ask()) for _ in range(2)]
        await streams[0].until("started")
        while served.runner.engine.active < 2:  # noqa: ASYNC110 - nobody tells of it
            await asyncio.sleep(0.005)
        with pytest.raises(QueueFull):
            await served.api.draw(ask())
        served.pipeline.go_on.set()
        for stream in streams:
            await stream.rest()


async def test_who_does_not_read_holds_up_nobody_and_gets_all(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some megabytes of files, more than the transport takes."""
    options: dict[str, Any] = {"width": 256, "height": 256, "steps": 30, "count": 16, "seed": 1}
    every = PreviewOptions(every_steps=1)
    slow = served.api.stream(ask(**options, preview=every))
    await slow.until("started")
    other = await served.api.draw(ask(width=64))
    assert opened(other.files[0]).size == (64, 32)
    await served.idle()  # All is drawn, and nothing read.
    answer = await slow.rest()
    assert sorted(answer.files) == list(range(16))
    # What was outdated was not kept.
    assert len(answer.previews) < 16 * 29
    assert served.runner.limits.max_concurrency == TRAITS.max_batch


def test_a_request_is_the_contracts() -> None:
    """All fields are known here: a new one has to be honoured or refused."""
    known = {
        *("request_id", "model", "prompt", "negative_prompt", "width", "height", "steps"),
        *("guidance", "seed", "count", "input_images", "strength", "loras", "format"),
        *("embed_parameters", "preview", "keep_alive", "priority"),
    }
    assert {field.name for field in StreamImageRequest.DESCRIPTOR.fields} == known


async def test_a_token_is_charged_for_each_image(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    charged: list[int] = []
    monkeypatch.setattr(image_service, "charge", charged.append)
    await served.api.draw(ask(width=64, height=32, steps=3, count=2))
    assert charged == [24, 24]
