"""ScoreService of a runner in this process: real services, a real server, a small model."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from headrace.errors import InvalidRequest, ModelMismatch, QueueFull, from_rpc_error
from headrace.telemetry import names
from headrace.v1.completion_pb2 import CompletionInput, LogprobsOptions
from headrace.v1.score_pb2 import Continuation, ScoreRequest, ScoreResponse
from headrace.v1.score_pb2_grpc import ScoreServiceStub
from headrace_runner.convert.gguf_import import import_gguf
from headrace_runner.services import score, spans
from headrace_runner.text_app import prepare
from headrace_runner.text_state import TextRunner
from tests.runner_services import services_of
from tests.tracing import spans_of
from tests.unit.convert.tiny import write_gguf

MODEL = "tiny:1"


@dataclass
class Served:
    runner: TextRunner
    channel: grpc.aio.Channel

    async def score(self, prompt: str, *texts: str, **fields: Any) -> ScoreResponse:
        """Raises the typed error."""
        given: dict[str, Any] = {
            "model": MODEL,
            "input": CompletionInput(prompt=prompt),
            "continuations": [Continuation(text=text) for text in texts],
        }
        request = ScoreRequest(**given | fields)
        method: Any = ScoreServiceStub(self.channel).Score
        try:
            answer: ScoreResponse = await method(request, timeout=30)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None
        return answer


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_gguf(folder / "tiny.gguf", matrices="F32", embedding="F32")
    (folder / "model").mkdir()
    import_gguf(folder / "tiny.gguf", folder / "model", lambda phase, done, total: None)
    return folder / "model"


@pytest.fixture
async def served(model_dir: Path, tmp_path: Path) -> AsyncIterator[Served]:
    limits = ("--max-concurrency", "1", "--max-waiting", "1")
    async with services_of(prepare, model_dir, tmp_path / "r.sock", MODEL, *limits) as (made, to):
        assert isinstance(made.runner, TextRunner)
        made.runner.loaded.set_result(await made.runner.engine.start())
        yield Served(made.runner, to)


async def test_an_answer_has_what_was_asked_for(served: Served) -> None:
    bare = await served.score("the quick", " fox", " dog jumps")
    assert bare.digest == "sha256:ab"
    prompt = len(served.runner.tokenizer.encode("the quick", add_special=True))
    counts = [len(each.token_ids) for each in bare.scores]
    assert bare.usage.prompt_tokens == prompt + sum(counts)
    assert (bare.usage.cached_tokens, bare.usage.output_tokens) == (0, 0)
    assert not any(each.logprobs for each in bare.scores)
    timings = bare.timings
    parts = [timings.queue, timings.prefill, timings.decode]
    assert timings.prefill.ToNanoseconds() > 0
    assert timings.total.ToNanoseconds() >= sum(part.ToNanoseconds() for part in parts)
    options = LogprobsOptions(enabled=True, top=2)
    full = await served.score("the quick", " fox", " dog jumps", logprobs=options)
    assert full.usage.cached_tokens == prompt - 1
    for one, other in zip(bare.scores, full.scores, strict=True):
        assert one.token_ids == other.token_ids
        assert [each.token_id for each in other.logprobs] == list(one.token_ids)
        assert {len(each.top) for each in other.logprobs} == {2}
        assert other.logprob == pytest.approx(one.logprob, abs=1e-4)
        assert other.logprob == pytest.approx(math.fsum(e.logprob for e in other.logprobs))


async def test_what_is_refused(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidRequest, match=r"needs logprobs\.enabled"):
        await served.score("a", " b", logprobs=LogprobsOptions(top=2))
    with pytest.raises(InvalidRequest) as caught:
        await served.score("a", " b", input=None)
    assert [violation.field for violation in caught.value.violations] == ["input"]
    with pytest.raises(ModelMismatch):
        await served.score("a", " b", model="other")
    monkeypatch.setattr(score, "MAX_MESSAGE_BYTES", 4096)
    with pytest.raises(InvalidRequest, match="too long"):
        await served.score("a", " b")
    assert await served.runner.drain(1) == 0


async def test_one_who_leaves_frees_the_place(served: Served) -> None:
    assert served.runner.engine.active == 0
    large = [" it goes on" * 20] * 1024
    calls = [asyncio.create_task(served.score("once", *large)) for _ in range(2)]
    while served.runner.engine.active < 2:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    with pytest.raises(QueueFull):
        await served.score("a", " b")
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    while served.runner.engine.active:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    assert len((await served.score("a", " b")).scores) == 1
    while served.runner.engine.stats.kv_reserved_bytes:  # noqa: ASYNC110 - told after the answer
        await asyncio.sleep(0.005)


async def test_a_request_has_its_span_and_its_line(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    exporter = spans_of(monkeypatch, spans)
    caplog.set_level(logging.INFO)
    answer = await served.score("the secret", " fox", " dog")
    by_name = {span.name: dict(span.attributes or {}) for span in exporter.get_finished_spans()}
    whole = f"score {MODEL}"
    assert by_name.keys() == {whole, names.SPAN_QUEUE, names.SPAN_PREFILL, names.SPAN_SCORE}
    told = by_name[whole]
    assert told[names.GEN_AI_OPERATION_NAME] == "score"
    assert told[names.GEN_AI_USAGE_INPUT_TOKENS] == answer.usage.prompt_tokens
    assert told[names.HEADRACE_SCORE_CONTINUATIONS] == 2
    assert by_name[names.SPAN_SCORE] == {names.HEADRACE_SCORE_PASSES: 1}
    (line,) = [record for record in caplog.records if record.message == "score ended"]
    assert vars(line)["outcome"] == "scored"
    assert "secret" not in repr(told) + repr(vars(line))
