"""Builds the request for images, as `_requests` does those for text."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from headrace._requests import invalid, put, put_keep_alive
from headrace.rpc.options import MAX_MESSAGE_BYTES
from headrace.types import ImageOptions, InputImage
from headrace.v1 import image_pb2

MAX_INPUT_BYTES = 16 << 20
"""Of one input image: of a larger file no more is read."""
_REST_BYTES = 1 << 20
"""Of a request, kept free for all but its input images."""

_OPTIONS = ImageOptions.__annotations__.keys()
_SCALARS = (
    *("request_id", "negative_prompt", "width", "height", "steps", "guidance", "seed", "count"),
    *("strength", "embed_parameters", "priority"),
)
_FORMATS = {
    name.removeprefix("IMAGE_FORMAT_").lower(): number
    for name, number in image_pb2.ImageFormat.items()
    if number
}


def image(prompt: str, model: str, options: ImageOptions) -> image_pb2.StreamImageRequest:
    """A request for images. Reads the input images that are given by their paths."""
    for name in options.keys() - _OPTIONS:
        raise TypeError(f"unexpected keyword argument {name!r}")
    request = image_pb2.StreamImageRequest()
    put(request, "model", model)
    put(request, "prompt", prompt)
    for name in _SCALARS:
        put(request, name, options.get(name))
    for index, given in enumerate(_inputs(options.get("input_images"))):
        data = _data(given, f"input_images[{index}]")
        put(request.input_images.add(), "data", data, path=f"input_images[{index}].data")
        # gRPC itself refuses what is larger, and names neither field nor remedy.
        if request.ByteSize() > MAX_MESSAGE_BYTES - _REST_BYTES:
            most = MAX_MESSAGE_BYTES >> 20
            raise invalid("input_images", f"have more than the {most} MiB of a request together")
    _loras(request, options.get("loras"))
    _format(request, "format", options.get("format"), "format")
    every = options.get("preview_every")
    if every is not None:
        put(request.preview, "every_steps", every, path="preview.every_steps")
        _format(request.preview, "format", options.get("preview_format"), "preview.format")
    elif options.get("preview_format") is not None:
        raise invalid("preview.format", "is of previews: say how often with preview_every")
    put_keep_alive(request, options.get("keep_alive"))
    return request


def _inputs(given: Sequence[InputImage] | None) -> Sequence[InputImage]:
    if isinstance(given, str | bytes | os.PathLike):
        raise invalid("input_images", "must be a sequence of paths or bytes: put it in a list")
    return given or ()


def _data(given: InputImage, field: str) -> bytes:
    if isinstance(given, bytes):
        return given
    if not isinstance(given, str | os.PathLike):
        raise invalid(field, f"must be a path or bytes, not {type(given).__name__}")
    path = Path(given)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_INPUT_BYTES + 1)  # A pipe or a device has no size to look at.
    except (OSError, ValueError) as error:
        what = error.strerror if isinstance(error, OSError) else str(error)
        raise invalid(field, f"{path} cannot be read: {what}") from None
    if len(data) > MAX_INPUT_BYTES:
        raise invalid(field, f"{path} is larger than the 16 MiB of an input image")
    return data


def _loras(
    request: image_pb2.StreamImageRequest, loras: Mapping[str, float] | Sequence[str] | None
) -> None:
    if isinstance(loras, str):
        raise invalid("loras", "must be a sequence of names, or map them to weights")
    scales = loras if isinstance(loras, Mapping) else dict.fromkeys(loras or ())
    for index, (name, scale) in enumerate(scales.items()):
        lora = request.loras.add()
        put(lora, "name", name, path=f"loras[{index}].name")
        put(lora, "scale", scale, path=f"loras[{index}].scale")


def _format(
    message: image_pb2.StreamImageRequest | image_pb2.PreviewOptions,
    field: str,
    name: str | None,
    path: str,
) -> None:
    if name is None:
        return
    if name not in _FORMATS:
        raise invalid(path, f"must be one of {', '.join(_FORMATS)}, not {name!r}")
    put(message, field, _FORMATS[name], path=path)
