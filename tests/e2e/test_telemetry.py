"""One trace tells the story: from the command line to the last token, in three processes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from headrace.client import Client
from tests.e2e.conftest import TINY
from tests.e2e.harness import MODEL, PATIENCE, Controller, StartController, headrace
from tests.e2e.receiver import Receiver, Tree

STREAM = "headrace.v1.CompletionService/StreamCompletion"


@pytest.fixture(scope="module")
def traced(shared_home: Any, receiver: Receiver) -> Iterator[Controller]:
    with Controller(shared_home, extra=receiver.environment) as running:
        yield running


def test_one_trace_from_the_client_to_the_last_token(
    traced: Controller, receiver: Receiver
) -> None:
    arguments = ("--temperature", "0", "--max-tokens", "4", "--json")
    shown = json.loads(headrace(traced, "run", MODEL, "Count.", *arguments).stdout)

    def whole(tree: Tree) -> bool:
        told = tree.all("cli", STREAM, "CLIENT"), tree.all("runner", "headrace.prefill.chunk")
        return all(told)

    tree = receiver.tree(shown["trace_id"], whole=whole)
    assert tree.adrift() == []
    call = tree.the("cli", STREAM, "CLIENT")
    (server,) = tree.below(call)
    assert (server.service, server.kind) == ("headrace-controller", "SERVER")
    assert server.attributes["rpc.system.name"] == "grpc"
    assert server.attributes["rpc.response.status_code"] == "OK"
    generation = tree.the("runner", f"chat {MODEL}")
    wanted = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "mlx",
        "gen_ai.request.model": MODEL,
        "gen_ai.request.max_tokens": 4,
        "gen_ai.usage.output_tokens": 4,
        "gen_ai.usage.input_tokens": shown["usage"]["prompt_tokens"],
    }
    assert wanted.items() <= generation.attributes.items()


def test_a_failed_call_says_so_in_its_trace(traced: Controller, receiver: Receiver) -> None:
    headrace(traced, "load", MODEL)
    ended = headrace(traced, "run", MODEL, "x", "--temperature", "11", check=False)
    assert ended.returncode == 2
    trace_id = ended.stderr.split("trace ")[1].split()[0]

    def whole(tree: Tree) -> bool:
        return len(tree.spans) == 2

    tree = receiver.tree(trace_id, whole=whole)
    call, server = tree.the("cli", STREAM, "CLIENT"), tree.the("controller", STREAM, "SERVER")
    assert call.failed
    assert call.attributes["error.type"] == "INVALID_ARGUMENT"
    # The server did what it should.
    assert not server.failed
    assert server.attributes["rpc.response.status_code"] == "INVALID_ARGUMENT"


def test_a_load_by_hand_is_part_of_its_call(traced: Controller, receiver: Receiver) -> None:
    """And what is asked of a runner that serves, again and again, is part of no trace."""
    headrace(traced, "stop", MODEL)
    before = len(receiver.spans)
    headrace(traced, "load", MODEL)
    receiver.wait_for(lambda: any(s.name == "headrace.load" for s in receiver.spans[before:]))
    (load,) = (s for s in receiver.spans[before:] if s.name == "headrace.load")
    tree = receiver.tree(load.message.trace_id.hex())
    (call,) = (s for s in tree.spans if s.id == load.message.parent_span_id.hex())
    assert (call.name, call.kind) == ("headrace.v1.ModelService/LoadModel", "SERVER")
    assert not any("RunnerService" in span.name for span in receiver.spans)


def test_the_log_lines_of_both_processes_carry_the_trace(start: StartController) -> None:
    """Of the load that the request brought about, also where nothing is exported."""
    controller = start()
    arguments = ("--max-tokens", "1", "--json")
    shown = json.loads(headrace(controller, "run", TINY, "x", *arguments).stdout)
    trace = {"trace_id": shown["trace_id"]}
    for text, service in (("loaded in ", "controller"), ("completion ended", "runner")):
        asyncio.run(controller.logged(text, service=f"headrace-{service}", **trace))
    for line in asyncio.run(controller.logged(**trace)):
        assert len(line["span_id"]) == 16
        assert line["level"] in ("INFO", "WARNING")


def test_without_an_endpoint_nothing_is_exported(start: StartController) -> None:
    controller = start()
    with Client(controller.target, timeout=PATIENCE) as client:
        client.complete(TINY, "x", max_tokens=1)
        for process in (psutil.Process(controller.pid), controller.runner()):
            # All that they have is Unix sockets.
            assert process.net_connections("inet") == []
            loaded = process.memory_maps(grouped=True)
            assert not any("opentelemetry/exporter" in mapping.path for mapping in loaded)
