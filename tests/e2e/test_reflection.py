"""A client that knows no more than an address: the contract comes from the server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from headrace.client import Client
from tests.e2e.harness import MODEL, Controller, runner_address


class Stranger:
    """Makes calls with nothing but reflection."""

    def __init__(self, target: str) -> None:
        self._channel = grpc.insecure_channel(target, [("grpc.enable_http_proxy", 0)])
        self._database = ProtoReflectionDescriptorDatabase(self._channel)
        self._pool = DescriptorPool(self._database)

    def services(self) -> set[str]:
        return set(self._database.get_services())

    def files(self, symbol: str) -> list[bytes]:
        """The file that a symbol is in, and those that it needs."""
        request = reflection_pb2.ServerReflectionRequest(file_containing_symbol=symbol)
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(self._channel)
        (answer,) = stub.ServerReflectionInfo(iter([request]), timeout=60)
        return list(answer.file_descriptor_response.file_descriptor_proto)

    def call(self, service: str, method: str, **fields: Any) -> list[Any]:
        """All answers of one call."""
        found = self._pool.FindServiceByName(service).FindMethodByName(method)
        request = GetMessageClass(found.input_type)(**fields)
        answer = GetMessageClass(found.output_type)
        invoke: Any = self._channel.unary_stream(
            f"/{service}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer.FromString,
        )
        return list(invoke(request, timeout=60))

    def close(self) -> None:
        self._channel.close()


@pytest.fixture(params=["controller", "runner"])
def stranger(
    request: pytest.FixtureRequest, controller: Controller, client: Client
) -> Iterator[Stranger]:
    """At the controller, or past it at the runner."""
    client.load_model(MODEL)
    direct = request.param == "runner"
    made = Stranger(runner_address(controller.runner()) if direct else controller.target)
    yield made
    made.close()


def test_a_client_without_an_sdk_completes_a_stream(stranger: Stranger) -> None:
    assert {
        "headrace.v1.CompletionService",
        "headrace.v1.TokenizeService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    } <= stranger.services()
    chat = {"messages": [{"role": "CHAT_ROLE_USER", "content": "Count to three."}]}
    answers = stranger.call(
        "headrace.v1.CompletionService",
        "StreamCompletion",
        model=MODEL,
        chat=chat,
        sampling={"temperature": 0.0},
        max_tokens=6,
    )
    events = [answer.WhichOneof("event") for answer in answers]
    assert events[-1] == "completed"
    assert next(event for event in events if event != "progress") == "started"
    assert events.count("started") == events.count("completed") == 1
    usage = answers[-1].completed.usage
    assert usage.output_tokens == 6
    ids = [token for answer in answers for token in answer.delta.token_ids]
    text = "".join(answer.delta.text for answer in answers)
    (whole,) = stranger.call(
        "headrace.v1.TokenizeService", "Detokenize", model=MODEL, token_ids=ids
    )
    assert whole.text == text != ""


def test_every_method_of_the_contract_is_described(controller: Controller) -> None:
    stranger = Stranger(controller.target)
    try:
        for service in stranger.services():
            assert stranger._pool.FindServiceByName(service).methods
        (answer,) = stranger.call("headrace.v1.ModelService", "ListModels")
        assert MODEL in [model.name for model in answer.models]
    finally:
        stranger.close()


def test_a_method_is_found_by_its_name(stranger: Stranger) -> None:
    service = "headrace.v1.CompletionService"
    (file, *_) = stranger.files(service)
    assert stranger.files(f"{service}.StreamCompletion")[0] == file
    for unknown in (f"{service}.Nothing", "headrace.v1.Nothing", ""):
        assert stranger.files(unknown) == []
