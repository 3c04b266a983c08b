"""A runner that others can reach is protected as a controller is."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import grpc
import pytest

from headrace import AsyncClient
from headrace.cli.authority import Authority
from headrace.errors import (
    PermissionDenied,
    RateLimited,
    Unauthenticated,
    Unavailable,
    from_rpc_error,
)
from headrace.rpc.tokens import Tokens, new_token, write_tokens
from headrace.v1.runner_pb2 import DrainRequest
from headrace.v1.runner_pb2_grpc import RunnerServiceStub
from tests.integration.runner.api import MODEL, TIMEOUT
from tests.integration.runner.conftest import ServeTiny


async def test_tls_and_tokens(serve_tiny: ServeTiny, tmp_path: Path) -> None:
    Authority(tmp_path).issue("server", ("localhost", "127.0.0.1"), 1, server=True)
    token, secret = new_token(["infer"], tokens_per_minute=1)
    write_tokens(tmp_path / "tokens.json", Tokens((token,)))
    at = {name: str(tmp_path / name) for name in ("server.crt", "server.key", "tokens.json")}
    tls = ("--tls-cert", at["server.crt"], "--tls-key", at["server.key"])
    with serve_tiny("--listen", "127.0.0.1:0", *tls, "--tokens", at["tokens.json"]) as child:
        trusting = grpc.ssl_channel_credentials((tmp_path / "ca.crt").read_bytes())
        reach = partial(AsyncClient, child.address, timeout=TIMEOUT, credentials=trusting)
        async with reach() as nobody:
            assert await nobody.health()
            with pytest.raises(Unauthenticated):
                await nobody.complete(MODEL, "x", max_tokens=1)
        async with reach(token=secret) as somebody:
            assert (await somebody.complete(MODEL, "x", max_tokens=1)).usage.output_tokens == 1
            with pytest.raises(RateLimited):
                await somebody.complete(MODEL, "x", max_tokens=1)
        async with grpc.aio.secure_channel(child.address, trusting) as channel:
            stub = RunnerServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Drain(DrainRequest(), metadata=[("authorization", f"Bearer {secret}")])
            assert isinstance(from_rpc_error(caught.value), PermissionDenied)
        async with AsyncClient(child.address, timeout=TIMEOUT, token=secret) as plain:
            with pytest.raises(Unavailable):
                await plain.complete(MODEL, "x", max_tokens=1)


@pytest.mark.parametrize("option", ["--tls-key", "--tokens"])
def test_files_that_cannot_be_used_are_reported(
    serve_tiny: ServeTiny, tmp_path: Path, option: str
) -> None:
    Authority(tmp_path).issue("server", ("localhost",), 1, server=True)
    options = {"--tls-cert": "server.crt", "--tls-key": "server.key", option: "none"}
    arguments = [word for key, name in options.items() for word in (key, str(tmp_path / name))]
    with pytest.raises(EOFError, match=f"{tmp_path}/none"), serve_tiny(*arguments):
        pass
