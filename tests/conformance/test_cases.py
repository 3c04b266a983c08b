"""The cases, by every SDK: at a controller, and through Envoy with certificates on both hops."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.conftest import of_client
from tests.conformance.drivers import Driver
from tests.conformance.matching import expanded, mismatch
from tests.e2e.front import Front, envoy, free_port
from tests.e2e.harness import MODEL, Controller, eventually

CASES: dict[str, dict[str, Any]] = {
    case["name"]: case
    for path in sorted((Path(__file__).parent / "cases").glob("*.json"))
    for case in json.loads(path.read_text(encoding="utf-8"))
}


@pytest.fixture(scope="session")
def front(
    drawing_home: Path, certificates: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Front]:
    """Envoy, which wants a certificate, before a controller that wants one."""
    envoy()
    port = free_port()
    at = certificates
    tls = ("--tls-cert", at / "server.crt", "--tls-key", at / "server.key")
    options = ("--preload", MODEL, *tls, "--tls-client-ca", at / "ca.crt")
    directory = tmp_path_factory.mktemp("front") / "envoy"
    with (
        Controller(drawing_home, *map(str, options), listen=f"127.0.0.1:{port}"),
        Front(directory, certificates, mutual=True) as running,
    ):
        running.controllers([port])
        running.wait_for(healthy=1)
        yield running


def try_out(driver: Driver, case: dict[str, Any]) -> None:
    """Raises AssertionError where the answer is not the one that the case expects."""
    answer = driver.ask(case.get("do", "call"), **expanded(case["call"]))
    if only := case.get("only"):
        answer["messages"] = [m for m in answer["messages"] if next(iter(m)) in only]
    if case.get("cancelled"):
        assert answer["error"] is None or answer["error"]["code"] == "CANCELLED", answer["error"]
    assert not mismatch(case["expect"], answer), mismatch(case["expect"], answer)
    if case.get("cancelled"):
        assert eventually(lambda: not _busy(driver)), (
            "the controller goes on with what nobody reads"
        )


def _busy(driver: Driver) -> bool:
    """Whether a runner has something to do."""
    (message,) = driver.ask("call", method="/headrace.v1.ModelService/ListRunners")["messages"]
    return any(runner["status"].get("activeRequests") for runner in message["runners"])


@pytest.mark.parametrize("name", CASES)
def test_at_a_controller(driver: Driver, plain: Controller, name: str) -> None:
    try_out(driver.at(plain.target, timeout=60), CASES[name])


@pytest.mark.toolchain
@pytest.mark.parametrize("name", CASES)
def test_through_envoy(driver: Driver, front: Front, certificates: Path, name: str) -> None:
    try_out(driver.at(front.target, timeout=60, **of_client(certificates)), CASES[name])


@pytest.mark.toolchain
def test_envoy_wants_a_certificate(driver: Driver, front: Front, certificates: Path) -> None:
    driver.at(front.target, timeout=5, ca=str(certificates / "ca.crt"))
    error = driver.ask("call", method="/headrace.v1.ModelService/ListModels")["error"]
    assert (error["code"], error["reason"]) == ("UNAVAILABLE", "")
