"""The commands against a scripted controller that listens already."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.cli.app import COMMANDS, cli
from headrace.cli.output import duration, size
from headrace.errors import (
    ContextLengthExceeded,
    InsufficientDisk,
    ModelNotFound,
    QueueFull,
    RunnerCrashed,
    SourceUnavailable,
    Unavailable,
)
from headrace.v1 import common_pb2, completion_pb2, model_pb2
from tests.unit.cli.running import Run
from tests.unit.sdk import fake as say
from tests.unit.sdk.fake import Fake


def test_run_streams_then_says_how_it_went(fake: Fake, headrace: Run) -> None:
    code, out, err = headrace("run", "m", "What", "is", "it?", "--seed", "3", "--stop", "END")
    assert (code, out) == (0, "Hello\n")
    assert "2 tokens · 2.0 tokens/s · first token 0." in err
    assert f"trace {str(fake.metadata[0]['traceparent']).split('-')[1]}" in err
    (request,) = fake.requests
    (message,) = request.chat.messages
    assert (message.role, message.content) == (completion_pb2.CHAT_ROLE_USER, "What is it?")
    assert (request.sampling.seed, list(request.stop.strings)) == (3, ["END"])
    assert request.sampling.temperature == pytest.approx(0.7)
    assert not request.HasField("max_tokens")


def test_run_with_a_system_prompt_raw_and_from_a_pipe(fake: Fake, headrace: Run) -> None:
    assert headrace("run", "m", "--system", "Be brief.", "hi")[0] == 0
    first, second = fake.requests[-1].chat.messages
    assert (first.role, first.content) == (completion_pb2.CHAT_ROLE_SYSTEM, "Be brief.")
    assert second.content == "hi"
    assert headrace("run", "m", "--raw", stdin="Once upon\n")[0] == 0
    assert fake.requests[-1].prompt == "Once upon\n"


def test_run_as_json(fake: Fake, headrace: Run) -> None:
    code, out, err = headrace("run", "m", "hi", "--json")
    answer = json.loads(out)
    assert (code, err, answer["text"]) == (0, "", "Hello")
    assert answer["finish_reason"] == "end_of_text"
    assert answer["usage"] == {"prompt_tokens": 3, "cached_tokens": 1, "output_tokens": 2}
    assert answer["seed"] == 7
    assert len(answer["trace_id"]) == 32


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run",), "Missing argument 'MODEL'"),
        (("run", "m"), "the prompt is empty"),
        (("run", "m", "p", "--raw", "--system", "s"), "--system belongs to a chat"),
        (("run", "m", "p", "--temperature", "hot"), "'hot' is not a valid float"),
        (("runn",), "No such command"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], said: str, fake: Fake, headrace: Run) -> None:
    code, out, err = headrace(*arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert fake.requests == []


def test_run_pulls_a_model_that_is_missing(fake: Fake, headrace: Run) -> None:
    class Once(list[object]):
        """Missing at first, there afterwards."""

        def __iter__(self) -> Iterator[object]:
            missing = not any(isinstance(r, model_pb2.StreamPullModelRequest) for r in asked)
            return iter([ModelNotFound("m")] if missing else say.ANSWER)

    asked = fake.requests
    fake.completion = Once()
    progress = model_pb2.TransferProgress(phase=model_pb2.TRANSFER_PHASE_DOWNLOAD, done_bytes=1)
    fake.transfer = [
        model_pb2.StreamPullModelResponse(progress=progress),
        model_pb2.StreamPullModelResponse(progress=progress),
        model_pb2.StreamPullModelResponse(completed=say.model()),
    ]
    code, out, err = headrace("run", "m", "hi")
    assert (code, out) == (0, "Hello\n")
    assert err.count("downloading m\n") == 1


def test_progress_moves_on_a_terminal(
    fake: Fake, headrace: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    fake.transfer = [
        model_pb2.StreamPullModelResponse(
            progress=model_pb2.TransferProgress(
                phase=phase, done_bytes=50_000_000, total_bytes=98_362_432
            )
        )
        for phase in (model_pb2.TRANSFER_PHASE_DOWNLOAD, model_pb2.TRANSFER_PHASE_CONVERT)
    ] + [model_pb2.StreamPullModelResponse(completed=say.model())]
    code, out, err = headrace("pull", "m")
    assert (code, out) == (0, "m:1 is in the store, 98 MB\n")
    assert "50.0/98.4 MB" in err
    assert "converting m" in err

    wait = completion_pb2.CompletionProgress(load_fraction=0.4)
    fake.completion = [say.response(progress=wait), *say.ANSWER]
    code, out, err = headrace("run", "m", "hi")
    assert (code, out) == (0, "Hello\n")
    assert "\r\x1b[2Kloading m 40%\r\x1b[2K" in err


def test_pull_from_elsewhere(fake: Fake, headrace: Run) -> None:
    fake.transfer = [model_pb2.StreamPullModelResponse(completed=say.model("n:1"))]
    code, out, _ = headrace("pull", "https://host/m.gguf?sig=x", "--as", "n", "--sha256", "ab" * 32)
    assert (code, out) == (0, "n:1 is in the store, 98 MB\n")
    assert fake.requests[-1] == model_pb2.StreamPullModelRequest(
        model="https://host/m.gguf?sig=x", name="n", sha256="ab" * 32
    )
    headrace("pull", "hf:a/b", "--file", "a", "--file", "b", "--revision", "v", "--allow-http")
    assert fake.requests[-1] == model_pb2.StreamPullModelRequest(
        model="hf:a/b", files=["a", "b"], revision="v", allow_http=True
    )
    fake.transfer = [InsufficientDisk(needs=9, free=4)]
    code, _, err = headrace("pull", "hf:a/b")
    assert (code, "9 bytes of disk are needed" in err, "`headrace rm`" in err) == (4, True, True)


def test_a_model_that_nobody_has(fake: Fake, headrace: Run) -> None:
    missing = ModelNotFound("smolm", nearest=["smollm2:135m"])
    fake.completion = fake.transfer = [missing]
    code, out, err = headrace("run", "smolm", "hi")
    assert (code, out) == (3, "")
    assert "did you mean 'smollm2:135m'" in err
    assert "`headrace list`" in err
    assert "  trace " in err


def test_a_source_that_waiting_brings_no_nearer(fake: Fake, headrace: Run) -> None:
    for retry_after in (5.0, None):
        gone = SourceUnavailable("it is gone", source="bundled:emoji", retry_after=retry_after)
        fake.transfer = [gone]
        code, _, err = headrace("pull", "emoji")
        assert code == 4
        assert "error: it is gone\n" in err
        assert ("check the network" in err) is ("in 5 s" in err) is (retry_after is not None)


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (ContextLengthExceeded(limit=8, actual=9), 2),
        (QueueFull(7.0, queue="model", limit=8), 4),
        (RunnerCrashed(cause="SIGNAL", tokens_sent=1), 1),
    ],
)
def test_a_failure_begins_on_a_line_of_its_own(
    failure: Any, expected: int, fake: Fake, headrace: Run
) -> None:
    fake.completion = [say.started(), say.delta("Hel", 1), failure]
    code, out, err = headrace("run", "m", "hi")
    assert (code, out) == (expected, "Hel\n")
    assert f"error: {failure.message}\n" in err
    assert ("in 7 s" in err) is (failure.retry_after == 7.0)


def test_what_cannot_be_sent_is_wrong_usage(fake: Fake, headrace: Run) -> None:
    code, _, err = headrace("run", "m", "hi", "--max-tokens", str(2**40))
    assert code == 2
    assert "max_tokens" in err
    assert fake.requests == []


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        (("--json-schema", ' {"type": "null"}'), {"json_schema": ' {"type": "null"}'}),
        (("--json-schema", "true"), {"json_schema": "true"}),
        (("--json-schema", "true.json"), {"json_schema": "{}"}),
        (("--regex", "a+"), {"regex": "a+"}),
        (("--grammar", "g.lark"), {"lark_grammar": 'start: "a"'}),
        (
            ("--choice", "yes", "--choice", "no"),
            {"choices": completion_pb2.Choices(values=["yes", "no"])},
        ),
    ],
)
def test_the_form_of_an_answer(
    given: tuple[str, ...],
    taken: dict[str, Any],
    fake: Fake,
    headrace: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("true.json").write_text("{}")
    Path("g.lark").write_text('start: "a"')
    assert headrace("run", "m", "hi", *given)[0] == 0
    (request,) = fake.requests
    ((field, value),) = taken.items()
    assert request.WhichOneof("constraint") == field
    assert getattr(request, field) == value


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--json-schema", "none.json"), "none.json is neither a file nor a JSON object"),
        (("--grammar", "none.lark"), "does not exist"),
        (("--regex", "a", "--choice", "b"), "choices: does not go with regex"),
    ],
)
def test_a_form_that_cannot_be_is_told_before_anything_is_asked(
    given: tuple[str, ...], said: str, fake: Fake, headrace: Run
) -> None:
    code, _, err = headrace("run", "m", "hi", *given)
    assert (code, fake.requests) == (2, [])
    assert said in err


def test_models(fake: Fake, headrace: Run) -> None:
    fake.models["m:1"] = say.model("m:1", runners=[say.runner()], license="Apache-2.0")
    code, out, _ = headrace("list")
    assert code == 0
    assert out.splitlines()[1].split()[:7] == ["m:1", "text", "llama", "135M", "Q4_1", "98", "MB"]
    assert json.loads(headrace("list", "--json")[1])[0]["runners"][0]["state"] == "serving"
    out = headrace("show", "m:1")[1]
    assert "license        Apache-2.0\n" in out
    assert "source" not in out
    assert json.loads(headrace("show", "m:1", "--json")[1])["created_at"].startswith("2023-11-14")
    assert headrace("show", "n")[0] == 3
    code, out, err = headrace("rm", "nobody", "m:1", "none")
    assert (code, out) == (3, "removed m:1, 98 MB freed\n")
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert ["nobody" in errors[0], "none" in errors[1], len(errors)] == [True, True, 2], err
    assert fake.models == {}


def test_what_a_model_takes_of_memory_is_a_table(fake: Fake, headrace: Run) -> None:
    estimates = [
        model_pb2.MemoryEstimate(context_length=context, concurrency=n, bytes=context * n * 10**6)
        for context in (2048, 8192)
        for n in (1, 8)
    ]
    fake.models["m:1"] = say.model("m:1", memory_estimates=estimates)
    fake.models["n:1"] = say.model("n:1")
    assert headrace("show", "m:1")[1].splitlines()[-3:] == [
        "CONTEXT  1 REQUEST  8 REQUESTS",
        "2048     2.0 GB     16 GB",
        "8192     8.2 GB     66 GB",
    ]
    (estimate, *_) = json.loads(headrace("show", "m:1", "--json")[1])["memory_estimates"]
    assert estimate == {"context_length": 2048, "concurrency": 1, "bytes": 2_048_000_000}
    assert "CONTEXT" not in headrace("show", "n:1")[1]


def test_verify_names_what_is_damaged(fake: Fake, headrace: Run) -> None:
    fake.verification = say.verification()
    code, out, err = headrace("verify", "m:1", "n:1")
    assert (code, list(fake.requests[-1].models)) == (1, ["m:1", "n:1"])
    assert err == "checking m:1\nchecking n:1\n"
    assert out.splitlines() == [
        "m:1 is whole, 98 MB",
        "n:1 is damaged",
        "  config.json is missing",
        "  get it again",
        "1 download that was broken off, 2 files that are there twice: `headrace gc` frees 2.0 kB",
    ]
    code, out, _ = headrace("verify", "--json")
    told = json.loads(out)
    assert (code, list(fake.requests[-1].models)) == (1, [])
    assert [model["model"] for model in told["models"] if model["damaged"]] == ["n:1"]
    assert told["garbage"]["freed_bytes"] == 2000


def test_verify_of_what_is_whole(fake: Fake, headrace: Run) -> None:
    completed = model_pb2.VerifyCompleted()
    fake.verification = [
        say.verification()[1],
        model_pb2.StreamVerifyModelsResponse(completed=completed),
    ]
    code, out, _ = headrace("verify")
    assert (code, out) == (0, "m:1 is whole, 98 MB\n")
    fake.verification = fake.verification[:1]
    assert headrace("verify")[0] == 1, "it broke off"


def test_gc_says_what_it_removes(fake: Fake, headrace: Run) -> None:
    code, out, err = headrace("gc")
    assert (code, err) == (0, "downloads are left alone: a pull is under way\n")
    assert not fake.requests[-1].dry_run
    assert out.splitlines() == [
        "download that was broken off: abc, 1.0 kB",
        "file that is there twice: m:1 a.txt, 500 B",
        "file that is there twice: m:1 b.txt, 500 B",
        "2.0 kB freed",
    ]
    assert headrace("gc", "--dry-run")[1].endswith("2.0 kB would be freed\n")
    assert fake.requests[-1].dry_run
    assert json.loads(headrace("gc", "--json")[1])["items"][0]["kind"] == "download"
    fake.garbage = model_pb2.Garbage()
    assert headrace("gc")[1] == "there is nothing to remove\n"


def test_import_sends_an_absolute_path(fake: Fake, headrace: Run, tmp_path: Path) -> None:
    fake.transfer = [model_pb2.StreamImportModelResponse(completed=say.model("n:1"))]
    code, out, _ = headrace("import", "some.gguf", "n", "--replace")
    assert (code, out) == (0, "n:1 is in the store, 98 MB\n")
    assert fake.requests[-1].source_path == str(Path.cwd() / "some.gguf")
    assert fake.requests[-1].replace
    assert not fake.requests[-1].unchecked
    assert fake.requests[-1].quantization == model_pb2.IMPORT_QUANTIZATION_UNSPECIFIED


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("4", model_pb2.IMPORT_QUANTIZATION_4_BITS),
        ("8", model_pb2.IMPORT_QUANTIZATION_8_BITS),
        ("none", model_pb2.IMPORT_QUANTIZATION_NONE),
    ],
)
def test_import_says_how_to_quantise(
    fake: Fake, headrace: Run, word: str, meant: model_pb2.ImportQuantization.ValueType
) -> None:
    fake.transfer = [model_pb2.StreamImportModelResponse(completed=say.model("n:1"))]
    assert headrace("import", "m.gguf", "n", "--quantize", word, "--no-check")[0] == 0
    assert fake.requests[-1].quantization == meant
    assert fake.requests[-1].unchecked
    assert headrace("import", "m.gguf", "n", "--quantize", "5")[0] == 2


def test_import_and_show_of_an_adapter(fake: Fake, headrace: Run) -> None:
    adapter = say.model("pirate:1")
    adapter.kind = common_pb2.MODEL_KIND_ADAPTER
    adapter.adapter.base = "m:1"
    adapter.adapter.rank = 8
    adapter.adapter.layers = 2
    adapter.adapter.modules.extend(["self_attn.q_proj", "mlp.up_proj"])
    fake.transfer = [model_pb2.StreamImportModelResponse(completed=adapter)]
    assert headrace("import", "pirate", "pirate:1", "--base", "m")[0] == 0
    assert fake.requests[-1].base == "m"
    fake.models["pirate:1"] = adapter
    shown = " ".join(headrace("show", "pirate:1")[1].split())
    assert "kind adapter" in shown
    assert "base m:1 changes self_attn.q_proj, mlp.up_proj of 2 layers rank 8" in shown


def test_runners(fake: Fake, headrace: Run) -> None:
    fake.models["m:1"] = say.model("m:1", runners=[say.runner()])
    fake.models["n:1"] = say.model("n:1")
    out = headrace("ps")[1]
    assert out.splitlines()[1].split() == [
        "m:1",
        "a",
        "serving",
        "1.1",
        "GB",
        "0",
        "in",
        "5m",
        "42",
    ]
    assert len(out.splitlines()) == 2
    assert json.loads(headrace("ps", "--json")[1])[0]["pid"] == 42
    assert headrace("load", "m:1", "--keep-alive", "10m")[1] == "m:1 serves, loaded in 1.2 s\n"
    assert fake.requests[-1].keep_alive.seconds == 600
    assert headrace("load", "m:1", "--keep-alive=-1")[0] == 0
    assert fake.requests[-1].keep_alive.seconds == -1
    assert headrace("load", "m:1", "--keep-alive", "soon")[0] == 2
    assert headrace("stop", "m:1", "n:1")[1] == "stopped m:1\nwas not loaded: n:1\n"


def test_runners_are_watched_until_the_controller_ends(fake: Fake, headrace: Run) -> None:
    fake.watch = say.changes()
    code, out, err = headrace("ps", "--watch")
    assert code == 4
    assert "shutting down" in err
    lines = [line.split() for line in out.splitlines()]
    assert [line[:3] for line in lines] == [
        ["MODEL", "RUNNER", "STATE"],
        ["m:1", "a", "serving"],
        ["m:1", "a", "dead"],
    ]
    assert lines[2][3] == "(SIGNAL)"
    told = [json.loads(line) for line in headrace("ps", "--watch", "--json")[1].splitlines()]
    assert [(runner["state"], runner["reason"]) for runner in told] == [
        ("serving", ""),
        ("dead", "SIGNAL"),
    ]


def test_tokenize(fake: Fake, headrace: Run) -> None:
    assert headrace("tokenize", "m", "hi")[1] == "104 105\n"
    assert headrace("tokenize", "m", stdin="a\n")[1] == "97 10\n"
    assert "104    'h'    0:1\n" in headrace("tokenize", "m", "hi", "--pieces")[1]
    as_json = json.loads(headrace("tokenize", "m", "h", "--pieces", "--json", "--special")[1])
    assert as_json["pieces"] == [{"token_id": 104, "piece": "68", "start": 0, "end": 1}]
    assert fake.requests[-1].add_special


def test_doctor_and_version(fake: Fake, headrace: Run) -> None:
    code, out, _ = headrace("doctor", "--json")
    findings = json.loads(out)
    assert code == any(finding["level"] == "problem" for finding in findings)
    assert findings[-1]["message"] == f"one listens at {fake.target}"
    assert f"one listens at {fake.target}" in headrace("doctor")[1]
    assert "grpcio" in json.loads(headrace("version", "--json")[1])
    lines = headrace("version")[1].splitlines()
    assert lines[-1].startswith("python")
    assert headrace("--version")[1].split() == lines[0].split()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_there_and_explains_itself(command: str, headrace: Run) -> None:
    assert command in headrace("--help")[1]
    if command != "serve":
        code, out, _ = headrace(command, "--help")
        assert code == 0
        assert f"Usage: headrace {command}" in out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str, headrace: Run) -> None:
    assert "_HEADRACE_COMPLETE" in headrace("completion", shell)[1]


def test_no_controller(headrace: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HEADRACE_HOST", f"unix:{tmp_path}/none.sock")
    for command in (("ps",), ("load", "m"), ("stop", "m")):
        code, _, err = headrace(*command)
        assert code == 4
        assert f"no controller listens at unix:{tmp_path}/none.sock" in err
        assert "headrace serve" in err
    # Nobody names another machine and means this one.
    monkeypatch.setenv("HEADRACE_HOST", "192.0.2.1:bad")
    assert headrace("run", "m", "hi")[0] == 4


def test_a_controller_that_goes_away(fake: Fake, headrace: Run) -> None:
    """What gRPC says of it is no message for people, and no trace will ever tell more."""
    fake.failure = Unavailable("Socket closed")
    code, _, err = headrace("ps")
    assert code == 4
    first, second, third = err.splitlines()
    assert first == f"error: the controller at {fake.target} does not answer any more"
    assert second == "  Socket closed"
    assert third.startswith("  trace ")
    fake.failure = Unavailable("failed to connect to all addresses; last error: …")
    assert "cannot be reached" in headrace("ps")[2].splitlines()[0]


def test_a_command_that_is_none_has_a_neighbour(headrace: Run) -> None:
    code, _, err = headrace("tokn")
    assert code == 2
    assert "Did you mean token?" in err
    assert "Did you mean" not in headrace("xyzzy")[2]


def test_chat(fake: Fake, headrace: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = iter(["hi", "", "again", "/clear", "anew", "/exit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    code, out, _ = headrace("chat", "m", "--system", "Be brief.")
    assert (code, out) == (0, "Hello\n" * 3)
    said = [[message.content for message in r.chat.messages] for r in fake.requests]
    assert said == [
        ["Be brief.", "hi"],
        ["Be brief.", "hi", "Hello", "again"],
        ["Be brief.", "anew"],
    ]


def test_figures_for_people() -> None:
    assert [size(n) for n in (0, 999, 1500, 98_362_432, 2.5e12)] == [
        "0 B",
        "999 B",
        "1.5 kB",
        "98 MB",
        "2.5 TB",
    ]
    assert [duration(s) for s in (0.2, 59, 300, 272, 7260, 90000)] == [
        "0s",
        "59s",
        "5m",
        "4m 32s",
        "2h 1m",
        "1d 1h",
    ]


def test_the_group_has_no_stale_entries() -> None:
    for name in COMMANDS:
        command = cli.commands.get(name) or cli.get_command(None, name)  # type: ignore[arg-type]
        assert command is not None
        assert command.name == name
