"""A client that knows nothing but the address finds the services and uses them."""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from headrace.rpc.options import channel_options
from tests.integration.runner.api import MODEL, TIMEOUT
from tests.integration.runner.child import Child


def test_a_client_made_from_reflection_alone_completes_a_stream(tiny_runner: Child) -> None:
    address = tiny_runner.address
    with grpc.insecure_channel(address, options=channel_options(address)) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert set(database.get_services()) == {
            "headrace.v1.CompletionService",
            "headrace.v1.TokenizeService",
            "headrace.v1.ScoreService",
            "headrace.v1.RunnerService",
            "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection",
        }
        service: Any = DescriptorPool(database).FindServiceByName("headrace.v1.CompletionService")
        method = service.FindMethodByName("StreamCompletion")
        request: Any = GetMessageClass(method.input_type)
        call: Any = channel.unary_stream(
            f"/{service.full_name}/{method.name}",
            request_serializer=request.SerializeToString,
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        message = request(model=MODEL, prompt="the quick brown fox", max_tokens=3)
        message.stop.ignore_eos = True
        events = list(call(message, timeout=TIMEOUT))
    assert events[0].WhichOneof("event") == "started"
    assert sum(len(event.delta.token_ids) for event in events) == 3
    assert events[-1].completed.usage.output_tokens == 3
