"""The options of a request for images, as the engine's values.

Every option is honoured or refused with the field's name; none is dropped, and nothing rounded.
Reading input images takes time: call it in a thread.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection

from headrace.errors import (
    FieldViolation,
    InsufficientMemory,
    InvalidRequest,
    UnsupportedParameter,
)
from headrace.rpc.images import check_image_request
from headrace.types import ImageTraits
from headrace.v1.image_pb2 import ImageFormat, StreamImageRequest
from headrace_runner.engine.image.request import ImageRequest
from headrace_runner.images.decode import BadImage, decode
from headrace_runner.images.encode import Format
from headrace_runner.models.pipeline import Drawing, Pixels

_FORMATS: dict[ImageFormat.ValueType, Format] = {
    ImageFormat.IMAGE_FORMAT_PNG: "png",
    ImageFormat.IMAGE_FORMAT_JPEG: "jpeg",
    ImageFormat.IMAGE_FORMAT_WEBP: "webp",
}
_SEEDS = 2**63


def image_request(
    request: StreamImageRequest, request_id: str, traits: ImageTraits, adapters: Collection[str]
) -> ImageRequest:
    """What is to be drawn, all that was left open filled in.

    Raises UnsupportedParameter for what the model does not take, InvalidRequest for what it cannot
    draw with and for input images that cannot be read, InsufficientMemory where there is none to
    read them. Ranges have been checked by the contract's rules.
    """
    check_image_request(request, traits)
    loras = _loras(request, adapters)
    if request.preview.HasField("format") and not request.preview.HasField("every_steps"):
        rule = "needs preview.every_steps"
        raise InvalidRequest(violations=[FieldViolation("preview.format", rule)])
    width = request.width or traits.width
    height = request.height or traits.height
    images = tuple(
        _input_image(image.data, width, height, index)
        for index, image in enumerate(request.input_images)
    )
    seed = request.seed if request.HasField("seed") else secrets.randbits(63)
    drawings = tuple(
        Drawing(
            prompt=request.prompt,
            seed=(seed + index) % _SEEDS,
            width=width,
            height=height,
            steps=request.steps or traits.steps,
            guidance=request.guidance if request.HasField("guidance") else traits.guidance,
            negative_prompt=request.negative_prompt or None,
            input_images=images,
            strength=_strength(request, traits),
            loras=loras,
        )
        for index in range(request.count or 1)
    )
    every = request.preview.every_steps if request.preview.HasField("every_steps") else None
    return ImageRequest(request_id, drawings, request.priority, every)


def file_format(request: StreamImageRequest) -> Format:
    """Of the images."""
    return _FORMATS.get(request.format, "png")


def preview_format(request: StreamImageRequest) -> Format:
    """Of the previews."""
    return _FORMATS.get(request.preview.format, "jpeg")


def _strength(request: StreamImageRequest, traits: ImageTraits) -> float | None:
    if not request.input_images:
        return None
    return request.strength if request.HasField("strength") else traits.strength


def _loras(request: StreamImageRequest, adapters: Collection[str]) -> tuple[tuple[str, float], ...]:
    for index, lora in enumerate(request.loras):
        if lora.name not in adapters:
            there = ", ".join(sorted(adapters)) or "none"
            raise UnsupportedParameter(
                f"the model has no adapter {lora.name!r}; it has: {there}",
                field=f"loras[{index}].name",
            )
    return tuple(
        (lora.name, lora.scale if lora.HasField("scale") else 1.0) for lora in request.loras
    )


def _input_image(data: bytes, width: int, height: int, index: int) -> Pixels:
    try:
        return decode(data, width, height)
    except BadImage as error:
        violation = FieldViolation(f"input_images[{index}].data", str(error))
        raise InvalidRequest(violations=[violation]) from error
    except MemoryError as error:
        raise InsufficientMemory(
            f"there is no memory to read input_images[{index}]; try again later, or send it smaller"
        ) from error
