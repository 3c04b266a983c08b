"""A request for images against what a model takes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from headrace.errors import InvalidRequest, UnsupportedParameter
from headrace.rpc.images import check_image_request
from headrace.types import ImageTraits
from headrace.v1.image_pb2 import InputImage, StreamImageRequest

TRAITS = ImageTraits(
    width=512,
    height=512,
    size_step=16,
    min_size=64,
    max_size=1024,
    steps=20,
    max_steps=50,
    guidance=4.0,
    negative_prompt=True,
    max_input_images=1,
    strength=0.5,
    max_batch=1,
)
TEXT_ALONE = replace(
    TRAITS, guidance=None, negative_prompt=False, max_input_images=0, strength=None
)
PHOTO = [InputImage(data=b"x")]


def request(**fields: Any) -> StreamImageRequest:
    return StreamImageRequest(model="m", prompt="p", **fields)


@pytest.mark.parametrize(
    ("fields", "traits"),
    [
        ({}, TEXT_ALONE),
        ({"negative_prompt": "thorns", "guidance": 0}, TRAITS),
        ({"negative_prompt": ""}, replace(TRAITS, guidance=1.0)),
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
            TRAITS,
        ),
    ],
)
def test_what_a_model_takes_passes(fields: dict[str, Any], traits: ImageTraits) -> None:
    check_image_request(request(**fields), traits)


@pytest.mark.parametrize(
    ("fields", "traits", "field"),
    [
        ({"negative_prompt": ""}, TEXT_ALONE, "negative_prompt"),
        ({"guidance": 0}, TEXT_ALONE, "guidance"),
        ({"input_images": PHOTO}, TEXT_ALONE, "input_images"),
        ({"strength": 0.5, "input_images": PHOTO}, replace(TRAITS, strength=None), "strength"),
        ({"strength": 0.5}, TRAITS, "strength"),
        ({"negative_prompt": "thorns", "guidance": 1}, TRAITS, "negative_prompt"),
        ({"negative_prompt": "thorns"}, replace(TRAITS, guidance=1.0), "negative_prompt"),
    ],
)
def test_what_it_takes_none_of_is_named(
    fields: dict[str, Any], traits: ImageTraits, field: str
) -> None:
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
        check_image_request(request(**fields), TRAITS)
    for text in said:
        assert text in caught.value.message


def test_a_model_of_one_size_says_which() -> None:
    with pytest.raises(InvalidRequest, match="the model draws 64 pixels, not 128"):
        check_image_request(request(height=128), replace(TRAITS, min_size=64, max_size=64))
