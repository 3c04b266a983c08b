"""TLS with certificates on both sides, and tokens, from the command line to the model and back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from headrace import AsyncClient
from headrace.cli.authority import Authority
from headrace.errors import HeadraceError, RateLimited, Unauthenticated, Unavailable
from headrace.v1.completion_pb2 import StreamCompletionRequest
from tests.e2e.harness import MODEL, Controller, headrace

PROMPT = "The capital of France is"
SHORT = ("--temperature", "0", "--max-tokens", "8")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tls")
    authority = Authority(directory)
    authority.issue("server", ("localhost", "127.0.0.1"), 1, server=True)
    authority.issue("client", ("somebody",), 1, server=False)
    return directory


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokens") / "tokens.json"


@pytest.fixture(scope="module")
def guarded(shared_home: Path, certificates: Path, tokens: Path) -> Iterator[Controller]:
    """A controller that lets nobody in but with a certificate and a token."""
    at = certificates
    options = ["--tls-cert", at / "server.crt", "--tls-key", at / "server.key"]
    options += ["--tls-client-ca", at / "ca.crt", "--tokens", tokens, "--preload", MODEL]
    tokens.write_text('{"schema": 1, "tokens": []}')
    with Controller(shared_home, *map(str, options), listen="127.0.0.1:0") as controller:
        controller.environment |= {
            "HEADRACE_HOST": f"https://{controller.target}",
            "HEADRACE_TLS_CA": str(at / "ca.crt"),
            "HEADRACE_CLIENT_CERT": str(at / "client.crt"),
            "HEADRACE_CLIENT_KEY": str(at / "client.key"),
            "HEADRACE_TOKENS": str(tokens),
        }
        yield controller


def token(guarded: Controller, *options: str) -> str:
    """The secret of a new token, made as a user makes it."""
    return headrace(guarded, "token", "create", *options).stdout.strip()


def credentials(certificates: Path) -> grpc.ChannelCredentials:
    names = ("ca.crt", "client.key", "client.crt")
    return grpc.ssl_channel_credentials(*((certificates / name).read_bytes() for name in names))


@pytest_asyncio.fixture
async def client(guarded: Controller, certificates: Path) -> AsyncIterator[AsyncClient]:
    """With a certificate and a token that may use models."""
    secret = token(guarded)
    async with AsyncClient(
        guarded.target, timeout=120, credentials=credentials(certificates), token=secret
    ) as client:
        yield client


def test_the_command_line_gets_in_by_the_environment(guarded: Controller) -> None:
    refused = headrace(guarded, "list", check=False)
    assert refused.returncode == 5
    assert "HEADRACE_TOKEN" in refused.stderr
    guarded.environment["HEADRACE_TOKEN"] = token(guarded)
    try:
        listed = json.loads(headrace(guarded, "list", "--json").stdout)
        assert MODEL in [f"{model['name']}" for model in listed]
        answer = headrace(guarded, "run", MODEL, PROMPT, "--raw", *SHORT)
        assert "Paris" in answer.stdout
        denied = headrace(guarded, "stop", MODEL, check=False)
        assert denied.returncode == 5
        assert "manage" in denied.stderr
        assert headrace(guarded, "list", check=False).returncode == 0
        without = dict.fromkeys(("HEADRACE_CLIENT_CERT", "HEADRACE_CLIENT_KEY"), "")
        kept = dict(guarded.environment)
        guarded.environment |= without
        try:
            assert headrace(guarded, "list", check=False).returncode == 4
        finally:
            guarded.environment |= kept
    finally:
        del guarded.environment["HEADRACE_TOKEN"]


async def test_a_token_is_charged_for_what_the_model_does(
    guarded: Controller, certificates: Path
) -> None:
    secret = token(guarded, "--tokens-per-minute", "10")
    async with AsyncClient(
        guarded.target, timeout=120, credentials=credentials(certificates), token=secret
    ) as client:
        await client.complete(MODEL, PROMPT, max_tokens=16, temperature=0)  # 5 and 16
        with pytest.raises(RateLimited) as caught:
            await client.complete(MODEL, PROMPT, max_tokens=1)
        assert caught.value.metadata == {"limit": "tokens_per_minute"}
        assert caught.value.retry_after is not None


async def test_a_token_is_charged_for_what_a_request_brings_to_be_carried_on(
    guarded: Controller, certificates: Path
) -> None:
    stream = "/headrace.v1.CompletionService/StreamCompletion"
    secret = token(guarded, "--tokens-per-minute", "20")
    metadata = (("authorization", f"Bearer {secret}"),)
    request = StreamCompletionRequest(model=MODEL, prompt="a", max_tokens=31)
    request.resume_token_ids.extend([7042] * 30)  # 1, 30 and 1
    async with grpc.aio.secure_channel(guarded.target, credentials(certificates)) as channel:
        ask: Any = channel.unary_stream(stream, request_serializer=type(request).SerializeToString)
        assert [data async for data in ask(request, metadata=metadata, timeout=120)]
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await anext(aiter(ask(request, metadata=metadata, timeout=120)))
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_requests_at_once_are_bounded_and_end_with_the_stream(
    guarded: Controller, certificates: Path
) -> None:
    secret = token(guarded, "--max-requests", "1")
    async with AsyncClient(
        guarded.target, timeout=120, credentials=credentials(certificates), token=secret
    ) as client:
        async with client.stream_completion(MODEL, PROMPT, max_tokens=2000) as stream:
            await anext(aiter(stream))
            with pytest.raises(RateLimited) as caught:
                await client.complete(MODEL, PROMPT, max_tokens=1)
            assert caught.value.metadata == {"limit": "max_requests"}
        # The stream was given up: its place is free once the controller has heard of it.
        async with asyncio.timeout(60):
            while True:
                try:
                    await client.complete(MODEL, PROMPT, max_tokens=1)
                    break
                except RateLimited:
                    await asyncio.sleep(0.05)


async def test_a_revoked_token_finishes_and_begins_no_more(
    guarded: Controller, certificates: Path
) -> None:
    secret = token(guarded)
    async with (
        AsyncClient(
            guarded.target, timeout=120, credentials=credentials(certificates), token=secret
        ) as client,
        client.stream_completion(MODEL, PROMPT, max_tokens=24, temperature=0) as stream,
    ):
        await anext(aiter(stream))
        headrace(guarded, "token", "revoke", secret.split("_")[1])
        with pytest.raises(Unauthenticated):
            await client.list_models()
        assert (await stream.collect()).text


async def test_certificates_are_replaced_under_a_stream(
    guarded: Controller, certificates: Path, client: AsyncClient
) -> None:
    before = (certificates / "server.crt").read_bytes()
    async with client.stream_completion(MODEL, PROMPT, max_tokens=24, temperature=0) as stream:
        await anext(aiter(stream))
        headrace(guarded, "cert", "dev", str(certificates))
        assert (certificates / "server.crt").read_bytes() != before
        async with AsyncClient(
            guarded.target, timeout=60, credentials=credentials(certificates)
        ) as another:
            assert await another.health()
        assert (await stream.collect()).text
    assert await guarded.logged("certificates changed")


async def test_no_secret_is_in_the_log(guarded: Controller, client: AsyncClient) -> None:
    secret = token(guarded, "--scope", "manage")
    async with AsyncClient(guarded.target, timeout=5, token=secret) as plain:
        with pytest.raises(Unavailable):
            await plain.list_models()
    with pytest.raises(HeadraceError):
        await client.load_model("none")
    await guarded.logged("call failed")
    assert "hr_" not in guarded.log_text()
