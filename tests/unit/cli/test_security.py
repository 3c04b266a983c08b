"""`token` and `cert`."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from headrace.cli.tokens import _changing
from headrace.rpc.tls import Certificates, TlsFiles
from headrace.rpc.tokens import Tokens, new_token, read_tokens, write_tokens
from tests.unit.cli.running import Run


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("HEADRACE_TOKENS", raising=False)
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "tokens.json"


def test_a_token_is_made_listed_and_revoked(headrace: Run, file: Path) -> None:
    code, secret, told = headrace(
        "token", "create", "--name", "ci", "--scope", "observe", "--scope", "infer",
        "--expires", "90d", "--max-requests", "4", "--tokens-per-minute", "60000",
    )  # fmt: skip
    assert code == 0
    assert "shown once" in told
    (token,) = read_tokens(file).tokens
    assert read_tokens(file).find(secret.strip()) == token
    assert (token.scopes, token.max_requests, token.tokens_per_minute) == (
        ("infer", "observe"),
        4,
        60000,
    )
    assert token.expires_at is not None
    left = datetime.fromisoformat(token.expires_at) - datetime.now(UTC)
    assert timedelta(days=89) < left <= timedelta(days=90)

    made = json.loads(headrace("token", "create", "--json")[1])
    assert read_tokens(file).find(made["token"]) is not None
    assert made["scopes"] == ["infer"]
    header, *rows = headrace("token", "list")[1].splitlines()
    assert header.split()[:3] == ["ID", "NAME", "SCOPES"]
    assert rows[0].split()[:3] == [token.id, "ci", "infer,observe"]
    assert rows[1].split()[-1] == "never"
    assert secret.strip() not in headrace("token", "list", "--json")[1]

    assert headrace("token", "revoke", token.id)[0] == 0
    assert [left.id for left in read_tokens(file).tokens] == [made["id"]]
    code, _, told = headrace("token", "revoke", token.id)
    assert code == 1
    assert "token list" in told


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("create", "--scope", "all"), "infer"),
        (("create", "--expires", "soon"), "90d"),
        (("create", "--expires", "0d"), "90d"),
        (("create", "--max-requests", "0"), "max-requests"),
        (("revoke",), "ID"),
        (("list",), "token create"),
    ],
)
def test_what_cannot_be_is_said(
    headrace: Run, file: Path, arguments: tuple[str, ...], why: str
) -> None:
    code, _, told = headrace("token", *arguments)
    assert code in (1, 2)
    assert why in told
    assert not file.exists()


def test_a_damaged_file_is_left_as_it_is(headrace: Run, file: Path) -> None:
    file.parent.mkdir()
    file.write_text("mine")
    code, _, told = headrace("token", "create")
    assert code == 1
    assert "tokens.json" in told
    assert file.read_text() == "mine"


def test_two_who_make_tokens_at_once_lose_none(file: Path) -> None:
    def create() -> None:
        for _ in range(10):
            with _changing(file) as tokens:
                write_tokens(file, Tokens((*tokens.tokens, new_token(["infer"])[0])))

    threads = [threading.Thread(target=create) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read_tokens(file).tokens) == 40


def test_certificates_to_try_tls_with(headrace: Run, tmp_path: Path) -> None:
    at = tmp_path / "tls"
    code, out, _ = headrace("cert", "dev", str(at), "--host", "gpu.example", "--host", "10.0.0.1")
    assert code == 0
    assert f"--tls-cert {at}/server.crt" in out
    Certificates(TlsFiles(at / "server.crt", at / "server.key", at / "ca.crt"))
    certificate = x509.load_pem_x509_certificate((at / "server.crt").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "gpu.example"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == [
        "127.0.0.1",
        "::1",
        "10.0.0.1",
    ]
    modes = {path.name: path.stat().st_mode & 0o077 for path in at.glob("*.key")}
    assert modes == {"ca.key": 0, "server.key": 0, "client.key": 0}

    authority = (at / "ca.crt").read_bytes()
    before = (at / "server.crt").read_bytes()
    assert headrace("cert", "dev", str(at))[0] == 0
    assert (at / "ca.crt").read_bytes() == authority
    assert (at / "server.crt").read_bytes() != before


@pytest.mark.parametrize(
    ("name", "why"), [("a b", "host"), ("", "host"), ("https://gpu", "host"), ("-x", "host")]
)
def test_a_host_that_is_none(headrace: Run, tmp_path: Path, name: str, why: str) -> None:
    code, _, told = headrace("cert", "dev", str(tmp_path), f"--host={name}")
    assert code == 2
    assert why in told


@pytest.mark.parametrize("lost", ["ca.key", "ca.crt"])
def test_what_it_did_not_make_is_not_written_over(headrace: Run, tmp_path: Path, lost: str) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for at in (one, two):
        assert headrace("cert", "dev", str(at))[0] == 0
    before = (one / "server.key").read_bytes()
    (one / "ca.key").write_bytes((two / "ca.key").read_bytes())
    assert "not the key" in headrace("cert", "dev", str(one))[2]
    (one / "ca.crt").write_bytes((two / "ca.crt").read_bytes())
    assert "not made by this authority" in headrace("cert", "dev", str(one))[2]
    (one / lost).unlink()
    assert "missing" in headrace("cert", "dev", str(one))[2]
    assert (one / "server.key").read_bytes() == before


def test_an_authority_of_another_kind_is_not_written_over(headrace: Run, tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_text("mine")
    (tmp_path / "ca.key").write_text("mine")
    code, _, told = headrace("cert", "dev", str(tmp_path))
    assert code == 1
    assert "remove both" in told
    assert (tmp_path / "ca.key").read_text() == "mine"
