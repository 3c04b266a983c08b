"""Options of servers and channels."""

import asyncio
import json
from pathlib import Path
from typing import Any

import grpc
import pytest

from headrace.errors import Draining
from headrace.rpc.options import REPEATABLE_METHODS, channel_options, server_options
from headrace.rpc.service import server_interceptors
from headrace.v1 import (
    embedding_pb2,
    model_pb2,
    runner_pb2,
    score_pb2,
    tokenize_pb2,
    tokenize_pb2_grpc,
)

CHANGE_THE_STORE = {"CollectGarbage", "CopyModel", "DeleteModel"}


def test_unary_methods_are_repeated_but_for_those_that_change_the_store() -> None:
    found: dict[str, set[str]] = {}
    for file in (embedding_pb2, model_pb2, runner_pb2, score_pb2, tokenize_pb2):
        for service in file.DESCRIPTOR.services_by_name.values():
            methods = {m.name for m in service.methods if not m.server_streaming}
            found[service.full_name] = methods - CHANGE_THE_STORE
    assert {service: set(methods) for service, methods in REPEATABLE_METHODS.items()} == found


def test_no_proxy_to_this_machine() -> None:
    assert ("grpc.enable_http_proxy", 0) in channel_options("127.0.0.1:50151")
    assert ("grpc.enable_http_proxy", 0) in channel_options("unix:/run/r.sock")
    assert "grpc.enable_http_proxy" not in dict(channel_options("models.example.org:443"))
    assert json.loads(dict(channel_options())["grpc.service_config"])["methodConfig"]


async def test_a_port_is_not_shared(serve: Any) -> None:
    target = await serve()
    other = grpc.aio.server(options=server_options())
    with pytest.raises(RuntimeError, match="bind"):
        other.add_insecure_port(target)


async def test_unary_calls_are_retried_while_unavailable(
    serve: Any, connect: Any, tmp_path: Path
) -> None:
    class Twice(tokenize_pb2_grpc.TokenizeServiceServicer):
        calls = 0

        async def Tokenize(self, request: Any, context: Any) -> tokenize_pb2.TokenizeResponse:
            self.calls += 1
            if self.calls < 3:
                raise Draining(0.01)
            return tokenize_pb2.TokenizeResponse(token_ids=[7])

    partial: Any = Twice
    servicer = partial()
    target = await serve(
        lambda server: tokenize_pb2_grpc.add_TokenizeServiceServicer_to_server(servicer, server),
        interceptors=server_interceptors(),
        address=f"unix:{tmp_path}/s",
    )
    stub = tokenize_pb2_grpc.TokenizeServiceStub(await connect(target))
    async with asyncio.timeout(10):
        response = await stub.Tokenize(tokenize_pb2.TokenizeRequest(model="m", text="x"))
    assert (list(response.token_ids), servicer.calls) == ([7], 3)
