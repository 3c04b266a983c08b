"""Scores of the real model through both processes, also where a runner dies."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from headrace import AsyncClient, Client
from headrace.errors import (
    ContextLengthExceeded,
    InvalidRequest,
    ModelNotFound,
)
from headrace_runner.models.insides import new_caches
from headrace_runner.models.load import load
from headrace_runner.models.tokenizer import Tokenizer
from tests.e2e.harness import (
    MODEL,
    PATIENCE,
    Controller,
    StartController,
    headrace,
    killed_under,
)
from tests.e2e.pages import DOCS, examples, first_line, run_example
from tests.e2e.test_metrics import Scrape, url_of

_PAGE = DOCS / "score.md"
FRANCE = "The capital of France is"
CITIES = [" Paris", " London", " the city of Paris.", " a small town in the north of Germany"]


@pytest.fixture(scope="module")
def controller(shared_home: Path) -> Iterator[Controller]:
    """One that computes in float32, as what it is compared with."""
    with Controller(shared_home, "--preload", MODEL, "--dtype", "float32") as running:
        yield running


@pytest.fixture(scope="module")
def reference(smollm2_dir: Path) -> Any:
    """The model as mlx-lm computes it, in float32."""
    return load(smollm2_dir, "float32", lambda fraction: None).model


def logprobs(model: Any, prompt: Sequence[int], continuation: Sequence[int]) -> Any:
    """By one pass over everything."""
    tokens = mx.array([*prompt, *continuation])
    logits = model(tokens[None], cache=new_caches(model))[0, len(prompt) - 1 : -1]
    own = mx.take_along_axis(logits, tokens[len(prompt) :, None], axis=-1)[:, 0]
    found: Any = (own - mx.logsumexp(logits, axis=-1)).tolist()
    return found


def test_scores_are_those_of_mlx_lm(client: Client, reference: Any, smollm2_dir: Path) -> None:
    tokenizer = Tokenizer.load(smollm2_dir)
    found = client.score(MODEL, FRANCE, continuations=CITIES, logprobs=2)
    prompt = tokenizer.encode(FRANCE, add_special=True)
    for text, score in zip(CITIES, found.scores, strict=True):
        assert list(score.token_ids) == tokenizer.encode(text, add_special=False)
        expected = logprobs(reference, prompt, score.token_ids)
        assert [each.logprob for each in score.logprobs] == pytest.approx(expected, abs=1e-3)
        assert score.logprob == pytest.approx(sum(expected), abs=1e-3)
        assert b"".join(each.piece for each in score.logprobs).decode() == text
        for each in score.logprobs:
            assert len(each.top) == 2
            assert each.top[0].logprob >= each.logprob
        greedy = all(each.top[0].token_id == each.token_id for each in score.logprobs)
        assert score.is_greedy == greedy
    paris, london, *_ = found.scores
    assert paris.logprob > london.logprob
    tokens = len(prompt) + sum(len(score.token_ids) for score in found.scores)
    assert (found.usage.prompt_tokens, found.usage.output_tokens) == (tokens, 0)
    assert found.digest == client.get_model(MODEL).digest
    assert found.timings.total >= found.timings.prefill + found.timings.decode > 0


def test_what_is_written_is_greedy(client: Client) -> None:
    written = client.complete(MODEL, FRANCE, temperature=0, max_tokens=8)
    other = [*written.token_ids[:-1], written.token_ids[-1] + 1]
    found = client.score(MODEL, FRANCE, continuations=[written.token_ids, other])
    assert [score.is_greedy for score in found.scores] == [True, False]


def test_a_prompt_is_computed_once(client: Client) -> None:
    prompt = "A list of the cities that I have been to: " + "Rome, Oslo, " * 40
    client.score(MODEL, prompt, continuations=["Paris"])
    found = client.score(MODEL, prompt, continuations=["Bern", "a longer one, which is new"])
    alone = client.score(MODEL, prompt, continuations=["Bern"])
    assert found.usage.cached_tokens > 100
    assert found.scores[0].logprob == pytest.approx(alone.scores[0].logprob, abs=1e-3)


async def test_streams_and_scores_beside_each_other(controller: Controller) -> None:
    async with AsyncClient(controller.target, timeout=PATIENCE) as client:
        expected = await client.complete(MODEL, FRANCE, temperature=0, max_tokens=24)
        alone = await client.score(MODEL, FRANCE, continuations=CITIES)
        stories = [" and the rest of the story goes on" * n for n in range(1, 9)]
        one, other, _ = await asyncio.gather(
            client.complete(MODEL, FRANCE, temperature=0, max_tokens=24),
            client.score(MODEL, FRANCE, continuations=CITIES),
            client.score(MODEL, "Once upon a time", continuations=stories),
        )
    assert one.token_ids == expected.token_ids
    assert [score.logprob for score in other.scores] == pytest.approx(
        [score.logprob for score in alone.scores], abs=1e-3
    )


async def test_a_call_survives_its_runner(start: StartController) -> None:
    controller = start("--preload", MODEL, "--metrics-listen", "127.0.0.1:0")
    async with AsyncClient(controller.target, timeout=PATIENCE) as client:
        before = await client.score(MODEL, FRANCE, continuations=CITIES)
        after = await killed_under(client, client.score(MODEL, FRANCE, continuations=CITIES))
        for one, again in zip(before.scores, after.scores, strict=True):
            assert again.logprob == pytest.approx(one.logprob, abs=1e-3)
        assert after.timings.load > 0
        # Given up while it runs, it leaves nothing behind.
        large = asyncio.create_task(
            client.score(MODEL, FRANCE * 100, continuations=[text * 40 for text in CITIES])
        )
        async with asyncio.timeout(PATIENCE):
            while not (await client.list_runners()).runners[0].active_requests:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            large.cancel()
            while (await client.list_runners()).runners[0].active_requests:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        scrape = Scrape(url_of(controller))
        told = {"gen_ai_operation_name": "score", "gen_ai_response_model": MODEL}
        assert scrape.sum("gen_ai_server_request_duration_seconds_count", **told) == 3


def test_what_is_wrong_is_named(client: Client) -> None:
    cases: list[tuple[Any, str]] = [
        ({"continuations": []}, "continuations"),
        ({"continuations": [""]}, "continuations[0].text"),
        ({"continuations": ["a"] * 1025}, "continuations"),
        ({"continuations": ["a", []]}, "continuations[1].token_ids.ids"),
        ({"continuations": [[10**6]]}, "continuations[0].token_ids.ids[0]"),
        ({"continuations": ["a"], "logprobs": 21}, "logprobs.top"),
        ({"continuations": ["a"], "priority": 101}, "priority"),
    ]
    for options, field in cases:
        with pytest.raises(InvalidRequest) as caught:
            client.score(MODEL, FRANCE, **options)
        assert [violation.field for violation in caught.value.violations] == [field]
    with pytest.raises(InvalidRequest, match="empty"):
        client.score(MODEL, "", continuations=["a"])
    with pytest.raises(ContextLengthExceeded, match=r"continuations\[1\]"):
        client.score(MODEL, FRANCE, continuations=["a", " long" * 10_000])
    with pytest.raises(ModelNotFound):
        client.score("nobody:1", FRANCE, continuations=["a"])


def typed() -> list[tuple[str, str]]:
    """Each command of the page, and what it shows."""
    page = _PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"^```console\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    parts = [part for block in blocks for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]]
    return [(part.split("\n")[0], part.partition("\n")[2]) for part in parts]


@pytest.mark.parametrize(("line", "shown"), typed(), ids=lambda text: text[:40])
def test_the_commands_of_the_docs_run(controller: Controller, line: str, shown: str) -> None:
    words = shlex.split(line)
    assert words.pop(0) == "headrace"
    seen = headrace(controller, *words).stdout
    number = re.compile(r"-?\d+\.\d+")
    assert number.sub("0", seen).split() == number.sub("0", shown).split()
    found, expected = (list(map(float, number.findall(text))) for text in (seen, shown))
    assert found == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("example", examples("score.md"), ids=first_line)
def test_the_examples_of_the_docs_run(controller: Controller, example: str) -> None:
    run_example(controller, example)


def test_json_has_it_all(controller: Controller) -> None:
    ended = headrace(controller, "score", MODEL, FRANCE, "--json", stdin=" Paris\n London\n")
    paris, london = json.loads(ended.stdout)["scores"]
    assert paris["logprob"] > london["logprob"]
