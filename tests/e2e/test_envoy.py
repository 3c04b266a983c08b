"""Controllers behind Envoy with the configuration that we ship: TLS with certificates on the way to
them, deaths and restarts under load, JSON, gRPC-Web and Connect, traces and its access log."""

from __future__ import annotations

import asyncio
import base64
import json
import signal
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from headrace import AsyncClient
from headrace.errors import HeadraceError, ModelNotFound, Unavailable
from headrace.v1.completion_pb2 import StreamCompletionRequest, StreamCompletionResponse
from headrace.v1.model_pb2 import GetModelRequest, ListModelsRequest, ListModelsResponse
from tests.e2e.conftest import TINY
from tests.e2e.harness import MODEL
from tests.e2e.receiver import Receiver
from tests.e2e.site import Site

pytestmark = pytest.mark.toolchain

PROMPT = "The capital of France is"
LIST = "/headrace.v1.ModelService/ListModels"
GET = "/headrace.v1.ModelService/GetModel"
STREAM = "/headrace.v1.CompletionService/StreamCompletion"


@pytest.fixture(scope="module")
def site(
    shared_home: Path, tmp_path_factory: pytest.TempPathFactory, receiver: Receiver
) -> Iterator[Site]:
    """One controller behind Envoy, and where all of them send their spans."""
    made = Site(shared_home, tmp_path_factory.mktemp("site"), receiver.environment)
    try:
        made.open(1)
        yield made
    finally:
        made.close()


@pytest.fixture
def pair(shared_home: Path, tmp_path: Path) -> Iterator[Site]:
    """Two controllers behind Envoy, to be killed."""
    made = Site(shared_home, tmp_path, {})
    try:
        made.open(2)
        yield made
    finally:
        made.close()


async def test_a_stream_and_its_traces(site: Site, receiver: Receiver) -> None:
    async with site.client() as client:
        whole = await client.complete(MODEL, PROMPT, max_tokens=8, temperature=0)
        assert "Paris" in whole.text
        with pytest.raises(ModelNotFound) as caught:
            await client.get_model("smolm2:135m")
        assert caught.value.metadata["nearest"] == MODEL
    (line,) = await asyncio.to_thread(site.front.access_log, 1, trace_id=whole.trace_id)
    assert (line["model"], line["grpc_status"], line["method"]) == (MODEL, "OK", STREAM)
    services = {"headrace-front", "headrace-controller", "headrace-runner"}
    wanted = bytes.fromhex(whole.trace_id)
    await asyncio.to_thread(
        receiver.wait_for,
        lambda: services <= {s.service for s in receiver.spans if s.message.trace_id == wanted},
    )


def test_json_by_any_http_client(site: Site) -> None:
    answer = site.ask(LIST, b"{}", "application/json")
    assert answer.status == 200
    assert MODEL in [model["name"] for model in json.loads(answer.data)["models"]]
    wrong = site.ask(GET, b'{"model": "none"}', "application/json")
    assert wrong.status == 404
    (detail,) = [d for d in json.loads(wrong.data)["details"] if d.get("reason")]
    assert detail["reason"] == "MODEL_NOT_FOUND"
    bad = site.ask(STREAM, b'{"model": 7}', "application/json")
    assert bad.status == 400


def test_a_stream_is_json_line_by_line(site: Site) -> None:
    request = {"model": MODEL, "prompt": PROMPT, "max_tokens": 8}
    request |= {"sampling": {"temperature": 0}}
    answer = site.ask(STREAM, json.dumps(request).encode(), "application/json")
    assert answer.status == 200
    events = [json.loads(line) for line in answer.data.splitlines()]
    kinds = [next(iter(event)) for event in events]
    assert kinds[-1] == "completed"
    assert kinds.count("started") == 1
    deltas = [event["delta"] for event in events if "delta" in event]
    assert len(deltas) > 1
    assert "Paris" in "".join(delta.get("text", "") for delta in deltas)


def _frames(data: bytes) -> list[tuple[int, bytes]]:
    """Flags and payloads of messages as gRPC, gRPC-Web and Connect frame them."""
    found = []
    while data:
        flags, length = struct.unpack_from(">BI", data)
        found.append((flags, data[5 : 5 + length]))
        data = data[5 + length :]
    return found


def _framed(message: bytes) -> bytes:
    return struct.pack(">BI", 0, len(message)) + message


@pytest.mark.parametrize("text", [False, True], ids=["binary", "text"])
def test_grpc_web(site: Site, *, text: bool) -> None:
    request = StreamCompletionRequest(model=MODEL, prompt=PROMPT, max_tokens=4)
    body = _framed(request.SerializeToString())
    kind = "application/grpc-web-text+proto" if text else "application/grpc-web+proto"
    sent = base64.b64encode(body) if text else body
    answer = site.ask(STREAM, sent, kind, accept=kind, x_grpc_web="1")
    assert answer.status == 200
    data = answer.data
    if text:
        data = b"".join(
            base64.b64decode(part + b"=" * (-len(part) % 4)) for part in _base64_parts(data)
        )
    *messages, (flags, trailers) = _frames(data)
    assert flags == 0x80
    assert b"grpc-status:0" in trailers
    events = [StreamCompletionResponse.FromString(payload) for _, payload in messages]
    assert events[-1].WhichOneof("event") == "completed"
    assert any(event.WhichOneof("event") == "delta" for event in events)


def _base64_parts(data: bytes) -> list[bytes]:
    """Base64 that may be padded in the middle, taken apart there."""
    parts, rest = [], data
    while b"=" in rest:
        end = rest.index(b"=")
        while end < len(rest) and rest[end : end + 1] == b"=":
            end += 1
        parts.append(rest[:end].rstrip(b"="))
        rest = rest[end:]
    return [*parts, rest] if rest else parts


def test_connect(site: Site) -> None:
    options = {"connect_protocol_version": "1"}
    listed = site.ask(LIST, ListModelsRequest().SerializeToString(), "application/proto", **options)
    assert listed.status == 200
    names = [model.name for model in ListModelsResponse.FromString(listed.data).models]
    assert MODEL in names
    missing = GetModelRequest(model="none").SerializeToString()
    wrong = site.ask(GET, missing, "application/proto", **options)
    assert wrong.status == 404
    assert json.loads(wrong.data)["code"] == "not_found"
    request = StreamCompletionRequest(model=MODEL, prompt=PROMPT, max_tokens=4)
    answer = site.ask(
        STREAM, _framed(request.SerializeToString()), "application/connect+proto", **options
    )
    *messages, (flags, end) = _frames(answer.data)
    assert flags == 0x02
    assert "error" not in json.loads(end)
    last = StreamCompletionResponse.FromString(messages[-1][1])
    assert last.WhichOneof("event") == "completed"


def test_a_page_of_this_machine_may_call_and_another_may_not(site: Site) -> None:
    for origin, allowed in (("http://localhost:5173", True), ("https://evil.example", False)):
        answer = site.ask(LIST, b"{}", "application/json", origin=origin)
        assert answer.status == 200
        assert (answer.headers.get("access-control-allow-origin") == origin) is allowed


@pytest.mark.parametrize("origin", ["http://localhost:5173", "https://evil.example", ""])
def test_a_browser_asks_first(site: Site, origin: str) -> None:
    asked = {"access_control_request_method": "POST"} | ({"origin": origin} if origin else {})
    answer = site.ask(STREAM, b"", "", method="OPTIONS", **asked)
    # Who is no browser does not get to a controller in this way either.
    assert answer.status == (200 if origin else 415)
    allowed = answer.headers.get("access-control-allow-origin")
    assert allowed == (origin if "localhost" in origin else None)
    if allowed:
        sent = {"authorization", "content-type", "grpc-timeout", "headrace-model", "traceparent"}
        sent |= {"tracestate", "x-grpc-web", "x-user-agent"}
        assert sent <= {*answer.headers["access-control-allow-headers"].split(", ")}


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_what_a_page_may_send_unasked_is_refused(site: Site, kind: str) -> None:
    for path in (LIST, "/headrace.v1.ModelService/DeleteModel?model=none"):
        assert site.ask(path, b"{}", kind, origin="https://evil.example").status == 415


async def _streams(
    client: AsyncClient, count: int, begun: Callable[[], None]
) -> list[str | HeadraceError]:
    """The ends of so many streams at once. `begun` hears of each first token."""

    async def one(number: int) -> str | HeadraceError:
        heard = False
        try:
            async with client.stream_completion(
                MODEL, "x", max_tokens=32, ignore_eos=True, seed=number
            ) as stream:
                async for event in stream:
                    if type(event).__name__ == "Delta" and not heard:
                        heard = True
                        begun()
            return "completed"
        except HeadraceError as error:
            return error

    return list(await asyncio.gather(*(one(number) for number in range(count))))


async def test_a_controller_that_is_killed_takes_its_own_streams_alone(pair: Site) -> None:
    async with pair.client() as client:
        await asyncio.gather(*(client.complete(MODEL, "x", max_tokens=1) for _ in range(8)))
        first, second = pair.running.values()
        under_way = 0
        all_begun = asyncio.Event()

        def begun() -> None:
            nonlocal under_way
            under_way += 1
            if under_way == 32:
                all_begun.set()

        streams = asyncio.create_task(_streams(client, 32, begun))
        async with asyncio.timeout(120):
            await all_begun.wait()
        first.kill()
        ends = await streams
        lost = [end for end in ends if not isinstance(end, str)]
        assert 0 < len(lost) < 32
        assert all(isinstance(error, Unavailable) for error in lost), lost
        again = await _streams(client, len(lost), lambda: None)
        assert again == ["completed"] * len(lost)
        await asyncio.to_thread(pair.front.wait_for, 1)
        assert await _streams(client, 8, lambda: None) == ["completed"] * 8
        assert second.process.poll() is None


async def test_a_rolling_restart_under_load_loses_nothing(pair: Site) -> None:
    ends: list[str | HeadraceError] = []
    stop = asyncio.Event()

    async def load(client: AsyncClient, number: int) -> None:
        while not stop.is_set():
            try:
                await client.complete(TINY, "x", max_tokens=30, ignore_eos=True, seed=number)
                ends.append("completed")
            except HeadraceError as error:
                ends.append(error)

    async with pair.client() as client:
        await client.complete(TINY, "x", max_tokens=1)
        tasks = [asyncio.create_task(load(client, number)) for number in range(8)]
        for port, old in [*pair.running.items()]:
            seen = len(ends)
            old.send(signal.SIGTERM)
            assert await asyncio.to_thread(old.wait) == 0
            await asyncio.to_thread(pair.front.wait_for, 1)
            await asyncio.to_thread(pair.start, port)
            await asyncio.to_thread(pair.front.wait_for, 2)
            async with asyncio.timeout(120):
                while len(ends) < seen + 16:  # noqa: ASYNC110 - both are to have work again
                    await asyncio.sleep(0.05)
        stop.set()
        await asyncio.gather(*tasks)
    assert len(ends) > 32
    assert {*map(str, ends)} == {"completed"}
