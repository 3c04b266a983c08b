"""Vectors of the real model through both processes, also where a runner dies."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from headrace import AsyncClient, Client
from headrace.errors import ContextLengthExceeded, UnsupportedCapability, UnsupportedParameter
from headrace.types import ModelKind
from tests.conftest import MINILM
from tests.e2e.harness import (
    PATIENCE,
    Controller,
    borrow_home,
    headrace,
    killed_under,
)
from tests.e2e.pages import examples, first_line, run_example
from tests.e2e.test_metrics import Scrape, url_of
from tests.encoders import TEXTS

REFERENCE = json.loads((Path(__file__).parent / "minilm.json").read_text())
"""What `python -m tests.encoders` has made of TEXTS, in float64."""
PUBLISHED = [[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]]
"""Cosines of the first three, as the documentation of sentence-transformers has them."""


@pytest.fixture(scope="module")
def library(minilm_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Controller]:
    """A controller that tests share, and that serves metrics."""
    home = borrow_home(minilm_home, tmp_path_factory.mktemp("minilm") / "home")
    with Controller(home, "--preload", MINILM, "--metrics-listen", "127.0.0.1:0") as running:
        yield running


@pytest.fixture
def client(library: Controller) -> Iterator[Client]:
    with Client(library.target, timeout=PATIENCE) as made:
        yield made


def test_vectors_are_those_of_the_reference(client: Client) -> None:
    answer = client.embed(MINILM, TEXTS, truncate=True)
    vectors = np.array(answer.vectors)
    assert (vectors.shape, answer.normalized) == ((len(TEXTS), 384), True)
    assert list(answer.prompt_tokens) == REFERENCE["tokens"]
    assert answer.usage.prompt_tokens == sum(REFERENCE["tokens"])
    assert answer.truncated == (False,) * 5 + (True,)
    assert np.abs(vectors[:, :16] - REFERENCE["first"]).max() < 1e-4
    cosines = vectors @ vectors.T
    assert np.abs(cosines - REFERENCE["cosines"]).max() < 1e-4
    assert np.abs(cosines[:3, :3] - PUBLISHED).max() < 1e-4
    raw = np.array(client.embed(MINILM, TEXTS, truncate=True, normalize=False).vectors)
    assert np.abs(np.linalg.norm(raw, axis=1) / REFERENCE["norms"] - 1).max() < 1e-4
    # What comes of a text does not depend on what it comes with.
    alone = np.array(client.embed(MINILM, TEXTS[1:2]).vectors[0])
    assert np.abs(alone - vectors[1]).max() < 1e-6


def test_the_store_says_what_it_makes_and_what_it_cannot_do(client: Client) -> None:
    model = client.get_model("minilm")
    assert (model.name, model.kind, model.architecture) == (MINILM, ModelKind.EMBEDDING, "bert")
    assert (model.embedding_dimensions, model.context_length) == (384, 256)
    assert model.parameters == 22_565_376
    assert 0 < model.memory_estimate_bytes < 600 << 20
    with pytest.raises(UnsupportedCapability):
        client.complete(MINILM, "hello")
    with pytest.raises(UnsupportedParameter):
        client.embed(MINILM, ["hello"], dimensions=128)
    with pytest.raises(ContextLengthExceeded, match=r"inputs\[1\]"):
        client.embed(MINILM, ["short", TEXTS[-1]])


async def test_a_call_survives_its_runner(library: Controller) -> None:
    async with AsyncClient(library.target, timeout=PATIENCE) as client:
        before = await client.embed(MINILM, TEXTS[:3])
        after = await killed_under(client, client.embed(MINILM, TEXTS[:3]))
        assert np.abs(np.array(after.vectors) - before.vectors).max() < 1e-6


def test_requests_are_measured(library: Controller, client: Client) -> None:
    client.embed(MINILM, TEXTS[:2])
    scrape = Scrape(url_of(library))
    told = {"gen_ai_operation_name": "embeddings", "gen_ai_response_model": MINILM}
    assert scrape.sum("gen_ai_server_request_duration_seconds_count", **told) >= 1
    tokens = {"headrace_model_name": MINILM, "gen_ai_token_type": "input"}
    assert scrape.sum("headrace_tokens_total", **tokens) >= 17


def test_the_command_line_compares(library: Controller) -> None:
    ended = headrace(library, "embed", "minilm", *TEXTS[:3])
    assert ended.stdout.splitlines()[1].split()[-3:] == ["1.00", "0.67", "0.10"]
    lines = headrace(library, "embed", "minilm", "--vectors", stdin="one\ntwo\n").stdout
    assert [len(json.loads(line)) for line in lines.splitlines()] == [384, 384]


@pytest.mark.parametrize("example", examples("embeddings.md"), ids=first_line)
def test_the_examples_of_the_docs_run(library: Controller, example: str) -> None:
    run_example(library, example)
