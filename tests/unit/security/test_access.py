"""Every method of every service, with every kind of token; and how much one may ask for."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf.descriptor import MethodDescriptor

from headrace.errors import HeadraceError, RateLimited, Unauthenticated, from_rpc_error
from headrace.rpc import access
from headrace.rpc.access import (
    Access,
    AccessInterceptor,
    Account,
    charge,
    scopes_of,
    tokens_of_image,
)
from headrace.rpc.protection import Protection
from headrace.rpc.tokens import (
    SCOPES,
    Token,
    Tokens,
    TokensError,
    new_token,
    read_tokens,
    write_tokens,
)
from headrace_server.app import SERVICES, App
from headrace_server.config import ServerConfig
from tests.contract import methods, path_of
from tests.unit.control.fakes import put_manifest

STREAM = "/headrace.v1.CompletionService/StreamCompletion"
_REFUSALS = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
_OPEN = {f"/grpc.health.v1.Health/{method}" for method in ("Check", "List", "Watch")}


in_one_loop = pytest.mark.asyncio(loop_scope="module")
every_method = pytest.mark.parametrize("method", methods(), ids=lambda m: m.full_name)


class Desk:
    """A controller that asks for tokens, and a token of each scope."""

    def __init__(self, channel: grpc.aio.Channel, file: Path) -> None:
        self.channel = channel
        self.file = file
        self._tokens: list[Token] = []
        self.secrets = {scope: self.give([scope]) for scope in SCOPES}

    def give(self, scopes: list[str], **options: object) -> str:
        token, secret = new_token(scopes, **options)  # type: ignore[arg-type]
        self._tokens.append(token)
        self._save()
        return secret

    def revoke(self, secret: str) -> None:
        self._tokens = [token for token in self._tokens if token.id not in secret]
        self._save()

    def change(self, secret: str, **fields: Any) -> None:
        self._tokens = [replace(t, **fields) if t.id in secret else t for t in self._tokens]
        self._save()

    def _save(self) -> None:
        write_tokens(self.file, Tokens(tuple(self._tokens)))

    async def ask(self, method: MethodDescriptor, *values: str) -> grpc.StatusCode:
        """The status of a call that says nothing beside its tokens."""
        metadata = [("authorization", value) for value in values]
        error = await self.error(method, metadata)
        return grpc.StatusCode.OK if error is None else error.code

    async def error(
        self, method: MethodDescriptor, metadata: list[tuple[str, str]]
    ) -> HeadraceError | None:
        """How a call fails; None where it is let in and goes well."""
        path = path_of(method)
        channel: Any = self.channel
        options = {"metadata": metadata, "timeout": 10}
        try:
            if method.client_streaming:
                both = channel.stream_stream(path)(iter([b""]), **options)
                await both.read()
                both.cancel()
            elif method.server_streaming:
                stream = channel.unary_stream(path)(b"", **options)
                await stream.read()
                stream.cancel()
            else:
                await channel.unary_unary(path)(b"", **options)
        except grpc.RpcError as error:
            return from_rpc_error(error)
        return None


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def desk(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Desk]:
    tmp_path = tmp_path_factory.mktemp("desk")
    put_manifest(tmp_path, "words", "text")
    file = tmp_path / "tokens.json"
    write_tokens(file, Tokens())
    config = ServerConfig(listen=f"unix:{tmp_path}/c.sock", home=tmp_path, memory=1 << 30)
    app = App(config, protection=Protection.read(tokens=file))
    address = await app.start()
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            yield Desk(channel, file)
    finally:
        await app.close()


def test_the_table_has_all_that_is_served() -> None:
    """A service that is new has to be thought of: `manage` alone may use what nobody named."""
    served = {*SERVICES, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
    assert {method.containing_service.full_name for method in methods()} == served
    assert {*access._OF_SERVICES} <= served
    ours = {path_of(method) for method in methods()}
    assert {m for m in access._OF_METHODS if "RunnerService" not in m} <= ours
    assert scopes_of("/headrace.v1.FutureService/Do") == ("manage",)
    assert {path_of(method) for method in methods() if not scopes_of(path_of(method))} == _OPEN


@every_method
@in_one_loop
async def test_a_method_lets_in_whom_it_should(desk: Desk, method: MethodDescriptor) -> None:
    past = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    expired = desk.give([*SCOPES], expires_at=past)
    revoked = desk.give([*SCOPES])
    desk.revoke(revoked)
    good = desk.give([*SCOPES])
    wanted = scopes_of(path_of(method))
    bad = [
        (),
        ("",),
        ("Bearer",),
        ("Bearer nonsense",),
        (good,),
        (f"Basic {good}",),
        (f"Bearer {good}x",),
        (f"Bearer {expired}",),
        (f"Bearer {revoked}",),
        (f"Bearer {good}", f"Bearer {good}"),
    ]
    for values in bad:
        code = await desk.ask(method, *values)
        if wanted:
            assert code is grpc.StatusCode.UNAUTHENTICATED, values
        else:
            assert code not in _REFUSALS
    for scope, secret in desk.secrets.items():
        code = await desk.ask(method, f"Bearer {secret}")
        if wanted and scope not in wanted:
            assert code is grpc.StatusCode.PERMISSION_DENIED
        else:
            assert code not in _REFUSALS
    assert await desk.ask(method, f"bearer {good}") not in _REFUSALS


@in_one_loop
async def test_refusals_say_what_is_missing(desk: Desk) -> None:
    load = next(method for method in methods() if method.name == "LoadModel")
    refused = await desk.error(load, [("authorization", f"Bearer {desk.secrets['infer']}")])
    assert refused is not None
    assert refused.reason == "PERMISSION_DENIED"
    assert refused.metadata == {"scope": "manage"}
    nobody = await desk.error(load, [])
    assert isinstance(nobody, Unauthenticated)
    assert "HEADRACE_TOKEN" in nobody.message


@in_one_loop
async def test_a_token_has_no_more_calls_at_once_than_it_may(desk: Desk) -> None:
    """Each counts until it is over, a stream that is given up too."""
    secret = desk.give(["observe"], max_requests=1)
    metadata = [("authorization", f"Bearer {secret}")]
    listing = next(method for method in methods() if method.name == "ListModels")
    channel: Any = desk.channel
    watch = channel.unary_stream("/headrace.v1.ModelService/WatchModels")(b"", metadata=metadata)
    await watch.read()
    refused = await desk.error(listing, metadata)
    assert isinstance(refused, RateLimited)
    watch.cancel()
    async with asyncio.timeout(10):
        while await desk.error(listing, metadata) is not None:  # noqa: ASYNC110 - it is heard of soon
            await asyncio.sleep(0.01)


async def rest(stream: Any) -> None:
    """Read a stream to its end."""
    while await stream.read() is not grpc.aio.EOF:
        pass


@pytest.mark.parametrize("how", ["revoked", "expired", "less"])
@in_one_loop
async def test_a_watch_ends_with_its_right(
    desk: Desk, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "_LOOK_AGAIN", 0.02)
    secret = desk.give(["observe"], max_requests=1)
    metadata = [("authorization", f"Bearer {secret}")]
    channel: Any = desk.channel
    path = "/headrace.v1.ModelService/WatchModels"
    other = channel.unary_stream(path)(
        b"", metadata=[("authorization", f"Bearer {desk.secrets['observe']}")]
    )
    await other.read()
    watch = channel.unary_stream(path)(b"", metadata=metadata, timeout=30)
    await watch.read()
    if how == "revoked":
        desk.revoke(secret)
    else:
        past = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
        desk.change(secret, **{"expires_at": past} if how == "expired" else {"scopes": ("infer",)})
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await rest(watch)
    error = from_rpc_error(ended.value)
    assert error.reason == ("PERMISSION_DENIED" if how == "less" else "UNAUTHENTICATED")
    assert secret.split("_")[1] in error.message
    assert not other.done()
    other.cancel()
    await asyncio.wait([asyncio.ensure_future(other.code())])
    async with asyncio.timeout(10):  # Nobody looks after a watch that is over.
        while any("lost" in repr(task.get_coro()) for task in asyncio.all_tasks()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_call_that_ends_by_itself_or_is_given_up_leaves_nothing() -> None:
    forever = asyncio.Event()

    async def end() -> None:
        await forever.wait()

    async def give() -> int:
        return 7

    async def fail() -> None:
        raise ZeroDivisionError

    before = asyncio.all_tasks()
    assert await access.until(end(), give()) == 7
    with pytest.raises(ZeroDivisionError):
        await access.until(end(), fail())
    given_up = asyncio.create_task(access.until(end(), end()))
    await asyncio.sleep(0)
    given_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await given_up
    assert asyncio.all_tasks() == before


@in_one_loop
async def test_a_broken_file_changes_nothing(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    listing = next(method for method in methods() if method.name == "ListModels")
    good = f"Bearer {desk.secrets['infer']}"
    file = desk.file
    kept = file.read_bytes()
    assert await desk.ask(listing, good) is grpc.StatusCode.OK
    for harm in (lambda: file.write_text("{"), file.unlink):
        caplog.clear()
        harm()
        for _ in range(3):
            assert await desk.ask(listing, good) is grpc.StatusCode.OK
        told = [record for record in caplog.records if record.name == "headrace.rpc.access"]
        assert len(told) == 1
        assert "tokens.json" in told[0].message
    file.write_bytes(kept)
    gone = desk.give(["infer"])
    assert await desk.ask(listing, f"Bearer {gone}") is grpc.StatusCode.OK
    desk.revoke(gone)
    assert await desk.ask(listing, f"Bearer {gone}") is grpc.StatusCode.UNAUTHENTICATED


def test_a_server_does_not_start_without_its_file(tmp_path: Path) -> None:
    with pytest.raises(TokensError, match="token create"):
        Access(tmp_path / "none.json")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_requests_at_once_are_bounded() -> None:
    token = replace(new_token(["infer"])[0], max_requests=2)
    account = Account(Clock())
    with account.entered(token), account.entered(token):
        with pytest.raises(RateLimited) as caught:
            account.entered(token).__enter__()
        assert caught.value.metadata == {"limit": "max_requests"}
        assert caught.value.retry_after == 1.0
    with account.entered(token), pytest.raises(ZeroDivisionError), account.entered(token):
        raise ZeroDivisionError
    with account.entered(token), account.entered(token):
        pass


def test_tokens_a_minute_are_paid_back_by_time() -> None:
    token = replace(new_token(["infer"])[0], tokens_per_minute=600)
    clock = Clock()
    account = Account(clock)
    with account.entered(token):
        account.charge(900)  # Known only afterwards: what runs is not cut off.
    with pytest.raises(RateLimited) as caught:
        account.entered(token).__enter__()
    assert caught.value.metadata == {"limit": "tokens_per_minute"}
    assert caught.value.retry_after == pytest.approx(30.0)
    clock.now += 29.9
    with pytest.raises(RateLimited):
        account.entered(token).__enter__()
    clock.now += 0.2
    with account.entered(token):
        account.charge(1)
    clock.now += 3600  # Who was away has not saved up more than a minute's worth.
    with account.entered(token):
        account.charge(600)
    with pytest.raises(RateLimited):
        account.entered(token).__enter__()


def test_an_image_costs_what_a_model_computes_for_it() -> None:
    assert tokens_of_image(1024, 1024, 20) == 81_920
    assert tokens_of_image(1, 17, 1) == 2


async def test_a_call_that_is_refused_is_not_decoded(tmp_path: Path) -> None:
    """A few compressed bytes may become a message that takes all the memory."""
    file = tmp_path / "tokens.json"
    token, secret = new_token(["infer"])
    write_tokens(file, Tokens((token,)))

    async def answer(_: Any, __: Any) -> None: ...

    handler: Any = grpc.unary_unary_rpc_method_handler(answer, bytes.decode, None)

    async def found(_: Any) -> Any:
        return handler

    @dataclass
    class Details:
        invocation_metadata: tuple[tuple[str, str], ...]
        method: str = STREAM

    guard: Any = AccessInterceptor(Access(file))
    refused = await guard.intercept_service(found, Details(()))
    assert refused.request_deserializer is None
    with pytest.raises(Unauthenticated):
        await refused.unary_unary(b"", None)
    passed = (("authorization", f"Bearer {secret}"),)
    let_in = await guard.intercept_service(found, Details(passed))
    assert let_in.request_deserializer is bytes.decode


def test_looking_costs_nothing(tmp_path: Path) -> None:
    token = replace(new_token(["infer"])[0], tokens_per_minute=1)
    account = Account(Clock())
    account.charge(1000)
    with account.entered(token, infers=False):
        pass
    with pytest.raises(RateLimited):
        account.entered(token).__enter__()


def test_the_file_of_a_link_is_changed_and_stays_its_owners(tmp_path: Path) -> None:
    real, link = tmp_path / "real.json", tmp_path / "link.json"
    write_tokens(real, Tokens())
    if os.geteuid() == 0:
        os.chown(real, 65534, 65534)
    link.symlink_to(real)
    token, _ = new_token(["infer"])
    write_tokens(link, Tokens((token,)))
    assert link.is_symlink()
    assert read_tokens(real).tokens == (token,)
    if os.geteuid() == 0:
        assert real.stat().st_uid == 65534


def test_a_call_is_charged_to_its_token(tmp_path: Path) -> None:
    clock = Clock()
    token, secret = new_token(["infer"], tokens_per_minute=60)
    other, _ = new_token(["infer"], tokens_per_minute=60)
    file = tmp_path / "tokens.json"
    write_tokens(file, Tokens((token, other)))
    guard = Access(file, clock)
    charge(1_000_000)  # Nobody's.
    found = guard.token(STREAM, [("authorization", f"Bearer {secret}")])
    assert found == token
    with guard.entered(token, STREAM):
        charge(60)
    with guard.entered(other, STREAM):
        pass
    with pytest.raises(RateLimited):
        guard.entered(token, STREAM).__enter__()
    os.utime(file)  # The file is read again, and the debt stays.
    assert (
        guard.token(
            STREAM,
            [("authorization", f"Bearer {secret}")],
        )
        == token
    )
    with pytest.raises(RateLimited):
        guard.entered(token, STREAM).__enter__()
