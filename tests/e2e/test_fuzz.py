"""Requests that nobody would send, by the ten thousand: the controller answers each with an error
that says what is wrong, or with what was asked for, and is as it was afterwards.

Requests are drawn from the contract's own descriptors, and their bytes broken here and there. The
number of the draw is in the name of a failure, and draws the same again.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import pytest_asyncio
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from headrace.v1 import completion_pb2, tokenize_pb2
from tests.contract import methods, path_of
from tests.e2e.conftest import TINY
from tests.e2e.harness import Controller, StartController, aio_channel
from tests.lengths import length

_LEFT_OUT = ("StreamPullModel", "WatchModels")
"""A pull may reach out to the network, and a watch has no end."""
_REMOVING = ("DeleteModelRequest", "UnloadModelRequest")
_AT_ONCE = 16
_SECONDS = 5.0
_MANY = int(os.environ.get("HEADRACE_FUZZ", length(15_000, 3_000)))
_ENDS = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "RESOURCE_EXHAUSTED"}
_ENDS |= {"DEADLINE_EXCEEDED", "UNAVAILABLE", "CANCELLED", "UNIMPLEMENTED", "OUT_OF_RANGE"}

_TEXTS: tuple[str, ...] = ("x", "two words", "{}", "é\u0000\U0001f600", "")
_WILD_TEXTS: tuple[str, ...] = (
    "../../etc/passwd",
    "x" * 4096,
    '{"type": "object"}',
    "[",
    "a{1000}{1000}",
    "%s%n",
)
_WILD_TEXTS += ("start: start", "\ud7ff" * 300)
_BYTES = (b"", b"\x00", b"\xff" * 64, b"\x89PNG\r\n\x1a\n" + b"\x00" * 32)
_WHOLE: tuple[int, ...] = (1, 2, 0, 7)
_WILD_WHOLE = (-1, 255, 256, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63))
_REAL = (0.5, 1.0, 0.0, 0.9)
_WILD_REAL = (-0.0, -1.0, 1e-38, 1e38, float("inf"), float("-inf"), float("nan"))


def drawable() -> list[MethodDescriptor]:
    return [method for method in methods(ours=True) if method.name not in _LEFT_OUT]


class Drawer:
    """Draws messages. Half of them have nothing but what is likely to be taken: those go far."""

    def __init__(self, draw: random.Random) -> None:
        self._draw = draw
        self._wild = draw.random() < 0.5

    def message(self, kind: type[Message], depth: int = 0) -> Message:
        """One with some of its fields set to something."""
        draw, message = self._draw, kind()
        for field in kind.DESCRIPTOR.fields:
            if field.name != "model" and draw.random() < min(0.5 + 0.15 * depth, 0.9):
                continue
            if field.is_repeated:
                if field.message_type and field.message_type.GetOptions().map_entry:
                    continue
                for _ in range(draw.choice((1, 1, 2, 0, 40))):
                    self._put(getattr(message, field.name), field, depth, many=True)
            else:
                self._put(message, field, depth, many=False)
        return message

    def _put(self, holder: Any, field: Any, depth: int, *, many: bool) -> None:
        if field.message_type is not None:
            made = self.message(GetMessageClass(field.message_type), depth + 1)
            if many:
                holder.add().CopyFrom(made)
            else:
                getattr(holder, field.name).CopyFrom(made)
        elif many:
            holder.append(self._value(field))
        else:
            setattr(holder, field.name, self._value(field))

    def _value(self, field: Any) -> Any:
        draw = self._draw
        if field.name == "model" and draw.random() < 0.8:
            # It is to be there for the next one.
            return "none:such" if field.containing_type.name in _REMOVING else TINY
        if field.name == "max_tokens" and draw.random() < 0.9:
            return draw.randint(1, 4)
        match field.cpp_type:
            case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_BYTES:
                return draw.choice(_BYTES)
            case FieldDescriptor.CPPTYPE_STRING:
                return draw.choice(_TEXTS + _WILD_TEXTS * self._wild)
            case FieldDescriptor.CPPTYPE_BOOL:
                return draw.random() < 0.5
            case FieldDescriptor.CPPTYPE_FLOAT | FieldDescriptor.CPPTYPE_DOUBLE:
                return draw.choice(_REAL + _WILD_REAL * self._wild)
            case FieldDescriptor.CPPTYPE_ENUM:
                return draw.choice((1, 2, 0) + (3, 99) * self._wild)
        wide = field.cpp_type in (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64)
        signed = field.cpp_type in (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64)
        bits = (64 if wide else 32) - signed
        least = -(2**bits) if signed else 0
        numbers = _WHOLE + _WILD_WHOLE * self._wild
        return draw.choice([number for number in numbers if least <= number < 2**bits])


def broken(draw: random.Random, data: bytes) -> bytes:
    """The bytes as they are, or cut, or with some of them others."""
    match draw.randrange(12):
        case 0 if data:
            return data[: draw.randrange(len(data))]
        case 1 if data:
            at = draw.randrange(len(data))
            return data[:at] + draw.randbytes(draw.randint(1, 4)) + data[at + 1 :]
        case 2:
            return data + draw.randbytes(draw.randint(1, 16))
    return data


async def ends(channel: Any, method: MethodDescriptor, data: bytes) -> str:
    """The status that a call ends with."""
    path = path_of(method)
    try:
        if method.server_streaming:
            stream = channel.unary_stream(path)(data, timeout=_SECONDS)
            for _ in range(200):  # Who has asked for a long one has seen enough.
                if await stream.read() is grpc.aio.EOF:
                    break
            stream.cancel()
        else:
            await channel.unary_unary(path)(data, timeout=_SECONDS)
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code.name
    return "OK"


@pytest.fixture
def target(start: StartController, home: Path) -> Controller:
    # Loaded once, and there for all: what a load does is for other tests.
    return start("--pinned", "--preload", TINY, listen="127.0.0.1:0", home=home)


@pytest_asyncio.fixture
async def channel(target: Controller) -> AsyncIterator[grpc.aio.Channel]:
    async with aio_channel(target.target) as channel:
        yield channel


def held(controller: Controller) -> tuple[int, int]:
    """Bytes and descriptors of the controller."""
    process = psutil.Process(controller.pid)
    return process.memory_info().rss, process.num_fds()


async def fuzz(channel: grpc.aio.Channel, seeds: Iterator[int]) -> Counter[str]:
    """The ends of the calls of all seeds."""
    known = drawable()
    found: Counter[str] = Counter()

    async def work() -> None:
        for seed in seeds:  # Shared: each takes the next one.
            draw = random.Random(seed)
            method = draw.choice(known)
            request = Drawer(draw).message(GetMessageClass(method.input_type))
            end = await ends(channel, method, broken(draw, request.SerializeToString()))
            assert end in _ENDS, f"draw {seed} of {method.full_name} ended with {end}"
            found[end] += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(_AT_ONCE):
            group.create_task(work())
    return found


@pytest.mark.parametrize(
    "count", [1_500, pytest.param(_MANY, marks=[pytest.mark.slow, pytest.mark.timeout(3_000)])]
)
async def test_no_request_is_a_bug(
    target: Controller, channel: grpc.aio.Channel, count: int
) -> None:
    await fuzz(channel, iter(range(500)))  # What is made once is made.
    before = held(target)
    found = await fuzz(channel, iter(range(500, 500 + count)))
    print(dict(found))
    assert found["OK"] > count / 10
    assert found["INVALID_ARGUMENT"] > count / 10
    resident, descriptors = held(target)
    assert resident < before[0] * 1.1 + (16 << 20), (before, resident)
    assert descriptors <= before[1] + 8
    assert target.process.poll() is None
    bugs = [line for line in target.log() if line["level"] in ("ERROR", "CRITICAL")]
    assert bugs == []
    crashes = [line for line in target.log() if "crashed" in line["message"]]
    assert crashes == []


_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """RFC 9113, 4.1."""
    return (
        len(payload).to_bytes(3, "big")
        + bytes((kind & 255, flags & 255))
        + stream.to_bytes(4, "big")
        + payload
    )


def garbage(draw: random.Random) -> bytes:
    """What a connection might begin with."""
    match draw.randrange(5):
        case 0:
            return draw.randbytes(draw.randint(1, 2000))
        case 1:
            return b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
        case 2:
            return _PREFACE + draw.randbytes(draw.randint(1, 500))
    frames = [_PREFACE, _frame(4, 0, 0, b"")]
    for _ in range(draw.randint(1, 30)):
        payload = draw.randbytes(draw.choice((0, 4, 5, 8, 17, 300)))
        stream = draw.choice((0, 1, 2, 3, 2**31 - 1))
        frames.append(_frame(draw.randrange(12), draw.randrange(256), stream, payload))
    return b"".join(frames)


async def test_no_connection_is_a_bug(target: Controller, channel: grpc.aio.Channel) -> None:
    host, _, port = target.target.rpartition(":")
    listing = next(method for method in drawable() if method.name == "ListModels")
    counting = next(method for method in drawable() if method.name == "CountTokens")
    # The model is loaded, which takes descriptors too.
    prompt = completion_pb2.CompletionInput(prompt="x")
    request = tokenize_pb2.CountTokensRequest(model=TINY, input=prompt).SerializeToString()
    async with asyncio.timeout(60):
        while await ends(channel, counting, request) != "OK":
            pass
    before = held(target)
    for seed in range(300):
        draw = random.Random(seed)
        with socket.create_connection((host, int(port)), timeout=_SECONDS) as raw:
            raw.sendall(garbage(draw))
            if draw.random() < 0.3:
                raw.shutdown(socket.SHUT_WR)
        assert seed % 50 or await ends(channel, listing, b"") == "OK"
    async with asyncio.timeout(60):
        while held(target)[1] > before[1] + 2:  # noqa: ASYNC110 - gRPC closes them in a moment
            await asyncio.sleep(0.1)
    assert await ends(channel, listing, b"") == "OK"
    assert held(target)[0] < before[0] * 1.1 + (16 << 20)
