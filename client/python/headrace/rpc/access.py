"""Who may call what: bearer tokens, their scopes, and how much each may ask for at a time.

A call without its right is refused before its request is looked at. What a token may no longer do
holds for calls that begin; those that run are let finish, but for watches, which have no end.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import grpc

from headrace._handlers import (
    Behaviour,
    Context,
    Continuation,
    Handler,
    WrappingInterceptor,
    with_behaviour,
)
from headrace.errors import (
    HeadraceError,
    PermissionDenied,
    RateLimited,
    Unauthenticated,
    to_status,
    trailing_metadata,
)
from headrace.rpc.tokens import Token, Tokens, TokensError, read_tokens
from headrace.telemetry.logs import bind

logger = logging.getLogger(__name__)

_INFER: Final = ("infer",)
_OBSERVE: Final = ("observe", "manage")
_LOOK: Final = ("infer", "observe", "manage")
_MANAGE: Final = ("manage",)

_OF_SERVICES: Final[Mapping[str, Sequence[str]]] = MappingProxyType(
    {
        "headrace.v1.CompletionService": _INFER,
        "headrace.v1.EmbeddingService": _INFER,
        "headrace.v1.ImageService": _INFER,
        "headrace.v1.ScoreService": _INFER,
        "headrace.v1.TokenizeService": _INFER,
        "grpc.reflection.v1alpha.ServerReflection": _OBSERVE,
        "grpc.health.v1.Health": (),
    }
)
"""The scopes one of which a service's methods need. (): nothing at all, since probes and load
balancers have no token."""

_OF_METHODS: Final[Mapping[str, Sequence[str]]] = MappingProxyType(
    {
        "/headrace.v1.ModelService/GetModel": _LOOK,
        "/headrace.v1.ModelService/ListModels": _LOOK,
        "/headrace.v1.ModelService/ListRunners": _OBSERVE,
        "/headrace.v1.ModelService/WatchModels": _OBSERVE,
        "/headrace.v1.RunnerService/GetRunner": _OBSERVE,
        "/headrace.v1.RunnerService/WatchRunner": _OBSERVE,
    }
)
"""Where a method needs others than its service's. What is in neither table needs `manage`."""

_ENDLESS: Final = frozenset(
    {"/headrace.v1.ModelService/WatchModels", "/headrace.v1.RunnerService/WatchRunner"}
)
"""Methods that have no end of their own: they end with the right to call them."""
_LOOK_AGAIN: Final = 1.0
"""Seconds between two looks whether the right is still there."""

_AUTHORIZATION: Final = "authorization"
_SCHEME: Final = "bearer "
_MINUTE: Final = 60.0
_PATCH: Final = 16
"""Pixels on each side of what an image model computes as one token."""


def scopes_of(method: str) -> Sequence[str]:
    """The scopes one of which a method needs, as in "/package.Service/Method"; (): none."""
    if method in _OF_METHODS:
        return _OF_METHODS[method]
    return _OF_SERVICES.get(method.rpartition("/")[0].removeprefix("/"), _MANAGE)


class Account:
    """What one token has under way, and what it has used of late."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._running = 0
        self._debt = 0.0
        """Model tokens that were used, less those that time has paid for."""
        self._seen = clock()

    @contextmanager
    def entered(self, token: Token, *, infers: bool = True) -> Iterator[None]:
        """While a call runs; `infers`: it may use a model. Raises RateLimited where the token may
        not have another now."""
        self._pay(token)
        if token.max_requests is not None and self._running >= token.max_requests:
            raise RateLimited(
                f"the token may have {token.max_requests} requests at once; wait for one to end",
                limit="max_requests",
                retry_after=1.0,
            )
        if infers and token.tokens_per_minute is not None and self._debt >= token.tokens_per_minute:
            rate = token.tokens_per_minute / _MINUTE
            raise RateLimited(
                f"the token may use {token.tokens_per_minute} tokens a minute; wait",
                limit="tokens_per_minute",
                retry_after=max(1.0, (self._debt - token.tokens_per_minute) / rate),
            )
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1

    def charge(self, tokens: int) -> None:
        """A call has used so many tokens of a model, prompt and output."""
        self._debt += tokens

    def _pay(self, token: Token) -> None:
        now = self._clock()
        if token.tokens_per_minute is not None:
            paid = (now - self._seen) * token.tokens_per_minute / _MINUTE
            self._debt = max(0.0, self._debt - paid)
        self._seen = now


def tokens_of_image(width: int, height: int, steps: int) -> int:
    """What so many steps of an image of this size cost: a token for each 16 by 16 pixels, in each
    step, as many as a transformer for images computes."""
    return -(-width // _PATCH) * -(-height // _PATCH) * steps


_account: ContextVar[Account | None] = ContextVar("headrace_account", default=None)


def charge(tokens: int) -> None:
    """The call under way has used so many tokens of a model."""
    if (account := _account.get()) is not None:
        account.charge(tokens)


class Access:
    """The tokens of a file, as they were last good, and their accounts."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises TokensError."""
        self._path = path
        self._clock = clock
        self._seen = _stamp(path)
        self._tokens: Tokens = read_tokens(path)
        self._accounts: dict[str, Account] = {}

    def token(self, method: str, metadata: Iterable[tuple[str, str | bytes]]) -> Token | None:
        """The token by which a method may be called; None: it needs none.

        Raises Unauthenticated, PermissionDenied.
        """
        wanted = scopes_of(method)
        if not wanted:
            return None
        given = [value for key, value in metadata if key == _AUTHORIZATION]
        if not given:
            raise Unauthenticated(
                "this needs a token: send it as `authorization: Bearer …`, or set HEADRACE_TOKEN"
            )
        secret = given[0]
        if len(given) > 1 or not isinstance(secret, str) or not secret.lower().startswith(_SCHEME):
            raise Unauthenticated("the header has to be one `authorization: Bearer …`")
        self._look()
        token = self._tokens.find(secret[len(_SCHEME) :].strip())
        if token is None:
            raise Unauthenticated("there is no such token; it may have been revoked")
        _check(token, wanted)
        return token

    async def lost(self, token: Token, method: str) -> None:
        """Never returns. Raises Unauthenticated, PermissionDenied as soon as a call that was let in
        by a token would not be any more."""
        wanted = scopes_of(method)
        while True:
            await asyncio.sleep(_LOOK_AGAIN)  # A file tells nobody that it has changed.
            self._look()
            same = (t for t in self._tokens.tokens if (t.id, t.sha256) == (token.id, token.sha256))
            current = next(same, None)
            if current is None:
                raise Unauthenticated(f"the token {token.id} has been revoked; ask for another")
            _check(current, wanted)

    @contextmanager
    def entered(self, token: Token, method: str) -> Iterator[None]:
        """While a call with a token runs. Raises RateLimited."""
        account = self._accounts.get(token.id)
        if account is None:
            account = self._accounts[token.id] = Account(self._clock)
        with account.entered(token, infers=scopes_of(method) == _INFER):
            before = _account.set(account)
            try:
                yield
            finally:
                _account.reset(before)

    def _look(self) -> None:
        """Reads the file again if it is another. One that is broken, or gone, changes nothing."""
        try:
            stamp = _stamp(self._path)
            if stamp == self._seen:
                return
            self._seen = stamp
            self._tokens = read_tokens(self._path)
        except TokensError as error:
            if self._seen:  # Once for each that is broken.
                logger.error("tokens not taken, the last ones stay: %s", error)  # noqa: TRY400 - no bug
            self._seen = () if isinstance(error, _GoneError) else self._seen
            return
        known = {token.id for token in self._tokens.tokens}
        self._accounts = {key: kept for key, kept in self._accounts.items() if key in known}
        logger.info("tokens changed", extra={"tokens": len(known)})


def _check(token: Token, wanted: Sequence[str]) -> None:
    """Raises Unauthenticated, PermissionDenied."""
    if token.has_expired(datetime.now(UTC)):
        raise Unauthenticated(f"the token {token.id} has expired; ask for another")
    if not set(wanted) & set(token.scopes):
        raise PermissionDenied(
            f"the token {token.id} has not the scope {wanted[0]}", scope=wanted[0]
        )


class _GoneError(TokensError):
    """The file cannot be looked at."""


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError as error:
        raise _GoneError(f"{path}: {error.strerror}; `headrace token create` makes one") from error
    return (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)


_admitted: ContextVar[Token | None] = ContextVar("headrace_admitted", default=None)
"""The token by which the call under way was let in."""


class AccessInterceptor(WrappingInterceptor):
    """Lets calls through that may be made. Raises into `ErrorInterceptor`."""

    def __init__(self, access: Access) -> None:
        super().__init__()
        self._access = access

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler | None:
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or not scopes_of(method):
            return handler
        try:
            token = self._access.token(method, handler_call_details.invocation_metadata or ())
        except HeadraceError as error:
            return _refusing(handler, error)
        # gRPC looks for a call's handler and runs it in one task, which is the call's own.
        _admitted.set(token)
        return self._wrapped.get(method, handler)

    def _wrap(self, method: str, handler: Handler, inner: Behaviour) -> Handler:
        access, endless = self._access, method in _ENDLESS

        async def behaviour(request: Any, context: Context) -> Any:
            token = _admitted.get()
            if token is None:
                raise Unauthenticated("the call was let in by nobody")
            bind(token_id=token.id)
            with access.entered(token, method):
                call = inner(request, context)
                return await (until(access.lost(token, method), call) if endless else call)

        return with_behaviour(handler, behaviour, handler.request_deserializer)


async def until(end: Awaitable[None], call: Awaitable[Any]) -> Any:
    """What a call gives, or what `end` raises if it does so before. Both are over after it."""
    both = running, ending = asyncio.ensure_future(call), asyncio.ensure_future(end)
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        return await running if running.done() else await ending
    finally:
        for task in both:
            task.cancel()
        await asyncio.gather(*both, return_exceptions=True)


def _refusing(handler: Handler, error: HeadraceError) -> Handler:
    """Answers a call with an error, and decodes nothing: a few bytes may become a great message."""

    async def refuse(_: bytes, __: Context) -> None:
        raise error

    async def refuse_stream(_: Any, context: Context) -> None:
        status = to_status(error)
        await context.abort(error.code, status.message, trailing_metadata(error, status))

    if handler.request_streaming:  # Reflection: gRPC's own, which no interceptor wraps.
        refusing: Handler = grpc.stream_stream_rpc_method_handler(refuse_stream)
        return refusing
    return with_behaviour(handler, refuse, None)
