"""Images through the SDK: what is asked for, what comes, and what must not pass for a picture."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from headrace import AsyncClient, Client, _calls
from headrace.errors import DataLoss, InvalidRequest, RpcFailed, RunnerCrashed
from headrace.types import (
    ImageCompleted,
    ImageOptions,
    ImagePhase,
    ImagePreview,
    ImageProgress,
    ImageStarted,
    ImageTraits,
)
from headrace.v1 import image_pb2, model_pb2
from tests.unit.sdk import fake as say
from tests.unit.sdk.fake import Fake


def test_a_stream_gives_events_and_then_the_files(fake: Fake) -> None:
    with (
        Client(fake.target) as client,
        client.stream_image("a rose", model="emoji:64", seed=7, preview_every=2) as stream,
    ):
        events = [*stream]
        whole = stream.collect()
    assert [type(event).__name__.removeprefix("Image") for event in events] == [
        *("Progress", "Progress", "Started", "Progress", "Progress", "Preview"),
        *("Progress", "Progress", "Chunk", "Chunk", "Completed"),
    ]
    assert events[0] == ImageProgress(ImagePhase.QUEUED, 0, queue_position=2, remaining=1.5)
    assert events[1] == ImageProgress(ImagePhase.LOADING, 0, load_fraction=0.5, remaining=1.5)
    assert events[4] == ImageProgress(ImagePhase.DENOISING, 0, step=4, total=8, remaining=1.5)
    assert events[2] == ImageStarted("r1", "emoji:64", "sha256:0", "a", 7, 2, 2, 8) == whole.started
    assert events[5] == ImagePreview(0, 4, "image/png", say.ROSE)
    assert isinstance(events[-1], ImageCompleted)
    (image,) = whole.images
    assert (image.data, image.seed, image.media_type) == (say.ROSE, 7, "image/png")
    assert image.sha256 == hashlib.sha256(say.ROSE).hexdigest()
    assert (whole.completed.resumed, whole.timings.decode) == (1, 0.5)
    assert whole.time_to_first_preview is not None
    assert len(whole.trace_id) == 32
    assert fake.requests[0].preview.every_steps == 2


async def test_both_clients_give_the_files(fake: Fake, tmp_path: Path) -> None:
    other = say.png((1, 2, 3), (4, 5, 6))
    fake.images = [say.image_started(), *say.image_files(say.ROSE, other)]
    with Client(fake.target) as client:
        images = client.image("two roses", model="m", count=2)
    async with AsyncClient(fake.target) as client:
        assert await client.image("two roses", model="m", count=2) == images
        async with client.stream_image("two roses", model="m", count=2) as stream:
            assert [type(event).__name__ async for event in stream][-1] == "ImageCompleted"
    assert [(image.index, image.seed, image.data) for image in images] == [
        (0, 7, say.ROSE),
        (1, 8, other),
    ]
    assert repr(images[1].data) not in repr(images[1])
    path = images[1].save(tmp_path / "rose.png")
    assert path.read_bytes() == other


def damaged(script: list[Any]) -> list[Any]:
    script[0].chunk.data = script[0].chunk.data[:-1] + b"?"
    return script


def untold(script: list[Any]) -> list[Any]:
    """Without a word on the last image at the end."""
    del script[-1].completed.images[-1]
    return script


@pytest.mark.parametrize(
    ("script", "kind", "said"),
    [
        (damaged(say.image_files(say.ROSE)), DataLoss, "image 0 was damaged"),
        (say.image_files(say.ROSE)[:1], RpcFailed, "without being completed"),
        (say.image_files(say.ROSE)[1:], RpcFailed, "left out a part of image 0"),
        (say.image_files(), RpcFailed, "without just the 1 asked for"),
        (say.image_files(say.ROSE, say.ROSE), RpcFailed, "without just the 1 asked for"),
        (untold(say.image_files(say.ROSE, say.ROSE)), RpcFailed, "without just the 1 asked for"),
        ([say.image_started()], RpcFailed, "started twice"),
        ([*say.image_files(say.ROSE), say.image_progress("decoding")], RpcFailed, "went on after"),
        ([RunnerCrashed(cause="SIGNAL", bytes_sent=64)], RunnerCrashed, "died"),
    ],
)
def test_what_is_not_whole_is_no_picture(
    fake: Fake, script: list[Any], kind: type[Exception], said: str
) -> None:
    fake.images = [say.image_started(), *script]
    with Client(fake.target) as client, pytest.raises(kind, match=said):
        client.image("a rose", model="m")


def test_output_before_the_start_is_refused(fake: Fake) -> None:
    fake.images = say.image_files(say.ROSE)
    with Client(fake.target) as client, pytest.raises(RpcFailed, match="before it had started"):
        client.image("a rose", model="m")


def build(**options: Any) -> image_pb2.StreamImageRequest:
    call = _calls.stream_image("a rose", "m", cast("ImageOptions", options))
    assert isinstance(call.request, image_pb2.StreamImageRequest)
    return call.request


def test_what_is_not_said_is_absent() -> None:
    nothing = dict.fromkeys(ImageOptions.__annotations__)
    assert build(**nothing) == image_pb2.StreamImageRequest(model="m", prompt="a rose")


def test_every_option_reaches_its_field(tmp_path: Path) -> None:
    path = tmp_path / "in.png"
    path.write_bytes(say.ROSE)
    request = build(
        negative_prompt="thorns",
        width=64,
        height=32,
        steps=8,
        guidance=0.0,
        seed=0,
        count=2,
        input_images=[path, str(path), b"jpeg"],
        strength=0.5,
        loras={"ink": 0.5, "oil": -1.0},
        format="webp",
        embed_parameters=False,
        preview_every=2,
        preview_format="png",
        keep_alive=timedelta(minutes=1),
        priority=-5,
        request_id="id",
    )
    expected = image_pb2.StreamImageRequest(
        model="m",
        prompt="a rose",
        negative_prompt="thorns",
        width=64,
        height=32,
        steps=8,
        guidance=0,
        seed=0,
        count=2,
        strength=0.5,
        format=image_pb2.IMAGE_FORMAT_WEBP,
        embed_parameters=False,
        priority=-5,
        request_id="id",
        preview=image_pb2.PreviewOptions(every_steps=2, format=image_pb2.IMAGE_FORMAT_PNG),
    )
    for data in (say.ROSE, say.ROSE, b"jpeg"):
        expected.input_images.add(data=data)
    expected.loras.add(name="ink", scale=0.5)
    expected.loras.add(name="oil", scale=-1)
    expected.keep_alive.FromSeconds(60)
    assert request == expected
    assert [lora.HasField("scale") for lora in build(loras=["ink"]).loras] == [False]


@pytest.mark.parametrize(
    ("options", "field", "said"),
    [
        ({"width": "wide"}, "width", "whole number"),
        ({"format": "gif"}, "format", "png, jpeg, webp"),
        ({"preview_format": "png"}, "preview.format", "preview_every"),
        ({"input_images": "a.png"}, "input_images", "in a list"),
        ({"input_images": [3]}, "input_images[0]", "path or bytes"),
        ({"input_images": [b"x", "/no/such"]}, "input_images[1]", "No such file"),
        ({"loras": "ink"}, "loras", "sequence of names"),
        ({"loras": {"ink": "much"}}, "loras[0].scale", "a number"),
    ],
)
def test_what_cannot_be_sent_names_its_field(
    options: dict[str, Any], field: str, said: str
) -> None:
    with pytest.raises(InvalidRequest, match=said) as caught:
        build(**options)
    assert [violation.field for violation in caught.value.violations] == [field]


def test_what_is_too_large_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "huge.png"
    with path.open("wb") as file:
        file.truncate((16 << 20) + 1)
    for endless in (path, "/dev/zero"):
        with pytest.raises(InvalidRequest, match="larger than the 16 MiB"):
            build(input_images=[endless])


def test_input_images_that_no_request_can_hold_are_not_sent() -> None:
    image = bytes(15 << 20)
    assert len(build(input_images=[image, image]).input_images) == 2
    with pytest.raises(InvalidRequest, match="more than the 32 MiB") as caught:
        build(input_images=[image, image, bytes(2 << 20)])
    assert [violation.field for violation in caught.value.violations] == ["input_images"]


def test_an_unknown_option_is_a_mistake_of_the_program() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'sise'"):
        build(sise=64)


def test_a_model_says_what_it_draws(fake: Fake) -> None:
    traits = model_pb2.ImageTraits(
        width=64, height=64, size_step=64, min_size=64, max_size=64, steps=20, max_steps=100
    )
    traits.guidance, traits.max_batch = 2.0, 8
    fake.models["emoji:64"] = say.model("emoji:64", image=traits)
    fake.models["m:1"] = say.model()
    with Client(fake.target) as client:
        assert client.get_model("m:1").image is None
        found = client.get_model("emoji:64").image
    assert found == ImageTraits(64, 64, 64, 64, 64, 20, 100, 2.0, False, 0, None, 8)
