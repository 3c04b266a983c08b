"""What the SDK shows to the world, what it finds by itself, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys

import pytest
from google.protobuf import descriptor_pool

import headrace
from headrace import _calls, _model_calls, types
from headrace._target import resolve_target
from headrace.types import CompletionOptions, ImageOptions, ScoreOptions


def test_exports() -> None:
    assert sorted(headrace.__all__) == [
        "AsyncClient",
        "AsyncCompletionStream",
        "AsyncImageStream",
        "AsyncModelWatch",
        "AsyncTransferStream",
        "AsyncVerifyStream",
        "Client",
        "Completed",
        "Completion",
        "CompletionStream",
        "Delta",
        "Embeddings",
        "FinishReason",
        "HeadraceError",
        "ImageResult",
        "ImageStream",
        "Message",
        "Model",
        "ModelWatch",
        "Progress",
        "Scores",
        "Started",
        "Tool",
        "ToolCall",
        "TransferStream",
        "VerifyStream",
    ]
    for name in headrace.__all__:
        assert getattr(headrace, name).__name__ == name
    with pytest.raises(AttributeError, match="nothing_here"):
        _ = headrace.nothing_here
    assert set(types.__all__) <= set(dir(types))


def test_importing_is_light() -> None:
    code = """
import sys, time
begin = time.process_time()  # What others do on the machine is not counted.
from headrace import AsyncClient, Client
assert time.process_time() - begin < 0.5, "slow"
heavy = {"mlx", "click", "rich", "protovalidate", "opentelemetry.sdk", "psutil", "transformers"}
heavy |= {"PIL", "numpy"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_method_is_in_the_contract() -> None:
    pool = descriptor_pool.Default()
    calls = [
        _calls.stream_completion("m", "p", None, None, CompletionOptions()),
        _calls.stream_image("a rose", "m", ImageOptions()),
        _calls.embed("m", ["a"], None, None, None, None),
        _calls.score_continuations("m", "p", ["a"], None, None, ScoreOptions()),
        _calls.tokenize("m", "", None, None),
        _calls.detokenize("m", [], None),
        _calls.render_chat("m", [], None, None),
        _calls.count_tokens("m", "p", None, None),
        _model_calls.list_models(None),
        _model_calls.list_runners(),
        _model_calls.get_model("m"),
        _model_calls.pull_model("m"),
        _model_calls.import_model("/m", "m", None),
        _model_calls.copy_model("m", "n"),
        _model_calls.delete_model("m"),
        _model_calls.verify_models(["m"]),
        _model_calls.collect_garbage(None),
        _model_calls.load_model("m", None),
        _model_calls.unload_model("m"),
        _model_calls.watch_models(None),
        _calls.health(""),
    ]
    for call in calls:
        assert isinstance(call, _calls.Unary | _calls.Streaming)
        service, method = call.method.removeprefix("/").split("/")
        found = pool.FindServiceByName(service).methods_by_name[method]
        assert found.input_type is call.request.DESCRIPTOR
        assert found.output_type is call.answer.DESCRIPTOR
        assert found.server_streaming is isinstance(call, _calls.Streaming)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("host", "host:50151"),
        ("host:1", "host:1"),
        ("::1", "[::1]:50151"),
        ("[::1]", "[::1]:50151"),
        ("[::1]:1", "[::1]:1"),
        ("unix:/run/c.sock", "unix:/run/c.sock"),
        ("dns:///host:1", "dns:///host:1"),
    ],
)
def test_targets(given: str, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_target(given) == found
    monkeypatch.setenv("HEADRACE_HOST", given)
    assert resolve_target() == found
    monkeypatch.setenv("HEADRACE_HOST", "")
    assert resolve_target() == "127.0.0.1:50151"
