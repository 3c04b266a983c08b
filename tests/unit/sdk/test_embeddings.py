"""Vectors by both clients: what is sent, what is given, and what is refused before it is sent."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from headrace import AsyncClient, Client
from headrace.errors import InvalidRequest
from headrace.types import Embeddings, Usage
from tests.unit.sdk.fake import Fake, serving


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[Fake]:
    with serving(tmp_path / "c.sock") as fake:
        yield fake


GIVEN = Embeddings(
    vectors=[[2.0, 1.0], [3.0, 1.0], [10.0, 1.0]],
    dimensions=2,
    normalized=True,
    prompt_tokens=(2, 3, 10),
    truncated=(False, False, True),
    usage=Usage(prompt_tokens=15, cached_tokens=0, output_tokens=0),
    digest="sha256:0",
)
INPUTS: list[Any] = ["hi", [7, 8, 9], "ten_of_it_"]


def test_vectors_come_in_the_order_of_the_inputs(fake: Fake) -> None:
    with Client(fake.target) as client:
        assert client.embed("m", INPUTS) == GIVEN
        (request,) = fake.requests
        assert [given.WhichOneof("input") for given in request.inputs] == [
            *("text", "token_ids", "text")
        ]
        assert list(request.inputs[1].token_ids.ids) == [7, 8, 9]
        for field in ("dimensions", "normalize", "truncate", "keep_alive"):
            assert not request.HasField(field)
        bare = client.embed(
            "m",
            (text for text in ["hi"]),
            dimensions=1,
            normalize=False,
            truncate=True,
            keep_alive=timedelta(seconds=5),
        )
        assert not bare.normalized
        request = fake.requests[-1]
        assert (request.dimensions, request.normalize, request.truncate) == (1, False, True)
        assert request.keep_alive.seconds == 5


async def test_the_client_for_asyncio_gives_the_same(fake: Fake) -> None:
    async with AsyncClient(fake.target) as client:
        assert await client.embed("m", INPUTS) == GIVEN


@pytest.mark.parametrize(
    ("inputs", "options", "field"),
    [
        ("a text", {}, "inputs"),
        (7, {}, "inputs"),
        (["a", None], {}, "inputs[1].token_ids.ids"),
        (["\ud800"], {}, "inputs[0].text"),
        ([[1, "b"]], {}, "inputs[0].token_ids.ids[1]"),
        (["a"], {"dimensions": 2**40}, "dimensions"),
        (["a"], {"keep_alive": "long"}, "keep_alive"),
    ],
)
def test_what_cannot_be_sent_is_refused(
    fake: Fake, inputs: Any, options: dict[str, Any], field: str
) -> None:
    with Client(fake.target) as client, pytest.raises(InvalidRequest) as caught:
        client.embed("m", inputs, **options)
    assert [violation.field for violation in caught.value.violations] == [field]
    assert fake.requests == []
