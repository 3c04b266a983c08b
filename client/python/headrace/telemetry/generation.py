"""What telemetry says of a request to generate."""

from __future__ import annotations

from headrace.telemetry import names
from headrace.v1.completion_pb2 import StreamCompletionRequest


def request_attributes(request: StreamCompletionRequest) -> dict[str, str]:
    """Give the attributes by which requests are told apart in metrics: never a text of theirs."""
    chat = request.WhichOneof("input") == "chat"
    operation = names.OPERATION_CHAT if chat else names.OPERATION_TEXT_COMPLETION
    return {
        names.GEN_AI_OPERATION_NAME: operation,
        names.GEN_AI_PROVIDER_NAME: names.GEN_AI_PROVIDER,
        names.GEN_AI_REQUEST_MODEL: request.model,
    }
