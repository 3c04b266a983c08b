"""Folds the messages of a stream into events and a result, and holds the stream to its word.

Pure: the streams of both clients feed it. A stream that ends without `completed`, or that says
something after it, is an error here and never a quiet end.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Generic, NoReturn, Protocol, TypeVar

from grpc import StatusCode

from headrace import _convert, _convert_upkeep, types
from headrace.errors import RpcFailed
from headrace.v1 import completion_pb2, model_pb2

MessageT_contra = TypeVar("MessageT_contra", contravariant=True)
EventT_co = TypeVar("EventT_co", covariant=True)
ResultT_co = TypeVar("ResultT_co", covariant=True)
StartedT = TypeVar("StartedT")
CompletedT = TypeVar("CompletedT")


class Fold(Protocol[MessageT_contra, EventT_co, ResultT_co]):
    """What a stream needs to know of its messages."""

    def add(self, message: MessageT_contra) -> EventT_co | None:
        """Takes the next message; gives its event, or None where there is none to show.

        Raises:
            RpcFailed: the stream breaks its contract.
        """

    def result(self, trace_id: str) -> ResultT_co:
        """The result of the stream, which has ended with the status OK.

        Raises:
            RpcFailed: the stream was not complete.
        """


class Ordered(Generic[StartedT, CompletedT]):
    """A stream that starts once, before it sends any output, and says nothing behind its end."""

    def __init__(self) -> None:
        self._started: StartedT | None = None
        self._completed: CompletedT | None = None

    def _require_open(self) -> None:
        if self._completed is not None:
            raise broken("the stream went on after it had been completed")

    def _start(self, event: StartedT) -> None:
        if self._started is not None:
            raise broken("the stream started twice")
        self._started = event

    def _require_started(self) -> StartedT:
        if self._started is None:
            raise broken("the stream sent output before it had started")
        return self._started

    def _require_completed(self) -> CompletedT:
        if self._completed is None:
            raise incomplete()
        return self._completed


class CompletionFold(Ordered[types.Started, types.Completed]):
    """Folds a completion."""

    def __init__(self) -> None:
        super().__init__()
        self._begin = time.perf_counter()
        self._first_token: float | None = None
        self._deltas: list[types.Delta] = []

    def add(self, message: completion_pb2.StreamCompletionResponse) -> types.CompletionEvent | None:
        """Takes the next message; gives its event."""
        self._require_open()
        self._check_choices(message)
        event = _convert.completion_event(message)
        match event:
            case types.Delta():
                self._require_started()
                if event.token_ids and self._first_token is None:
                    self._first_token = time.perf_counter() - self._begin
                self._deltas.append(event)
            case types.Started():
                self._start(event)
            case types.Completed():
                self._require_started()
                self._completed = event
        return event

    def result(self, trace_id: str) -> types.Completion:
        """The whole completion."""
        completed = self._require_completed()
        deltas = self._deltas
        return types.Completion(
            text="".join(delta.text for delta in deltas),
            reasoning="".join(delta.reasoning for delta in deltas),
            token_ids=tuple(token_id for delta in deltas for token_id in delta.token_ids),
            logprobs=tuple(logprob for delta in deltas for logprob in delta.logprobs),
            started=self._require_started(),
            completed=completed,
            time_to_first_token=self._first_token,
            trace_id=trace_id,
            tool_calls=_tool_calls(part for delta in deltas for part in delta.tool_calls),
        )

    def _check_choices(self, message: completion_pb2.StreamCompletionResponse) -> None:
        """One choice was asked for: what is of another one, or of none, is no answer to that."""
        match message.WhichOneof("event"):
            case "delta":
                if message.delta.choice:
                    raise broken(f"the stream has text of choice {message.delta.choice}")
            case "completed":
                if [choice.index for choice in message.completed.choices] != [0]:
                    raise broken("the stream was completed without just the one choice asked for")


class TransferFold:
    """Folds a pull or an import."""

    def __init__(self) -> None:
        self._model: types.Model | None = None

    def add(
        self, message: model_pb2.StreamPullModelResponse | model_pb2.StreamImportModelResponse
    ) -> types.TransferProgress | None:
        """Takes the next message; gives its progress, and nothing for the last."""
        if self._model:
            raise broken("the stream went on after it had been completed")
        match message.WhichOneof("event"):
            case "progress":
                return _convert.transfer_progress(message.progress)
            case "completed":
                self._model = _convert.model(message.completed)
        return None

    def result(self, trace_id: str) -> types.Model:
        """The model that is now in the store."""
        if not self._model:
            raise incomplete()
        return self._model


class VerifyFold:
    """Folds a verification."""

    def __init__(self) -> None:
        self._models: list[types.VerifiedModel] = []
        self._garbage: types.Garbage | None = None

    def add(self, message: model_pb2.StreamVerifyModelsResponse) -> types.VerifyEvent | None:
        """Takes the next message; gives its event, and nothing for the last."""
        if self._garbage:
            raise broken("the stream went on after it had been completed")
        match message.WhichOneof("event"):
            case "progress":
                return _convert_upkeep.verify_progress(message.progress)
            case "verified":
                self._models.append(_convert_upkeep.verified_model(message.verified))
                return self._models[-1]
            case "completed":
                self._garbage = _convert_upkeep.garbage(message.completed.garbage)
        return None

    def result(self, trace_id: str) -> types.Verification:
        """What was found in all."""
        if not self._garbage:
            raise incomplete()
        return types.Verification(tuple(self._models), self._garbage)


class WatchFold:
    """Folds a watch into the models as they are."""

    def __init__(self) -> None:
        self._models: dict[str, types.Model] = {}
        self.resume_token: str | None = None

    @property
    def models(self) -> tuple[types.Model, ...]:
        """All models by name, as of the last event."""
        return tuple(model for _, model in sorted(self._models.items()))

    def add(self, message: model_pb2.WatchModelsResponse) -> types.ModelsEvent | None:
        """Takes the next message; gives its event."""
        event = _convert.models_event(message)
        match event:
            case types.ModelsSnapshot(models):
                self._models = {model.name: model for model in models}
            case types.ModelChanged(model):
                self._models[model.name] = model
            case types.ModelDeleted(name):
                self._models.pop(name, None)
            case types.WatchCheckpoint(token):
                self.resume_token = token
        return event

    def result(self, trace_id: str) -> NoReturn:
        """A watch has no end of its own."""
        raise incomplete()


def _tool_calls(parts: Iterable[types.ToolCallPart]) -> tuple[types.ToolCall, ...]:
    calls: list[types.ToolCall] = []
    arguments: list[list[str]] = []
    for part in parts:
        if part.index == len(calls) and part.name is not None:
            calls.append(types.ToolCall(part.id or "", part.name))
            arguments.append([])
        elif not 0 <= part.index < len(calls) or part.name is not None:
            raise broken("a part of a tool call does not follow the one before")
        arguments[part.index].append(part.arguments_json)
    return tuple(
        replace(call, arguments_json="".join(texts))
        for call, texts in zip(calls, arguments, strict=True)
    )


def incomplete() -> RpcFailed:
    """The error of a stream that lacks its end."""
    return broken("the stream ended without being completed: what came of it is not whole")


def broken(message: str) -> RpcFailed:
    """The error of a stream that breaks its contract."""
    error = RpcFailed(message)
    error.code = StatusCode.INTERNAL
    return error
