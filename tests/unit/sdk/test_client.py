"""The blocking client against a real server with scripted answers."""

from __future__ import annotations

import math
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from headrace import Client, Completed, Delta, FinishReason, Progress, Started, ToolCall
from headrace.errors import (
    Cancelled,
    DeadlineExceeded,
    Draining,
    InvalidRequest,
    ModelNotFound,
    QueueFull,
    RpcFailed,
    RunnerCrashed,
    Unavailable,
)
from headrace.types import (
    ModelChanged,
    ModelDeleted,
    ModelKind,
    ModelsEvent,
    ModelsSnapshot,
    RunnerState,
    ToolCallPart,
    TransferPhase,
    TransferProgress,
    WatchCheckpoint,
)
from headrace.v1 import completion_pb2, model_pb2
from tests.unit.sdk import fake as say
from tests.unit.sdk.fake import Fake


def test_events_and_the_whole(fake: Fake) -> None:
    logprob = completion_pb2.TokenLogprob(token_id=2, logprob=-0.5, piece=b"lo")
    fake.completion = [
        say.response(progress=completion_pb2.CompletionProgress(load_fraction=0.5)),
        say.started(cached_tokens=1),
        say.delta("Hel", 1, reasoning="hm"),
        say.delta("lo", 2, logprobs=[logprob], output_tokens=2),
        say.completed(
            finish_reason=completion_pb2.FINISH_REASON_STOP, stop_string="!", output_tokens=2
        ),
    ]
    with Client(fake.target) as client, client.stream_completion("m", "p", seed=7) as stream:
        events = list(stream)
        whole = stream.collect()
    assert [type(event) for event in events] == [Progress, Started, Delta, Delta, Completed]
    assert events[0] == Progress(load_fraction=0.5)
    assert whole.text == "Hello"
    assert whole.reasoning == "hm"
    assert whole.token_ids == (1, 2)
    assert [entry.logprob for entry in whole.logprobs] == [-0.5]
    assert whole.started.seed == 7
    assert whole.finish_reason is FinishReason.STOP
    assert whole.completed.matched == "!"
    assert whole.completed.resumed == 1
    assert (whole.usage.prompt_tokens, whole.usage.output_tokens) == (3, 2)
    assert whole.timings.total == 1.5
    assert whole.tokens_per_second == 2
    assert whole.time_to_first_token is not None
    assert whole.trace_id == stream.trace_id
    assert (
        fake.metadata[0]["traceparent"]
        == f"00-{stream.trace_id}-" + str(fake.metadata[0]["traceparent"]).split("-", 2)[2]
    )


def test_calls_of_tools_come_in_parts_and_whole(fake: Fake) -> None:
    part = completion_pb2.ToolCallPart
    fake.completion = [
        say.started(),
        say.delta("", 1, tool_calls=[part(index=0, id="i", name="f", arguments_json='{"a"')]),
        say.delta(
            "",
            2,
            tool_calls=[
                part(index=0, arguments_json=": 1}"),
                part(index=1, id="j", name="g", arguments_json='{"b'),
            ],
        ),
        say.completed(finish_reason=completion_pb2.FINISH_REASON_LENGTH),
    ]
    with Client(fake.target) as client, client.stream_completion("m", "p") as stream:
        parts = [part for event in stream if isinstance(event, Delta) for part in event.tool_calls]
        whole = stream.collect()
    assert parts == [
        ToolCallPart(0, '{"a"', "i", "f"),
        ToolCallPart(0, ": 1}"),
        ToolCallPart(1, '{"b', "j", "g"),
    ]
    first, second = whole.tool_calls
    assert first == ToolCall("i", "f", '{"a": 1}')
    assert (first.complete, first.arguments) == (True, {"a": 1})
    assert (second.arguments_json, second.complete) == ('{"b', False)
    with pytest.raises(ValueError, match="g is not complete"):
        _ = second.arguments


@pytest.mark.parametrize("arguments", ["", "[]", '{"a": NaN}', "[" * 100_000, '{"a": 1}}', "1"])
def test_arguments_that_are_no_json_object_are_not_complete(arguments: str) -> None:
    assert not ToolCall("i", "f", arguments).complete


def test_text_pieces_then_the_whole(fake: Fake) -> None:
    with Client(fake.target) as client:
        stream = client.stream_completion("m", "p")
        assert list(stream.text) == ["Hel", "lo"]
        assert stream.collect().text == "Hello"
        assert client.complete("m", messages=[{"role": "user", "content": "hi"}]).text == "Hello"


def test_a_stream_that_is_not_completed_raises(fake: Fake) -> None:
    fake.completion = [say.started(), say.delta("Hel", 1)]
    with Client(fake.target) as client:
        stream = client.stream_completion("m", "p")
        assert next(stream.text) == "Hel"
        with pytest.raises(RpcFailed, match="without being completed"):
            next(stream)
        with pytest.raises(RpcFailed, match="without being completed"):
            client.complete("m", "p")


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ([say.delta("x", 1)], "before it had started"),
        ([say.completed()], "before it had started"),
        ([say.started(), say.started()], "started twice"),
        ([*say.ANSWER, say.delta("x", 1)], "after it had been completed"),
        ([say.started(), say.delta("", 1, tool_calls=[{"index": 0}]), say.completed()], "follow"),
        (
            [
                say.started(),
                say.delta("", 1, tool_calls=[{"index": 1, "name": "f"}]),
                say.completed(),
            ],
            "follow",
        ),
    ],
)
def test_a_stream_that_breaks_the_contract_raises(
    fake: Fake, script: list[object], said: str
) -> None:
    fake.completion = script
    with Client(fake.target) as client, pytest.raises(RpcFailed, match=said):
        client.complete("m", "p")


def test_a_failure_mid_stream_is_typed_and_traced(fake: Fake) -> None:
    fake.completion = [
        say.started(),
        say.delta("Hel", 1),
        RunnerCrashed(cause="SIGNAL", tokens_sent=1),
    ]
    with Client(fake.target) as client:
        stream = client.stream_completion("m", "p")
        pieces: list[str] = []
        with pytest.raises(RunnerCrashed) as caught:
            pieces.extend(stream.text)
        with pytest.raises(RunnerCrashed):
            stream.collect()
    assert pieces == ["Hel"]
    assert caught.value.metadata == {"cause": "SIGNAL", "tokens_sent": "1"}
    assert f"trace {stream.trace_id}" in caught.value.__notes__
    assert len(stream.trace_id) == 32


def test_unary_failures_are_typed_and_traced(fake: Fake) -> None:
    fake.models["smollm2:135m"] = say.model("smollm2:135m")
    with Client(fake.target) as client:
        with pytest.raises(ModelNotFound, match="did you mean") as caught:
            client.get_model("smolm2")
        assert caught.value.metadata["nearest"] == "smollm2:135m"
        assert caught.value.__notes__[0].startswith("trace ")
        fake.failure = QueueFull(5.0, queue="model", limit=8)
        with pytest.raises(QueueFull) as full:
            client.tokenize("m", "x")
        assert full.value.retry_after == 5.0


def test_nothing_is_sent_for_a_bad_argument(fake: Fake) -> None:
    with Client(fake.target) as client:
        with pytest.raises(InvalidRequest, match="text: must be text"):
            client.tokenize("m", "\ud800")
        with pytest.raises(InvalidRequest, match="timeout"):
            client.complete("m", "p", timeout=-1)
    assert fake.requests == []


def test_leaving_the_block_cancels(fake: Fake) -> None:
    fake.completion = [say.started(), say.WAIT]
    with Client(fake.target) as client:
        with client.stream_completion("m", "p") as stream:
            assert isinstance(next(stream), Started)
        assert fake.cancelled.wait(5)
        with pytest.raises(Cancelled):
            next(stream)


def test_another_thread_may_cancel(fake: Fake) -> None:
    fake.completion = [say.started(), say.WAIT]
    with Client(fake.target) as client:
        stream = client.stream_completion("m", "p")
        next(stream)
        timer = threading.Timer(0.1, stream.cancel)
        timer.start()
        with pytest.raises(Cancelled):
            stream.collect()
        timer.join()


def test_deadlines_travel(fake: Fake) -> None:
    fake.models["m"] = say.model("m")
    with Client(fake.target, timeout=50) as client:
        client.get_model("m")
        client.get_model("m", timeout=5)
        client.get_model("m", timeout=math.inf)
        default, shorter, none = fake.remaining
        assert default is not None
        assert 6 < default < 51
        assert shorter is not None
        assert shorter < 6
        assert none is None or none > 1e6
        fake.completion = [say.started(), say.WAIT]
        with pytest.raises(DeadlineExceeded):
            client.complete("m", "p", timeout=0.2)


def test_no_server(tmp_path: Path) -> None:
    with Client(f"unix:{tmp_path}/none.sock") as client, pytest.raises(Unavailable):
        client.complete("m", "p")


def test_tokens(fake: Fake) -> None:
    with Client(fake.target) as client:
        tokens = client.tokenize("m", "hé", pieces=True, add_special=True)
        assert tokens.token_ids == (104, 195, 169)
        assert (tokens.pieces[1].piece, tokens.pieces[1].start, tokens.pieces[1].end) == (
            b"\xc3",
            1,
            2,
        )
        assert fake.requests[-1].add_special
        back = client.detokenize("m", [104, 195])
        assert (back.data, back.text) == (b"h\xc3", "h\ufffd")
        chat = client.render_chat("m", [{"role": "user", "content": "hi"}])
        assert (chat.prompt, chat.token_ids) == ("hi", (104, 105))
        count = client.count_tokens("m", "12345678")
        assert (count.token_count, count.context_length, count.fits) == (8, 8, False)


def test_models(fake: Fake) -> None:
    fake.models["m:1"] = say.model("m:1", runners=[say.runner()])
    fake.models["n:1"] = say.model("n:1", kind=99)
    with Client(fake.target) as client:
        first, second = client.list_models()
        assert (first.name, first.kind, first.quantization) == ("m:1", ModelKind.TEXT, "Q4_1")
        assert first.created_at == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
        assert (first.runners[0].state, first.runners[0].expires_in) == (RunnerState.SERVING, 300)
        assert second.kind is ModelKind.UNKNOWN
        assert [model.name for model in client.list_models(loaded=True)] == ["m:1"]
        assert client.get_model("n:1").runners == ()
        assert client.copy_model("m:1", "x:1").name == "x:1"
        loaded = client.load_model("m:1", keep_alive=-1)
        assert (loaded.load_time, loaded.runner.pid) == (1.25, 42)
        assert fake.requests[-1].keep_alive.seconds == -1
        assert client.unload_model("m:1") == 1
        assert client.delete_model("m:1") == 98_362_432


def test_runners(fake: Fake) -> None:
    fake.runners = [say.runners(output_tokens=7, waiting=2)]
    with Client(fake.target) as client:
        snapshot = client.list_runners()
    serving, loading = snapshot.runners
    assert serving.report is not None
    assert (serving.id, serving.active_requests, serving.report.output_tokens_total) == ("a", 3, 7)
    assert (serving.report.waiting, serving.report.uptime) == (2, 60)
    assert serving.report.resident_bytes == 1 << 29
    assert (loading.load_fraction, loading.report) == (0.5, None)
    assert (snapshot.waiting, snapshot.memory_budget_bytes) == ({"o:1": 2}, 4 << 30)


def test_pull_and_import(fake: Fake, tmp_path: Path) -> None:
    fake.transfer = [
        model_pb2.StreamPullModelResponse(
            progress=model_pb2.TransferProgress(
                phase=model_pb2.TRANSFER_PHASE_DOWNLOAD, done_bytes=1, total_bytes=2
            )
        ),
        model_pb2.StreamPullModelResponse(completed=say.model("m:1")),
    ]
    with Client(fake.target) as client:
        pull = client.pull_model("m")
        assert list(pull) == [TransferProgress(TransferPhase.DOWNLOAD, 1, 2)]
        assert pull.collect().name == "m:1"
        assert fake.requests[-1] == model_pb2.StreamPullModelRequest(model="m")
        client.pull_model(
            "hf:a/b", name="n", revision="v1", files=["*.gguf"], sha256="ab" * 32, allow_http=False
        ).collect()
        assert fake.requests[-1] == model_pb2.StreamPullModelRequest(
            model="hf:a/b",
            name="n",
            revision="v1",
            files=["*.gguf"],
            sha256="ab" * 32,
            allow_http=False,
        )
        fake.transfer = [model_pb2.StreamImportModelResponse(completed=say.model("n:1"))]
        assert client.import_model(tmp_path, "n", replace=True).collect().name == "n:1"
        assert fake.requests[-1].source_path == str(tmp_path)
        assert not fake.requests[-1].quantization
        client.import_model(tmp_path, "n", quantize=4, unchecked=True, base="b").collect()
        assert fake.requests[-1].quantization == model_pb2.IMPORT_QUANTIZATION_4_BITS
        assert fake.requests[-1].unchecked
        assert fake.requests[-1].base == "b"
        with pytest.raises(InvalidRequest, match="quantize"):
            client.import_model(tmp_path, "n", quantize=5)  # type: ignore[arg-type]
        fake.transfer = []
        with pytest.raises(RpcFailed, match="without being completed"):
            client.pull_model("m").collect()


def test_a_watch_tells_every_change_and_knows_the_models(fake: Fake) -> None:
    fake.watch = say.changes()
    told: list[ModelsEvent] = []
    with Client(fake.target) as client, client.watch_models(resume_token="t.0") as watch:
        with pytest.raises(Draining):
            told.extend(watch)
        assert [model.name for model in watch.models] == ["m:1"]
        assert watch.resume_token == "t.4"
    assert fake.requests[-1].resume_token == "t.0"
    snapshot, first, dead, gone, deleted, last = told
    assert isinstance(snapshot, ModelsSnapshot)
    assert [model.name for model in snapshot.models] == ["m:1", "n:1"]
    assert isinstance(dead, ModelChanged)
    assert (dead.model.runners[0].state, dead.model.runners[0].reason) == ("dead", "SIGNAL")
    assert isinstance(gone, ModelChanged)
    assert gone.model.runners == ()
    assert (first, deleted) == (WatchCheckpoint("t.1"), ModelDeleted("n:1"))
    assert last == WatchCheckpoint("t.4")


def test_a_watch_that_just_ends_is_an_error(fake: Fake) -> None:
    fake.watch = say.changes()[:2]
    with Client(fake.target) as client, pytest.raises(RpcFailed):
        client.watch_models().collect()
    assert not fake.requests[-1].HasField("resume_token")


def test_health(fake: Fake) -> None:
    with Client(fake.target) as client:
        assert client.health()
        assert not client.health("busy")
        with pytest.raises(RpcFailed):
            client.health("unknown")
