"""One shape for the handlers that interceptors wrap: a coroutine of (request, context).

gRPC runs a server stream's async generator itself, and when a call is cancelled while a message
is being sent it abandons the generator, whose `finally` then runs in another task, whenever the
garbage collector gets to it. Driven from a coroutine the generator is closed in the call's own
task, at once, and each interceptor costs one frame a call instead of one a message.
"""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeAlias

import grpc

# gRPC's classes take type arguments in its stubs only, hence the quotes.
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Continuation: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]"
Behaviour: TypeAlias = Callable[[Any, Context], Awaitable[Any]]
Deserializer: TypeAlias = Callable[[bytes], Any]


class Wrapped:
    """Handlers as an interceptor has wrapped them: each once, and not for every call."""

    def __init__(self, wrap: Callable[[str, Handler, Behaviour], Handler]) -> None:
        """`wrap`: gives a method's handler another behaviour than the one it has."""
        self._wrap = wrap
        self._made: dict[str, tuple[Handler, Handler]] = {}

    def get(self, method: str, handler: Handler | None) -> Handler | None:
        """Give what stands for a method's handler; itself where there is nothing to wrap."""
        if handler is None:
            return None
        made = self._made.get(method)
        if made is not None and made[0] is handler:
            return made[1]
        behaviour = behaviour_of(handler)
        if behaviour is None:
            return handler
        wrapped = self._wrap(method, handler, behaviour)
        self._made[method] = (handler, wrapped)
        return wrapped


class WrappingInterceptor(grpc.aio.ServerInterceptor):
    """Gives every method's handler another behaviour, as `_wrap` makes it."""

    def __init__(self) -> None:
        self._wrapped = Wrapped(self._wrap)

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler | None:
        handler = await continuation(handler_call_details)
        return self._wrapped.get(handler_call_details.method, handler)

    @abstractmethod
    def _wrap(self, method: str, handler: Handler, inner: Behaviour) -> Handler:
        """What stands for the handler of a method, which behaves as `inner`."""


def behaviour_of(handler: Handler | None) -> Behaviour | None:
    """Give what answers one request, as a coroutine function.

    `None` where there is nothing to wrap: no handler, a client stream, or a blocking function.
    """
    if handler is None or handler.request_streaming:
        return None
    function: Any = handler.unary_stream if handler.response_streaming else handler.unary_unary
    if inspect.iscoroutinefunction(function):
        coroutine: Behaviour = function
        return coroutine
    if not inspect.isasyncgenfunction(function):
        return None

    async def drive(request: Any, context: Context) -> None:
        async with aclosing(function(request, context)) as messages:
            async for message in messages:
                await context.write(message)

    return drive


def with_behaviour(
    handler: Handler, behaviour: Behaviour, request_deserializer: Deserializer | None
) -> Handler:
    """Give the same handler with another behaviour and request deserializer."""
    make: Any = (
        grpc.unary_stream_rpc_method_handler
        if handler.response_streaming
        else grpc.unary_unary_rpc_method_handler
    )
    made: Handler = make(behaviour, request_deserializer, handler.response_serializer)
    return made
