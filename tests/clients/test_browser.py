"""The example page in a real Chromium: by gRPC-Web through Envoy to a real controller."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from headrace.cli.authority import Authority
from tests.clients.typescript import FOLDER, build, install, run
from tests.e2e.front import Front, envoy, free_port
from tests.e2e.harness import ANSWER, MODEL, Controller, borrow_home, eventually, headrace

pytestmark = [pytest.mark.toolchain, pytest.mark.e2e, pytest.mark.timeout(300)]

_DRIVER = Path(__file__).parent / "browser"


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def page() -> Iterator[str]:
    """Where the page is, on this machine as its author would try it."""
    _chromium()
    envoy()
    build()
    run("npm", "run", "--silent", "browser:build")
    handler = partial(_Quiet, directory=str(FOLDER / "examples" / "browser" / "public"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://localhost:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture
def controller(model_home: Path, tmp_path: Path) -> Iterator[Controller]:
    """One that asks for tokens, and talks to nobody but who has a certificate."""
    authority = Authority(tmp_path)
    authority.issue("server", ("localhost", "127.0.0.1"), 1, server=True)
    authority.issue("client", ("front",), 1, server=False)
    home = borrow_home(model_home, tmp_path / "home")
    tls = ("--tls-cert", tmp_path / "server.crt", "--tls-key", tmp_path / "server.key")
    tokens = tmp_path / "tokens.json"
    tokens.write_text('{"schema": 1, "tokens": []}', encoding="utf-8")
    guards = ("--tls-client-ca", tmp_path / "ca.crt", "--tokens", tokens)
    options = ("--preload", MODEL, *tls, *guards)
    listen = f"127.0.0.1:{free_port()}"
    with Controller(home, *map(str, options), listen=listen) as running:
        running.environment["HEADRACE_TOKENS"] = str(tokens)
        yield running


def _fingerprint(certificate: Path) -> str:
    """Of its key, as Chromium takes it."""
    key = x509.load_pem_x509_certificate(certificate.read_bytes()).public_key()
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(hashlib.sha256(der).digest()).decode()


def _chromium() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    pytest.skip("there is no Chromium")


def test_the_example_page(page: str, controller: Controller, tmp_path: Path) -> None:
    seen = _use(page, controller, tmp_path)
    assert seen["complaints"] == []
    assert seen["refused"]["reason"] == "UNAUTHENTICATED"
    assert (seen["models"], seen["chosen"]) == ([MODEL], MODEL)

    assert seen["answer"].startswith(ANSWER)
    assert "17 tokens" in seen["stats"]
    # It grew as the model wrote it, and did not come in one piece.
    assert seen["lengths"] == sorted(seen["lengths"])
    assert len(set(seen["lengths"])) > 10

    assert "stopped" in seen["stopped"]
    assert not seen["errorAfterStop"]
    ended = [line for line in controller.log() if line["message"] == "stream ended"]
    (cancelled,) = (line for line in ended if line["outcome"] == "cancelled")
    assert cancelled["output_tokens"] < 2000

    error = seen["error"]
    assert (error["reason"], error["code"]) == ("MODEL_NOT_FOUND", "NotFound")
    assert f"did you mean '{MODEL}'?" in error["message"]
    assert eventually(lambda: error["trace"] in controller.log_text())
    assert seen["mended"] == MODEL
    assert "sampling.temperature" in seen["invalid"]


def _use(page: str, controller: Controller, directory: Path) -> dict[str, Any]:
    """What the page showed."""
    install(_DRIVER)
    scopes = ("--scope", "infer", "--scope", "observe")
    token = headrace(controller, "token", "create", *scopes).stdout.strip()
    with Front(directory / "front", directory) as front:
        front.controllers([int(controller.target.rpartition(":")[2])])
        front.wait_for(healthy=1)
        told = {
            "chromium": _chromium(),
            "page": f"{page}?server={front.target}",
            "spki": _fingerprint(directory / "server.crt"),
            "token": token,
            "pictures": str(directory),
        }
        output = run("node", "drive.mjs", json.dumps(told), folder=_DRIVER)
    seen: dict[str, Any] = json.loads(output.splitlines()[-1])
    return seen
