"""EmbeddingService of a runner in this process: real services, a real server, a small encoder."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from headrace.errors import (
    ContextLengthExceeded,
    InvalidRequest,
    ModelMismatch,
    UnsupportedCapability,
    UnsupportedParameter,
    from_rpc_error,
)
from headrace.telemetry import names
from headrace.v1.common_pb2 import TokenIds
from headrace.v1.completion_pb2 import CompletionInput, StreamCompletionRequest
from headrace.v1.completion_pb2_grpc import CompletionServiceStub
from headrace.v1.embedding_pb2 import EmbeddingInput, EmbedRequest, EmbedResponse
from headrace.v1.embedding_pb2_grpc import EmbeddingServiceStub
from headrace.v1.image_pb2 import StreamImageRequest
from headrace.v1.image_pb2_grpc import ImageServiceStub
from headrace.v1.score_pb2 import Continuation, ScoreRequest
from headrace.v1.score_pb2_grpc import ScoreServiceStub
from headrace.v1.tokenize_pb2 import TokenizeRequest
from headrace.v1.tokenize_pb2_grpc import TokenizeServiceStub
from headrace_runner.embedding_app import prepare
from headrace_runner.embedding_state import EmbeddingRunner
from headrace_runner.models.encoders.encoder import Encoder, Vectors
from headrace_runner.services import spans
from tests.encoders import CONTEXT, HIDDEN, reference, save_encoder
from tests.runner_services import services_of
from tests.tracing import spans_of

MODEL = "tiny:1"
SHORTER: dict[str, Any] = {"matryoshka_dimensions": [8, 16]}


@dataclass
class Served:
    runner: EmbeddingRunner
    channel: grpc.aio.Channel
    directory: Path

    async def embed(self, inputs: Sequence[Any], **fields: Any) -> EmbedResponse:
        """Raises the typed error."""
        request = EmbedRequest(**{"model": MODEL, "inputs": map(given, inputs)} | fields)
        response: EmbedResponse = await self.ask(EmbeddingServiceStub(self.channel).Embed, request)
        return response

    async def ask(self, method: Any, request: Any) -> Any:
        try:
            return await method(request, timeout=30)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None


def given(value: str | list[int]) -> EmbeddingInput:
    if isinstance(value, str):
        return EmbeddingInput(text=value)
    return EmbeddingInput(token_ids=TokenIds(ids=value))


@asynccontextmanager
async def serving(directory: Path, *arguments: str) -> AsyncIterator[Served]:
    socket = directory / "r.sock"
    async with services_of(prepare, directory, socket, MODEL, *arguments) as (made, channel):
        assert isinstance(made.runner, EmbeddingRunner)
        made.runner.loaded.set_result(await made.runner.engine.start())
        yield Served(made.runner, channel, directory)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(save_encoder(tmp_path / "m", **SHORTER)) as served:
        yield served


def values(response: EmbedResponse) -> Vectors:
    return np.array([each.values for each in response.embeddings], dtype=np.float32)


def unit(vector: Any) -> Any:
    return vector / np.linalg.norm(vector)


async def test_vectors_are_the_models_scaled_or_as_they_are(served: Served) -> None:
    inputs = ["the cat", [2, 4, 6, 3], "a dog ran on the mat", " "]
    response = await served.embed(inputs)
    assert (response.dimensions, response.normalized, response.digest) == (
        *(HIDDEN, True),
        "sha256:ab",
    )
    assert [each.prompt_tokens for each in response.embeddings] == [4, 4, 8, 2]
    assert response.usage.prompt_tokens == 18
    assert not any(each.truncated for each in response.embeddings)
    found = values(response)
    raw = values(await served.embed(inputs, normalize=False))
    rows = [[2, 4, 6, 3], [2, 4, 6, 3], [2, 5, 7, 9, 10, 4, 12, 3], [2, 3]]
    for row, scaled, plain in zip(rows, found, raw, strict=True):
        expected = reference(served.directory, row)
        assert np.abs(unit(expected) - scaled).max() < 1e-5
        assert np.abs(expected - plain).max() < 1e-5
    assert found[0] == pytest.approx(found[1], abs=1e-6)


async def test_vectors_are_cut_before_they_are_scaled(served: Served) -> None:
    whole = reference(served.directory, [2, 4, 6, 3])
    response = await served.embed(["the cat"], dimensions=8)
    assert response.dimensions == 8
    assert np.abs(values(response)[0] - unit(whole[:8])).max() < 1e-5
    plain = await served.embed(["the cat"], dimensions=HIDDEN, normalize=False)
    assert np.abs(values(plain)[0] - whole).max() < 1e-5
    assert not plain.normalized


async def test_a_long_input_is_cut_or_refused_by_its_name(served: Served) -> None:
    long = "the cat sat on " * 10
    with pytest.raises(ContextLengthExceeded) as caught:
        await served.embed(["the cat", long])
    assert caught.value.metadata == {"limit": str(CONTEXT), "actual": "42"}
    assert [violation.field for violation in caught.value.violations] == ["inputs[1]"]
    ids = [5] * (CONTEXT + 1)
    with pytest.raises(ContextLengthExceeded):
        await served.embed([ids])
    response = await served.embed(["the cat", long, ids], truncate=True)
    assert [each.truncated for each in response.embeddings] == [False, True, True]
    assert [each.prompt_tokens for each in response.embeddings] == [4, CONTEXT, CONTEXT]
    row = [2, *([4, 6, 8, 10] * 10)[: CONTEXT - 2], 3]
    assert np.abs(values(response)[1] - unit(reference(served.directory, row))).max() < 1e-5


@pytest.mark.parametrize(
    ("inputs", "fields", "error", "field"),
    [
        (["a"], {"dimensions": 7}, UnsupportedParameter, "dimensions"),
        (["a"], {"dimensions": HIDDEN + 1}, UnsupportedParameter, "dimensions"),
        (["a"], {"dimensions": 0}, InvalidRequest, "dimensions"),
        ([], {}, InvalidRequest, "inputs"),
        (["a"] * 2049, {}, InvalidRequest, "inputs"),
        (["a", ""], {}, InvalidRequest, "inputs[1].text"),
        (["a" * 1048577], {}, InvalidRequest, "inputs[0].text"),
        ([[2, 3], [2, 30]], {}, InvalidRequest, "inputs[1].token_ids.ids[1]"),
        ([[]], {}, InvalidRequest, "inputs[0].token_ids.ids"),
    ],
)
async def test_what_is_wrong_is_named(
    served: Served, inputs: list[Any], fields: dict[str, Any], error: Any, field: str
) -> None:
    with pytest.raises(error) as caught:
        await served.embed(inputs, **fields)
    assert [violation.field for violation in caught.value.violations] == [field]


async def test_an_input_has_to_be_something(served: Served) -> None:
    method = EmbeddingServiceStub(served.channel).Embed
    with pytest.raises(InvalidRequest) as caught:
        await served.ask(method, EmbedRequest(model=MODEL, inputs=[EmbeddingInput()]))
    assert "inputs[0].input" in caught.value.message
    with pytest.raises(ModelMismatch):
        await served.embed(["a"], model="other")


async def test_a_model_that_cannot_shorten_says_so(tmp_path: Path) -> None:
    async with serving(save_encoder(tmp_path / "m")) as served:
        with pytest.raises(UnsupportedParameter, match="cannot be cut"):
            await served.embed(["a"], dimensions=8)
        assert (await served.embed(["a"], dimensions=HIDDEN)).dimensions == HIDDEN


async def test_more_than_a_message_carries_is_refused(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace_runner.services.embedding_inputs.MAX_MESSAGE_BYTES", 8192)
    with pytest.raises(InvalidRequest, match="32 vectors of 24 numbers at most"):
        await served.embed(["a"] * 33)
    assert len((await served.embed(["a"] * 33, dimensions=8)).embeddings) == 33


async def test_2048_inputs_come_in_their_order(served: Served) -> None:
    rows = [[2, *[4 + n % 20] * (1 + n % 17), 3] for n in range(2048)]
    response = await served.embed(rows)
    found = values(response)
    assert [each.prompt_tokens for each in response.embeddings] == list(map(len, rows))
    alone = {n: values(await served.embed([rows[n]]))[0] for n in (0, 1, 700, 2047)}
    for n, vector in alone.items():
        assert found[n] == pytest.approx(vector, abs=1e-6)
    assert np.linalg.norm(found, axis=1) == pytest.approx(1, abs=1e-5)


async def test_a_shorter_context_is_kept_to(tmp_path: Path) -> None:
    async with serving(save_encoder(tmp_path / "m"), "--context", "5") as served:
        assert served.runner.limits.context_length == 5
        with pytest.raises(ContextLengthExceeded):
            await served.embed(["the cat sat on"])
        response = await served.embed(["the cat sat on"], truncate=True)
        assert response.embeddings[0].prompt_tokens == 5


async def test_whoever_cancels_leaves_nothing_behind(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, go_on = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    compute = Encoder.embed
    batches = 0

    def slow(self: Encoder, rows: Sequence[Sequence[int]]) -> Vectors:
        nonlocal batches
        batches += 1
        loop.call_soon_threadsafe(entered.set)
        asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result(30)
        return compute(self, rows)

    monkeypatch.setattr(Encoder, "embed", slow)
    rows = [given([2, 4, 3]) for _ in range(2048)]
    method: Any = EmbeddingServiceStub(served.channel).Embed
    call = method(EmbedRequest(model=MODEL, inputs=rows), timeout=30)
    await entered.wait()
    call.cancel()
    while served.runner.engine.active:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    go_on.set()
    assert len((await served.embed(["a"])).embeddings) == 1
    assert batches <= 3
    assert await served.runner.drain(1) == 0


async def test_other_services_say_what_the_model_is_for(served: Served) -> None:
    for method, request in (
        (TokenizeServiceStub(served.channel).Tokenize, TokenizeRequest(model=MODEL, text="x")),
        (
            ScoreServiceStub(served.channel).Score,
            ScoreRequest(
                model=MODEL,
                input=CompletionInput(prompt="x"),
                continuations=[Continuation(text="y")],
            ),
        ),
        (
            lambda *a, **k: CompletionServiceStub(served.channel).StreamCompletion(*a, **k).read(),
            StreamCompletionRequest(model=MODEL, prompt="x"),
        ),
        (
            lambda *a, **k: ImageServiceStub(served.channel).StreamImage(*a, **k).read(),
            StreamImageRequest(model=MODEL, prompt="x"),
        ),
    ):
        with pytest.raises(UnsupportedCapability, match="a model for embedding, not for"):
            await served.ask(method, request)


async def test_a_request_has_its_span_and_its_line(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    exporter = spans_of(monkeypatch, spans)
    caplog.set_level(logging.INFO)
    await served.embed(["the secret cat", "a dog"])
    by_name = {span.name: dict(span.attributes or {}) for span in exporter.get_finished_spans()}
    assert by_name.keys() == {f"embeddings {MODEL}", names.SPAN_QUEUE, names.SPAN_EMBEDDING}
    told = by_name[f"embeddings {MODEL}"]
    assert told[names.GEN_AI_OPERATION_NAME] == "embeddings"
    assert told[names.GEN_AI_USAGE_INPUT_TOKENS] == 9
    assert told[names.GEN_AI_EMBEDDINGS_DIMENSION_COUNT] == HIDDEN
    assert told[names.HEADRACE_EMBEDDING_INPUTS] == 2
    assert by_name[names.SPAN_EMBEDDING] == {names.HEADRACE_EMBEDDING_BATCHES: 1}
    (line,) = [record for record in caplog.records if record.message == "embedding ended"]
    assert vars(line)["outcome"] == "embedded"
    assert "secret" not in repr(told) + repr(vars(line))
