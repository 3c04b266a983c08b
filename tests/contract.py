"""All methods that a controller serves, by their descriptors."""

from __future__ import annotations

from google.protobuf.descriptor import MethodDescriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from headrace.v1 import (
    completion_pb2,
    embedding_pb2,
    image_pb2,
    model_pb2,
    score_pb2,
    tokenize_pb2,
)

_OURS = (completion_pb2, embedding_pb2, image_pb2, model_pb2, score_pb2, tokenize_pb2)
_OTHERS = (health_pb2, reflection_pb2)


def methods(*, ours: bool = False) -> list[MethodDescriptor]:
    """Of all services; `ours`: of Headrace's alone."""
    return [
        method
        for module in (_OURS if ours else (*_OURS, *_OTHERS))
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    ]


def path_of(method: MethodDescriptor) -> str:
    """As gRPC names it: "/package.Service/Method"."""
    return f"/{method.containing_service.full_name}/{method.name}"
