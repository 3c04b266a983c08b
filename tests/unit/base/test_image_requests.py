"""A request for images against what a model takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from headrace.errors import InvalidRequest, UnsupportedParameter
from headrace.rpc.images import check_image_request
from headrace.v1.image_pb2 import InputImage, StreamImageRequest


@dataclass(frozen=True)
class Traits:
    size_step: int = 16
    min_size: int = 64
    max_size: int = 1024
    max_steps: int = 50
    guidance: float | None = 4.0
    negative_prompt: bool = True
    max_input_images: int = 1
    strength: float | None = 0.5


TEXT_ALONE = Traits(guidance=None, negative_prompt=False, max_input_images=0, strength=None)
PHOTO = [InputImage(data=b"x")]


def request(**fields: Any) -> StreamImageRequest:
    return StreamImageRequest(model="m", prompt="p", **fields)


@pytest.mark.parametrize(
    ("fields", "traits"),
    [
        ({}, TEXT_ALONE),
        (
            {
                "negative_prompt": "",
                "guidance": 0,
                "strength": 0,
                "input_images": PHOTO,
                "width": 64,
                "height": 1024,
                "steps": 50,
            },
            Traits(),
        ),
    ],
)
def test_what_a_model_takes_passes(fields: dict[str, Any], traits: Traits) -> None:
    check_image_request(request(**fields), traits)


@pytest.mark.parametrize(
    ("fields", "traits", "field"),
    [
        ({"negative_prompt": ""}, TEXT_ALONE, "negative_prompt"),
        ({"guidance": 0}, TEXT_ALONE, "guidance"),
        ({"input_images": PHOTO}, TEXT_ALONE, "input_images"),
        ({"strength": 0.5, "input_images": PHOTO}, Traits(strength=None), "strength"),
        ({"strength": 0.5}, Traits(), "strength"),
    ],
)
def test_what_it_takes_none_of_is_named(fields: dict[str, Any], traits: Traits, field: str) -> None:
    with pytest.raises(UnsupportedParameter) as caught:
        check_image_request(request(**fields), traits)
    assert caught.value.metadata == {"field": field}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"width": 100}, ["width: the model draws 64 to 1024 pixels in steps of 16, not 100; "
                          "the nearest is 96"]),
        ({"width": 16, "height": 2048}, ["nearest is 64", "nearest is 1024"]),
        ({"steps": 51}, ["steps: the model takes at most 50"]),
        ({"input_images": PHOTO * 2}, ["input_images: the model takes at most 1, not 2"]),
    ],
)  # fmt: skip
def test_what_it_cannot_draw_with_is_told_with_a_remedy(
    fields: dict[str, Any], said: list[str]
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_image_request(request(**fields), Traits())
    for text in said:
        assert text in caught.value.message


def test_a_model_of_one_size_says_which() -> None:
    with pytest.raises(InvalidRequest, match="the model draws 64 pixels, not 128"):
        check_image_request(request(height=128), Traits(min_size=64, max_size=64))
