"""The adapter that a request is served with: the one that it names, or that of the settings."""

from __future__ import annotations

from typing import TypeVar

from headrace.v1.completion_pb2 import StreamCompletionRequest
from headrace.v1.score_pb2 import ScoreRequest
from headrace_server.scheduling.planner import Model, Planner
from headrace_server.services.raw import Raw

M = TypeVar("M", StreamCompletionRequest, ScoreRequest)


def with_adapter(planner: Planner, model: Model, request: Raw[M]) -> tuple[Raw[M], str | None]:
    """The request as its runner is to have it, and the digest of its adapter, if it has one.

    Of a request that names none, but has one by the settings, it is made one that names it: the
    runner says so to the client, and a change of the settings does not reach what runs.
    Raises UnsupportedParameter, ModelCorrupt.
    """
    message = request.message
    named = message.adapter if message.HasField("adapter") else None
    adapter = planner.adapter(model, named)
    if adapter is None:
        return request, None
    if named is None:
        message.adapter = adapter.full_name
        request = Raw(message, message.SerializeToString())
    return request, adapter.digest
