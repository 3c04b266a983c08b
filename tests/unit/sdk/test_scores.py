"""Scores by both clients: what is sent, what is given, and what is refused before it is sent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace import AsyncClient, Client
from headrace.errors import InvalidRequest
from headrace.types import ContinuationScore, Scores, Timings, TokenLogprob, Usage
from tests.unit.sdk.fake import Fake, serving


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[Fake]:
    with serving(tmp_path / "c.sock") as fake:
        yield fake


GIVEN = Scores(
    scores=(
        ContinuationScore(-1.0, (97, 98), True, ()),
        ContinuationScore(-1.5, (7, 8, 9), False, ()),
    ),
    usage=Usage(prompt_tokens=9, cached_tokens=2, output_tokens=0),
    timings=Timings(0.0, 0.0, 0.0, 0.0, 0.0),
    digest="sha256:0",
)
CONTINUATIONS: list[Any] = ["ab", [7, 8, 9]]


def test_scores_come_in_the_order_of_the_continuations(fake: Fake) -> None:
    with Client(fake.target) as client:
        assert client.score("m", "p", continuations=CONTINUATIONS) == GIVEN
        (request,) = fake.requests
        assert request.input.prompt == "p"
        assert [c.WhichOneof("continuation") for c in request.continuations] == [
            *("text", "token_ids")
        ]
        for field in ("logprobs", "priority", "keep_alive"):
            assert not request.HasField(field)
        found = client.score(
            "m",
            messages=[{"role": "user", "content": "hi"}],
            continuations=(text for text in ["a"]),
            add_generation_prompt=False,
            logprobs=3,
            priority=2,
            keep_alive=5,
        )
        assert found.scores[0].logprobs == (TokenLogprob(97, -0.5, b"a"),)
        request = fake.requests[-1]
        assert request.input.chat.messages[0].content == "hi"
        assert request.input.chat.add_generation_prompt is False
        assert (request.logprobs.enabled, request.logprobs.top) == (True, 3)
        assert (request.priority, request.keep_alive.seconds) == (2, 5)


def test_the_mean_is_that_of_a_token() -> None:
    assert GIVEN.scores[1].mean_logprob == -0.5


async def test_the_client_for_asyncio_gives_the_same(fake: Fake) -> None:
    async with AsyncClient(fake.target) as client:
        assert await client.score("m", "p", continuations=CONTINUATIONS) == GIVEN


@pytest.mark.parametrize(
    ("continuations", "options", "field"),
    [
        ("a text", {}, "continuations"),
        (7, {}, "continuations"),
        (["a", None], {}, "continuations[1].token_ids.ids"),
        (["\ud800"], {}, "continuations[0].text"),
        ([[1, "b"]], {}, "continuations[0].token_ids.ids[1]"),
        (["a"], {"logprobs": "all"}, "logprobs.top"),
        (["a"], {"keep_alive": "long"}, "keep_alive"),
        (["a"], {"token_ids": [1]}, "input"),
    ],
)
def test_what_cannot_be_sent_is_refused(
    fake: Fake, continuations: Any, options: dict[str, Any], field: str
) -> None:
    with Client(fake.target) as client, pytest.raises(InvalidRequest) as caught:
        client.score("m", "p", continuations=continuations, **options)
    assert [violation.field for violation in caught.value.violations] == [field]
    assert fake.requests == []


def test_an_unknown_option_is_an_error_of_the_program(fake: Fake) -> None:
    options: Any = {"temperature": 0.0}
    with Client(fake.target) as client, pytest.raises(TypeError, match="temperature"):
        client.score("m", "p", continuations=["a"], **options)
