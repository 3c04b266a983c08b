"""How a client finds its server: where, by TLS or not, and as whom."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest

from headrace import AsyncClient, Client
from headrace._endpoint import Endpoint
from headrace._target import is_local
from headrace.errors import InvalidRequest

TLS = grpc.ssl_channel_credentials()
BEARER = (("authorization", "Bearer secret"),)


@pytest.mark.parametrize(
    ("target", "expected", "tls"),
    [
        ("https://gpu", "gpu:50151", True),
        ("https://gpu:443/", "gpu:443", True),
        ("https://[::1]:5", "[::1]:5", True),
        ("http://gpu:5", "gpu:5", False),
        ("gpu", "gpu:50151", False),
        ("unix:/run/a.sock", "unix:/run/a.sock", False),
        ("dns:///gpu:5", "dns:///gpu:5", False),
        (None, "127.0.0.1:50151", False),
    ],
)
def test_the_scheme_says_whether_there_is_tls(
    target: str | None, expected: str, *, tls: bool
) -> None:
    for found in (
        Endpoint.resolve(target, env={}),
        Endpoint.resolve(env={"HEADRACE_HOST": target or ""}),
    ):
        assert (found.target, found.credentials is not None) == (expected, tls)
        assert found.metadata == ()


def test_a_token_comes_from_the_argument_or_the_environment() -> None:
    assert Endpoint.resolve(token="secret", env={}).metadata == BEARER
    env = {"HEADRACE_TOKEN": "secret"}
    assert Endpoint.resolve(env=env).metadata == BEARER
    assert Endpoint.resolve(token="other", env=env).metadata != BEARER
    assert "secret" not in repr(Endpoint.resolve(env=env))


@pytest.mark.parametrize("target", ["gpu", "http://10.0.0.1:5", "dns:///gpu:5", "127.evil.example"])
def test_a_token_never_travels_in_the_clear(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidRequest, match="https://"):
        Endpoint.resolve(target, token="secret", env={})
    assert Endpoint.resolve(target, TLS, "secret", env={}).metadata == BEARER
    monkeypatch.setenv("HEADRACE_TOKEN", "secret")
    for kind in (Client, AsyncClient):
        with pytest.raises(InvalidRequest, match="in the clear"):
            kind(target)


@pytest.mark.parametrize("target", ["unix:/run/a.sock", "localhost:5", "127.0.0.2:5", "[::1]:5"])
def test_on_this_machine_it_may(target: str) -> None:
    assert is_local(target)
    assert Endpoint.resolve(target, token="secret", env={}).metadata == BEARER


@pytest.mark.parametrize("token", [" secret\n", "Bearer secret", "bearer  secret "])
def test_what_stands_around_a_token_is_left_out(token: str) -> None:
    assert Endpoint.resolve(env={"HEADRACE_TOKEN": token}).metadata == BEARER


def test_no_token_by_choice() -> None:
    assert Endpoint.resolve(token="", env={"HEADRACE_TOKEN": "secret"}).metadata == ()
    assert Endpoint.resolve(env={"HEADRACE_TOKEN": "  "}).metadata == ()


def test_what_looks_protected_is_not_sent_in_the_clear() -> None:
    env = {"HEADRACE_TLS_CA": "/ca.crt", "HEADRACE_HOST": "gpu"}
    with pytest.raises(InvalidRequest, match="https://gpu:50151"):
        Endpoint.resolve(env=env)
    assert Endpoint.resolve("localhost:5", env=env).credentials is None
    assert Endpoint.resolve("gpu", TLS, env=env).credentials is TLS
    with pytest.raises(InvalidRequest, match="path"):
        Endpoint.resolve("https://gpu:5/v1", env={})
    assert Endpoint.resolve("HTTPS://gpu:5", env={}).credentials is not None


@pytest.mark.parametrize("token", ["two\nlines", "é", "\x00", "two words"])
def test_a_token_that_none_can_be(token: str) -> None:
    with pytest.raises(InvalidRequest, match="HEADRACE_TOKEN"):
        Endpoint.resolve(token=token, env={})


def test_files_of_tls_are_named_where_they_cannot_be_used(tmp_path: Path) -> None:
    there = tmp_path / "a.pem"
    there.write_bytes(b"x")
    missing = {"HEADRACE_TLS_CA": str(tmp_path / "none.crt")}
    with pytest.raises(InvalidRequest, match=r"HEADRACE_TLS_CA.*none\.crt"):
        Endpoint.resolve("https://gpu", env=missing)
    with pytest.raises(InvalidRequest, match="set both"):
        Endpoint.resolve("https://gpu", env={"HEADRACE_CLIENT_KEY": str(there)})
    assert Endpoint.resolve("https://gpu", TLS, env=missing).credentials is TLS
