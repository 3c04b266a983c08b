"""TLS, certificates and tokens, images, and a controller that goes and comes back, by every SDK."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace import Client
from tests.conformance.conftest import PAINTER, of_client
from tests.conformance.drivers import Driver
from tests.e2e.front import free_port
from tests.e2e.harness import MODEL, Controller, eventually, headrace

STREAM = "/headrace.v1.CompletionService/StreamCompletion"
LIST = "/headrace.v1.ModelService/ListModels"
UNLOAD = "/headrace.v1.ModelService/UnloadModel"


@pytest.fixture(scope="session")
def guarded(
    drawing_home: Path, certificates: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Controller]:
    """A controller that lets nobody in but with a certificate and a token."""
    tokens = tmp_path_factory.mktemp("tokens") / "tokens.json"
    tokens.write_text('{"schema": 1, "tokens": []}')
    at = certificates
    options = ["--tls-cert", at / "server.crt", "--tls-key", at / "server.key"]
    options += ["--tls-client-ca", at / "ca.crt", "--tokens", tokens]
    with Controller(drawing_home, *map(str, options), listen="127.0.0.1:0") as running:
        running.environment["HEADRACE_TOKENS"] = str(tokens)
        yield running


@pytest.fixture(scope="session")
def token(guarded: Controller) -> str:
    """That may use models, and no more."""
    return headrace(guarded, "token", "create").stdout.strip()


def test_who_has_a_certificate_and_a_token_gets_in(
    driver: Driver, guarded: Controller, certificates: Path, token: str
) -> None:
    target = f"https://{guarded.target}"
    driver.at(target, timeout=60, token=token, **of_client(certificates))
    request = {"model": MODEL, "prompt": "The capital of France is", "maxTokens": 2}
    request |= {"sampling": {"temperature": 0}}
    answer = driver.ask("complete", request=request)
    assert (answer["error"], answer["text"]) == (None, " Paris.")
    denied = driver.ask("call", method=UNLOAD, request={"model": MODEL})["error"]
    assert (denied["code"], denied["reason"]) == ("PERMISSION_DENIED", "PERMISSION_DENIED")
    assert denied["metadata"] == {"scope": "manage"}


@pytest.mark.parametrize("wrong", ["none", "of nobody"])
def test_who_has_no_token_is_told(
    driver: Driver, guarded: Controller, certificates: Path, wrong: str
) -> None:
    given = {} if wrong == "none" else {"token": "hr_nobody"}
    driver.at(f"https://{guarded.target}", timeout=60, **given, **of_client(certificates))
    error = driver.ask("call", method=LIST)["error"]
    assert (error["code"], error["reason"]) == ("UNAUTHENTICATED", "UNAUTHENTICATED")


def test_who_has_no_certificate_stays_outside(
    driver: Driver, guarded: Controller, certificates: Path, token: str
) -> None:
    target = f"https://{guarded.target}"
    driver.at(target, timeout=5, token=token, ca=str(certificates / "ca.crt"))
    error = driver.ask("call", method=LIST)["error"]
    assert (error["code"], error["reason"]) == ("UNAVAILABLE", "")


def test_a_stranger_stays_outside(
    driver: Driver, guarded: Controller, certificates: Path, token: str
) -> None:
    files = of_client(certificates, certificates / "stranger")
    driver.at(f"https://{guarded.target}", timeout=5, token=token, **files)
    assert driver.ask("call", method=LIST)["error"]["code"] == "UNAVAILABLE"


def test_a_server_of_another_authority_is_not_believed(
    driver: Driver, guarded: Controller, certificates: Path, token: str
) -> None:
    files = of_client(certificates) | {"ca": str(certificates / "stranger" / "ca.crt")}
    driver.at(f"https://{guarded.target}", timeout=5, token=token, **files)
    assert driver.ask("call", method=LIST)["error"]["code"] == "UNAVAILABLE"


def test_images_are_those_that_another_sdk_gets(driver: Driver, plain: Controller) -> None:
    driver.at(plain.target, timeout=60)
    request = {"model": PAINTER, "prompt": "a red rose", "seed": "7", "count": 2, "steps": 4}
    answer = driver.ask("draw", request=request)
    assert answer["error"] is None
    with Client(plain.target, timeout=60) as client:
        drawn = client.image("a red rose", model=PAINTER, seed=7, count=2, steps=4)
    assert [image["sha256"] for image in answer["images"]] == [
        hashlib.sha256(image.data).hexdigest() for image in drawn
    ]
    assert len({image["sha256"] for image in answer["images"]}) == 2


def test_a_controller_that_goes_and_comes_back(driver: Driver, drawing_home: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    with Controller(drawing_home, listen=address) as first:
        driver.at(address, timeout=20)
        assert driver.ask("call", method=LIST)["error"] is None
        request = {"model": MODEL, "prompt": "x", "maxTokens": 4000, "stop": {"ignoreEos": True}}
        driver.begin({"do": "call", "method": STREAM, "request": request, "timeout": 60})
        assert eventually(lambda: "loaded in" in first.log_text())
        first.kill()
        ended = driver.end()["error"]
        assert (ended["code"], ended["reason"]) == ("UNAVAILABLE", "")
    gone = driver.ask("call", method=LIST, timeout=10)["error"]
    assert (gone["code"], gone["reason"]) == ("UNAVAILABLE", "")
    with Controller(drawing_home, listen=address):
        assert eventually(lambda: driver.ask("call", method=LIST, timeout=10)["error"] is None), (
            "it does not connect again"
        )
