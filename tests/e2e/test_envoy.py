"""Controllers behind Envoy with the configuration that we ship: TLS with certificates on the way to
them, deaths and restarts under load, JSON, gRPC-Web and Connect, traces and its access log."""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import signal
import ssl
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from headrace import AsyncClient
from headrace.cli.authority import Authority
from headrace.errors import HeadraceError, ModelNotFound, Unavailable
from headrace.v1.completion_pb2 import StreamCompletionRequest, StreamCompletionResponse
from headrace.v1.model_pb2 import GetModelRequest, ListModelsRequest, ListModelsResponse
from tests.e2e.conftest import TINY
from tests.e2e.front import Front, envoy, free_port
from tests.e2e.harness import MODEL, Controller
from tests.e2e.receiver import Receiver

pytestmark = pytest.mark.toolchain

PROMPT = "The capital of France is"
LIST = "/headrace.v1.ModelService/ListModels"
GET = "/headrace.v1.ModelService/GetModel"
STREAM = "/headrace.v1.CompletionService/StreamCompletion"


@dataclass(frozen=True)
class Answer:
    """Of an HTTP server."""

    status: int
    headers: dict[str, str]
    data: bytes


class Site:
    """Certificates, controllers by port, and Envoy before them."""

    def __init__(self, home: Path, directory: Path, environment: dict[str, str]) -> None:
        envoy()
        self.certificates = directory / "certificates"
        self.certificates.mkdir()
        authority = Authority(self.certificates)
        authority.issue("server", ("localhost", "127.0.0.1"), 1, server=True)
        authority.issue("client", ("front",), 1, server=False)
        self._home = home
        self._environment = environment
        self.running: dict[int, Controller] = {}
        telemetry = environment.get("OTEL_EXPORTER_OTLP_ENDPOINT", "").rpartition(":")[2]
        self.front = Front(
            directory / "front", self.certificates, int(telemetry) if telemetry else None
        )
        self._stack = ExitStack()
        self._stack.enter_context(self.front)

    def start(self, port: int) -> Controller:
        """A controller that talks to nobody but who has a certificate."""
        at = self.certificates
        tls = ("--tls-cert", at / "server.crt", "--tls-key", at / "server.key")
        options = (*tls, "--tls-client-ca", at / "ca.crt", "--grace", "30s")
        started = Controller(
            self._home, *map(str, options), listen=f"127.0.0.1:{port}", extra=self._environment
        )
        self._stack.enter_context(started)
        self.running[port] = started
        return started

    def open(self, controllers: int) -> None:
        for _ in range(controllers):
            self.start(free_port())
        self.front.controllers([*self.running])
        self.front.wait_for(healthy=controllers)

    def client(self, **options: Any) -> AsyncClient:
        trusting = grpc.ssl_channel_credentials((self.certificates / "ca.crt").read_bytes())
        return AsyncClient(self.front.target, timeout=120, credentials=trusting, **options)

    def ask(self, path: str, body: bytes, kind: str, **headers: str) -> Answer:
        """A request as a browser or curl makes it, by HTTP/1.1."""
        context = ssl.create_default_context(cafile=str(self.certificates / "ca.crt"))
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        with closing(
            http.client.HTTPSConnection("localhost", self.front.port, timeout=120, context=context)
        ) as connection:
            connection.request("POST", path, body, {"content-type": kind, **named})
            answer = connection.getresponse()
            return Answer(answer.status, dict(answer.getheaders()), answer.read())

    def close(self) -> None:
        self._stack.close()


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
