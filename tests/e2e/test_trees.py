"""Each request is one trace, whatever becomes of it: whole, in order, with all its log lines."""

from __future__ import annotations

import asyncio
import secrets
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from headrace.errors import ContextLengthExceeded, HeadraceError, LoadFailed
from headrace.v1.completion_pb2 import StreamCompletionRequest
from headrace_server.store import Store
from tests.e2e.harness import MODEL, Controller, borrow_home, python_path
from tests.e2e.receiver import Receiver, Tree
from tests.integration.runner.api import ENDLESS, GREEDY, Api, Stream, connected
from tests.unit.convert.tiny import write_gguf

STREAM = "headrace.v1.CompletionService/StreamCompletion"
CRASHING = "crashing:q4"
LAST_WORDS = "libc++abi: terminating due to a bomb"
BOMB = f"""
import os, sys
words = sys.orig_argv
if "headrace_runner" in words and words[words.index("--name") + 1] == "{CRASHING}":
    os.write(2, b"{LAST_WORDS}\\n")
    os.abort()
"""
"""Read by every Python process of the controller: one model's runners never come up."""

SECRET = "Rumpelstilzchen"
"""In every prompt."""
TOKEN = "open-sesame-3141"
"""In the metadata of every call, where a credential would be."""
LONG = 128
"""Tokens: so many that a runner is still busy when the first ones have come."""
PARTS = {"headrace.load.imports", "headrace.load.prepare"} | {
    "headrace.load.weights",
    "headrace.load.warm_up",
}


@dataclass
class Story:
    """One request, and how it went."""

    trace_id: str = field(default_factory=lambda: secrets.token_hex(16))
    caller: str = field(default_factory=lambda: secrets.token_hex(8))
    text: str = ""
    error: HeadraceError | None = None

    def begin(self, api: Api, prompt: str, **fields: Any) -> Stream:
        given: dict[str, Any] = {"model": MODEL, "sampling": GREEDY, "stop": ENDLESS} | fields
        metadata = [
            ("traceparent", f"00-{self.trace_id}-{self.caller}-01"),
            ("authorization", f"Bearer {TOKEN}"),
        ]
        request = StreamCompletionRequest(prompt=f"{SECRET}: {prompt}", **given)
        return api.stream(request, metadata=metadata)

    async def end(self, stream: Stream) -> None:
        """Read to the end, whatever it is."""
        try:
            await stream.rest()
        except HeadraceError as error:
            self.error = error
        self.text = stream.answer.text


class Stories(dict[str, Story]):
    """All requests of this module, by what became of them."""

    def __missing__(self, key: str) -> Story:
        story = self[key] = Story()
        return story

    async def happen(self, controller: Controller, receiver: Receiver) -> None:
        """Let them happen. The receiver is told of them by and by."""
        async with connected(controller.target) as api:
            first = self["loads"].begin(api, "word " * 700, max_tokens=4)
            await first.until("progress")
            second = self["waits"].begin(api, "Hello", max_tokens=2)
            await second.until("progress")
            await asyncio.gather(self["loads"].end(first), self["waits"].end(second))

            # What the runner has still to tell of these would be lost with it.
            for name in ("loads", "waits"):
                await asyncio.to_thread(tree_of, receiver, self, name)
            resumed = self["resumed"].begin(api, "Once upon a time", max_tokens=LONG)
            await reach(resumed, 3)
            controller.runner().send_signal(signal.SIGKILL)
            await self["resumed"].end(resumed)

            cancelled = self["cancelled"].begin(api, "Once upon a time", max_tokens=500)
            await reach(cancelled, 2)
            cancelled.call.cancel()
            with suppress(asyncio.CancelledError):
                await self["cancelled"].end(cancelled)

            refused = self["refused"].begin(api, "word " * 9000)
            await self["refused"].end(refused)
            failed = self["fails"].begin(api, "Hello", model=CRASHING)
            await self["fails"].end(failed)


async def reach(stream: Stream, tokens: int) -> None:
    while len(stream.answer.token_ids) < tokens:
        await stream.until("delta")


@pytest.fixture(scope="module")
def traced(
    model_home: Path, tmp_path_factory: pytest.TempPathFactory, receiver: Receiver
) -> Iterator[Controller]:
    folder = tmp_path_factory.mktemp("traced")
    home = borrow_home(model_home, folder / "home")
    write_gguf(folder / "crashing.gguf")
    asyncio.run(Store(home).import_model(folder / "crashing.gguf", CRASHING))
    path = python_path(folder / "python", BOMB)
    with Controller(home, extra={**receiver.environment, "PYTHONPATH": path}) as running:
        yield running


@pytest.fixture(scope="module")
def stories(traced: Controller, receiver: Receiver) -> Stories:
    stories = Stories()
    asyncio.run(stories.happen(traced, receiver))
    return stories


LAST = {
    "refused": ("runner", f"text_completion {MODEL}"),
    "fails": ("controller", "headrace.queue"),
}
"""What comes last of a story, where it is not a part of a prefill."""


def tree_of(receiver: Receiver, stories: Stories, name: str) -> Tree:
    """The tree of a story, once all is told."""
    story = stories[name]
    last = LAST.get(name, ("runner", "headrace.prefill.chunk"))

    def whole(tree: Tree) -> bool:
        loads = tree.all("controller", "headrace.load")
        started = [span for span in loads if not span.failed]
        parts = [{below.name for below in tree.below(load)} for load in started]
        return bool(tree.all(*last)) and all(each == PARTS for each in parts)

    return receiver.tree(story.trace_id, story.caller, whole)


def test_a_request_that_loads(receiver: Receiver, stories: Stories) -> None:
    tree = tree_of(receiver, stories, "loads")
    assert tree.adrift() == []
    server = tree.the("controller", STREAM, "SERVER")
    attempt = tree.the("controller", STREAM, "CLIENT")
    load = tree.the("controller", "headrace.load")
    assert {each.name for each in tree.below(server)} == {
        "headrace.queue",
        "headrace.load",
        STREAM,
    }
    assert server.attributes["rpc.response.status_code"] == "OK"
    assert load.attributes["headrace.runner.id"] == "r1"
    assert attempt.attributes["headrace.attempt.number"] == 1
    assert not any(span.failed for span in tree.spans)
    weights = tree.the("runner", "headrace.load.weights")
    assert weights.attributes["headrace.weights.bytes"] > 90_000_000

    (served,) = tree.below(attempt)
    (generation,) = tree.below(served)
    assert generation.name == f"text_completion {MODEL}"
    assert [each.name for each in tree.below(generation)] == [
        "headrace.queue",
        "headrace.prefill",
        "headrace.decode",
    ]
    assert "headrace.first_token" in generation.events
    prefill = tree.the("runner", "headrace.prefill")
    chunks = tree.below(prefill)
    assert len(chunks) > 1
    assert {chunk.name for chunk in chunks} == {"headrace.prefill.chunk"}
    computed = sum(chunk.attributes["headrace.prefill.tokens"] for chunk in chunks)
    assert prefill.attributes["headrace.prefill.tokens"] == computed
    # Some if the other prompt, which begins alike, was computed before.
    cached = prefill.attributes["headrace.prefill.cached_tokens"]
    prompt = generation.attributes["gen_ai.usage.input_tokens"]
    # The last token of a prompt is fed to the first step.
    assert prompt - 1 <= cached + computed <= prompt
    assert generation.attributes["gen_ai.usage.output_tokens"] == 4


def test_one_that_waits_for_the_load_of_another(receiver: Receiver, stories: Stories) -> None:
    tree = tree_of(receiver, stories, "waits")
    assert tree.adrift() == []
    wait = tree.the("controller", "headrace.load.wait")
    other = tree_of(receiver, stories, "loads").the("controller", "headrace.load")
    assert wait.links == [other.id]
    assert tree.all("controller", "headrace.load") == []
    assert wait.message.end_time_unix_nano <= other.message.end_time_unix_nano + 1_000_000_000


def test_one_whose_runner_is_killed(receiver: Receiver, stories: Stories) -> None:
    """What the killed process did not hand on is not missed; what it did hangs from its parent."""
    tree = tree_of(receiver, stories, "resumed")
    assert tree.adrift() == []
    server = tree.the("controller", STREAM, "SERVER")
    assert server.attributes["headrace.stream.resumed"] == 1
    assert server.attributes["gen_ai.usage.output_tokens"] == LONG
    assert not server.failed
    first, second = tree.all("controller", STREAM, "CLIENT")
    assert first.failed
    assert first.attributes["rpc.response.status_code"] == "UNAVAILABLE"
    assert first.events["headrace.runner.died"]["headrace.runner.cause_of_death"] == "SIGNAL"
    assert tree.below(first) == []
    assert not second.failed
    assert second.links == [first.id]
    assert second.attributes["headrace.attempt.number"] == 2
    assert second.attributes["headrace.runner.id"] == "r2"
    (served,) = tree.below(second)
    (generation,) = tree.below(served)
    assert generation.attributes["headrace.stream.resumed_tokens"] >= 3
    # It is what the other runner was started for.
    load = tree.the("controller", "headrace.load")
    assert load.attributes["headrace.runner.id"] == "r2"
    (line,) = receiver.said(stories["resumed"].trace_id, "moving to another runner")
    assert line.fields["runner_id"] == "r1"


def test_one_that_is_cancelled(receiver: Receiver, stories: Stories) -> None:
    """Every span ends, and none of them calls it an error of the service."""
    tree = tree_of(receiver, stories, "cancelled")
    assert tree.adrift(ends=False) == []
    server = tree.the("controller", STREAM, "SERVER")
    served = tree.the("runner", STREAM, "SERVER")
    for span in (server, served):
        assert span.attributes["rpc.response.status_code"] == "CANCELLED"
        assert not span.failed
    generation = tree.the("runner", f"text_completion {MODEL}")
    assert generation.attributes["error.type"] == "cancelled"
    assert not generation.failed
    assert generation.attributes["gen_ai.usage.output_tokens"] >= 2
    assert len(tree.all("runner", "headrace.decode")) == 1
    # The attempt is a client's: to one who calls, whatever is not OK is an error.
    assert tree.the("controller", STREAM, "CLIENT").attributes["error.type"] == "CANCELLED"


def test_one_that_is_refused(receiver: Receiver, stories: Stories) -> None:
    assert isinstance(stories["refused"].error, ContextLengthExceeded)
    tree = tree_of(receiver, stories, "refused")
    assert tree.adrift(ends=False) == []
    for service in ("controller", "runner"):
        server = tree.the(service, STREAM, "SERVER")
        assert server.attributes["rpc.response.status_code"] == "INVALID_ARGUMENT"
        # It did what it should.
        assert not server.failed
        assert "error.type" not in server.attributes
    attempt = tree.the("controller", STREAM, "CLIENT")
    assert attempt.failed
    assert attempt.attributes["error.type"] == "INVALID_ARGUMENT"
    generation = tree.the("runner", f"text_completion {MODEL}")
    assert generation.attributes["error.type"] == "CONTEXT_LENGTH_EXCEEDED"
    assert tree.below(generation) == []


def test_one_whose_model_crashes_at_every_load(receiver: Receiver, stories: Stories) -> None:
    assert isinstance(stories["fails"].error, LoadFailed)
    tree = tree_of(receiver, stories, "fails")
    assert tree.adrift() == []
    server = tree.the("controller", STREAM, "SERVER")
    loads = tree.all("controller", "headrace.load")
    assert len(loads) > 1
    assert {span.name for span in tree.below(server)} == {"headrace.queue", "headrace.load"}
    for load in loads:
        assert load.failed
        assert load.attributes["error.type"] == "NATIVE_ABORT"
        died = load.events["headrace.runner.died"]
        assert died["headrace.runner.last_words"].startswith(LAST_WORDS)
    queue = tree.the("controller", "headrace.queue")
    assert queue.failed
    assert queue.attributes["error.type"] == "LOAD_FAILED"
    # What each process printed is a line of its load.
    printed = receiver.said(stories["fails"].trace_id, LAST_WORDS, len(loads))
    told = [(line.span_id, line.fields["runner_id"]) for line in printed]
    assert told == [(load.id, load.attributes["headrace.runner.id"]) for load in loads]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("loads", {"runner is starting", "listening", "serving", "completion ended"}),
        ("waits", {"completion ended", "stream ended"}),
        ("resumed", {"runner is starting", "completion ended", "stream ended"}),
        ("cancelled", {"completion ended", "stream ended"}),
        ("refused", {"completion ended", "stream ended"}),
        ("fails", {"runner is dead", LAST_WORDS, "stream ended"}),
    ],
)
def test_every_line_is_found_by_its_trace_and_exported_once(
    name: str, told: set[str], receiver: Receiver, traced: Controller, stories: Stories
) -> None:
    trace_id = stories[name].trace_id

    def written() -> Counter[tuple[str, str]]:
        lines = [line for line in traced.log() if line.get("trace_id") == trace_id]
        return Counter((line["service"], line["message"]) for line in lines)

    def exported() -> Counter[tuple[str, str]]:
        return Counter((line.service, line.message) for line in receiver.lines_of(trace_id))

    receiver.wait_for(
        lambda: told <= {message for _, message in written()} and exported() == written(),
        lambda: f"written: {written()}\nexported: {exported()}",
    )
    for line in receiver.lines_of(trace_id):
        assert len(line.span_id) == 16, line
        assert line.fields["model"] == (CRASHING if name == "fails" else MODEL), line
        # Those had no runner.
        if name != "fails" or line.message not in ("stream ended", "call failed"):
            assert line.fields["runner_id"].startswith("r"), line


def test_all_three_signals_come_from_both_services(receiver: Receiver, stories: Stories) -> None:
    wanted = {
        ("headrace-controller", "rpc.server.call.duration"),
        ("headrace-runner", "rpc.server.call.duration"),
        ("headrace-runner", "gen_ai.server.request.duration"),
    }
    receiver.wait_for(lambda: wanted <= receiver.metrics, lambda: receiver.metrics)


def test_nothing_that_was_asked_or_answered_is_in_any_export(
    receiver: Receiver, traced: Controller, stories: Stories
) -> None:
    """Nor a credential. All requests have ended, with all that is told of them."""
    for name in stories:
        tree_of(receiver, stories, name)
    everything = b"".join(request.SerializeToString() for request in receiver.raw)
    everything += traced.log_text().encode()
    assert STREAM.encode() in everything
    answers = [story.text for story in stories.values() if story.text]
    assert len(answers) >= 3
    for secret in (SECRET, TOKEN, *answers):
        for piece in (secret, secret.strip()[:16]):
            assert len(piece) < 4 or piece.encode() not in everything, piece
