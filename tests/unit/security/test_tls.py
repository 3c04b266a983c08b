"""TLS of a server, with real handshakes: certificates from files, and other ones later."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from headrace import AsyncClient
from headrace.cli import authority
from headrace.cli.authority import Authority
from headrace.errors import Unavailable
from headrace.rpc.health import SERVING, HealthServicer
from headrace.rpc.protection import Protection
from headrace.rpc.tls import Certificates, TlsError, TlsFiles
from tests.unit.security.conftest import LOCAL


@asynccontextmanager
async def serving(certificates: Path, *, mutual: bool = False) -> AsyncIterator[str]:
    server = grpc.aio.server()
    health = HealthServicer()
    health.add_to(server)
    health.set("", SERVING)
    protection = Protection.read(
        certificates / "server.crt",
        certificates / "server.key",
        certificates / "ca.crt" if mutual else None,
    )
    port = protection.add_port(server, "127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def reach(target: str, authority: Path, own: Path | None = None) -> bool:
    """Whether a new connection comes about. Raises Unavailable where it does not."""
    key, chain = (
        None if own is None else own.with_suffix(suffix).read_bytes() for suffix in (".key", ".crt")
    )
    credentials = grpc.ssl_channel_credentials(authority.read_bytes(), key, chain)
    async with AsyncClient(target, timeout=10, credentials=credentials) as client:
        return await client.health()


async def test_who_trusts_the_authority_gets_in_and_nobody_in_the_clear(certificates: Path) -> None:
    async with serving(certificates) as target:
        assert await reach(target, certificates / "ca.crt")
        async with AsyncClient(target, timeout=10) as client:
            with pytest.raises(Unavailable):
                await client.health()


async def test_an_authority_of_another_is_not_trusted(certificates: Path, tmp_path: Path) -> None:
    Authority(tmp_path)
    async with serving(certificates) as target:
        with pytest.raises(Unavailable, match="handshake failed"):
            await reach(target, tmp_path / "ca.crt")


async def why(target: str, credentials: grpc.ChannelCredentials | None) -> str:
    """What is told of a connection that does not come about."""
    async with AsyncClient(target, timeout=10, credentials=credentials) as client:
        with pytest.raises(Unavailable) as caught:
            await client.list_models()
    assert "failed to connect" in caught.value.message  # gRPC's own words stay.
    assert caught.value.__notes__
    return caught.value.message


async def test_what_is_wrong_with_a_connection_is_told_with_what_to_do(
    certificates: Path, tmp_path: Path
) -> None:
    trusting = grpc.ssl_channel_credentials((certificates / "ca.crt").read_bytes())
    Authority(tmp_path)
    stranger = grpc.ssl_channel_credentials((tmp_path / "ca.crt").read_bytes())
    async with serving(certificates) as target:
        assert "HEADRACE_TLS_CA names" in await why(target, stranger)
        # Those that gRPC comes with.
        assert "HEADRACE_TLS_CA names" in await why(target, grpc.ssl_channel_credentials())
        assert "write https://" in await why(target, None)
        nonsense = grpc.ssl_channel_credentials(b"nonsense")
        assert "files in PEM" in await why(target, nonsense)
    async with serving(certificates, mutual=True) as target:
        assert "set HEADRACE_CLIENT_CERT" in await why(target, trusting)
    Authority(certificates).issue("server", ("other.example",), 1, server=True)
    async with serving(certificates) as target:
        assert "for other names" in await why(target, trusting)
    plain = grpc.aio.server()
    port = plain.add_insecure_port("127.0.0.1:0")
    await plain.start()
    assert "does not speak TLS" in await why(f"127.0.0.1:{port}", trusting)
    await plain.stop(None)
    # Of what is known to everybody nothing is said.
    assert (await why(f"127.0.0.1:{port}", trusting)).startswith("failed to connect")


async def test_an_expired_certificate_is_told(
    certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(authority, "_BACK", timedelta(days=3))
    monkeypatch.setattr(authority, "timedelta", lambda days: timedelta(days=-days))
    Authority(certificates).issue("server", LOCAL, 1, server=True)
    # A server of ours would not start with it; one that runs goes on until its next start.
    server = grpc.aio.server()
    pair = [(certificates / f"server.{kind}").read_bytes() for kind in ("key", "crt")]
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(pair[0], pair[1])]))
    await server.start()
    trusting = grpc.ssl_channel_credentials((certificates / "ca.crt").read_bytes())
    assert "has to renew it" in await why(f"127.0.0.1:{port}", trusting)
    await server.stop(None)


async def test_with_an_authority_for_clients_they_need_its_certificate(
    certificates: Path, tmp_path: Path
) -> None:
    stranger = Authority(tmp_path)
    stranger.issue("client", ("somebody",), 1, server=False)
    async with serving(certificates, mutual=True) as target:
        ca = certificates / "ca.crt"
        assert await reach(target, ca, certificates / "client")
        for own in (None, tmp_path / "client"):
            with pytest.raises(Unavailable):
                await reach(target, ca, own)


async def test_certificates_are_replaced_while_it_serves(
    certificates: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "headrace")
    new = tmp_path / "new"
    new.mkdir()
    Authority(new).issue("server", LOCAL, 1, server=True)
    async with serving(certificates) as target:
        assert await reach(target, certificates / "ca.crt")
        # One after the other: in between they do not go together, and the old ones hold.
        (new / "server.crt").replace(certificates / "server.crt")
        assert await reach(target, certificates / "ca.crt")
        (new / "server.key").replace(certificates / "server.key")
        assert await reach(target, new / "ca.crt")
        with pytest.raises(Unavailable):
            await reach(target, certificates / "ca.crt")
    told = [record.message for record in caplog.records if record.name == "headrace.rpc.tls"]
    assert len(told) == 2
    assert told[0].startswith("certificates not taken")
    assert told[1] == "certificates changed"


async def test_files_that_are_gone_change_nothing(certificates: Path) -> None:
    async with serving(certificates) as target:
        (certificates / "server.key").unlink()
        assert await reach(target, certificates / "ca.crt")


def _swap(directory: Path) -> None:
    (directory / "client.key").replace(directory / "server.key")


def _encrypt(directory: Path) -> None:
    path = directory / "server.key"
    key = load_pem_private_key(path.read_bytes(), None)
    secret = BestAvailableEncryption(b"word")
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, secret))


def _spoil(name: str) -> Callable[[Path], object]:
    return lambda directory: (directory / name).write_text("nothing of the kind")


@pytest.mark.parametrize(
    ("harm", "named"),
    [
        (_swap, "server.key"),
        (_encrypt, "server.key"),
        (_spoil("server.crt"), "server.crt"),
        (_spoil("server.key"), "server.key"),
        (_spoil("ca.crt"), "ca.crt"),
        (lambda directory: (directory / "server.crt").unlink(), "server.crt"),
        (lambda directory: (directory / "ca.crt").unlink(), "ca.crt"),
    ],
)
def test_files_that_cannot_be_used_are_named(
    certificates: Path, harm: Callable[[Path], object], named: str
) -> None:
    harm(certificates)
    files = (certificates / name for name in ("server.crt", "server.key", "ca.crt"))
    with pytest.raises(TlsError, match=named):
        Certificates(TlsFiles(*files))
