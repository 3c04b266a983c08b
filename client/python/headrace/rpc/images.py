"""What a model for images takes, held against a request. Pure.

The controller asks it before a load, by the model's manifest, and a runner by the model itself: so
both refuse alike. Adapters, the bytes of input images, and what a single family of models takes for
something else are the runner's alone to judge.
"""

from __future__ import annotations

from collections.abc import Iterator

from headrace.errors import FieldViolation, InvalidRequest, UnsupportedParameter
from headrace.types import ImageTraits
from headrace.v1.image_pb2 import StreamImageRequest


def check_image_request(request: StreamImageRequest, traits: ImageTraits) -> None:
    """Raises UnsupportedParameter for what the model takes none of, InvalidRequest for a size or
    number that it cannot draw with: nothing is ignored, and nothing rounded."""
    if request.HasField("negative_prompt") and not traits.negative_prompt:
        raise _untaken("the model takes none; say in the prompt what to draw", "negative_prompt")
    guidance = request.guidance if request.HasField("guidance") else traits.guidance
    if request.negative_prompt and guidance == 1:
        raise _untaken("it has no effect at a guidance of 1; ask for more", "negative_prompt")
    if request.HasField("guidance") and traits.guidance is None:
        raise _untaken("the model takes none; leave it out", "guidance")
    if request.input_images and not traits.max_input_images:
        raise _untaken("the model draws from text alone; leave them out", "input_images")
    if request.HasField("strength"):
        if traits.strength is None:
            raise _untaken("the model takes none; leave it out", "strength")
        if not request.input_images:
            raise _untaken("it is of an input image, and there is none; add one", "strength")
    violations = [*_violations(request, traits)]
    if violations:
        raise InvalidRequest(violations=violations)


def _violations(request: StreamImageRequest, traits: ImageTraits) -> Iterator[FieldViolation]:
    for field in ("width", "height"):
        if request.HasField(field) and (what := _size_fault(getattr(request, field), traits)):
            yield FieldViolation(field, what)
    if request.steps > traits.max_steps:
        yield FieldViolation("steps", f"the model takes at most {traits.max_steps}")
    if len(request.input_images) > traits.max_input_images:
        what = f"the model takes at most {traits.max_input_images}, not {len(request.input_images)}"
        yield FieldViolation("input_images", what)


def _size_fault(pixels: int, traits: ImageTraits) -> str:
    """What is wrong with a side, and the nearest that would do; empty if nothing is."""
    step, least, most = traits.size_step, traits.min_size, traits.max_size
    nearest = min(max(round(pixels / step) * step, least), most)
    if pixels == nearest:
        return ""
    if least == most:
        return f"the model draws {most} pixels, not {pixels}"
    return (
        f"the model draws {least} to {most} pixels in steps of {step}, not {pixels}; "
        f"the nearest is {nearest}"
    )


def _untaken(message: str, field: str) -> UnsupportedParameter:
    return UnsupportedParameter(message, field=field)
