"""The OpenTelemetry Collector itself, with the configuration that we ship, takes what we export."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.client import Client
from tests.e2e.conftest import TINY
from tests.e2e.harness import PATIENCE, StartController
from tests.e2e.receiver import Receiver

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.toolchain


def collector() -> Path:
    """The program."""
    built = ROOT / ".cache" / "otelcol" / "build" / "otelcol"
    if built.exists():
        return built
    found = shutil.which("otelcol")
    if found is None:
        pytest.skip("there is no OpenTelemetry Collector; `make collector` builds one, by Go")
    return Path(found)


def listens(address: str) -> bool:
    host, _, port = address.partition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


@pytest.fixture
def endpoint(receiver: Receiver, tmp_path: Path) -> Iterator[str]:
    """Where a Collector listens that hands all on to the receiver."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    backend = receiver.environment["OTEL_EXPORTER_OTLP_ENDPOINT"].removeprefix("http://")
    environment = {
        **os.environ,
        **receiver.environment,
        "OTLP_LISTEN": address,
        "OTLP_BACKEND": backend,
    }
    command = [str(collector()), f"--config={ROOT}/deploy/otel/collector.yaml"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        until = time.monotonic() + PATIENCE
        while not listens(address):
            text = (tmp_path / "log").read_text(errors="replace")
            assert process.poll() is None, text
            assert time.monotonic() < until, text
            time.sleep(0.05)  # noqa: TID251 - nothing tells of it
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(PATIENCE)


def test_it_takes_all_three_signals_and_hands_them_on(
    receiver: Receiver, endpoint: str, start: StartController
) -> None:
    environment = {**receiver.environment, "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}
    controller = start(extra=environment)
    with Client(controller.target, timeout=PATIENCE) as client:
        done = client.complete(TINY, "x", max_tokens=4)
    services = {"headrace-controller", "headrace-runner"}

    def spans() -> set[str]:
        return {s.service for s in receiver.spans if s.message.trace_id.hex() == done.trace_id}

    receiver.wait_for(lambda: spans() == services, spans)
    lines = receiver.lines
    receiver.wait_for(
        lambda: any(line.trace_id == done.trace_id for line in lines), lambda: lines[-20:]
    )
    metrics = receiver.metrics
    wanted = {(service, "gen_ai.server.request.duration") for service in services}
    receiver.wait_for(lambda: wanted <= metrics, lambda: metrics)
