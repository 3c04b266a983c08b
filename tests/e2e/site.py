"""Certificates, controllers that talk to nobody without one, and Envoy before them."""

from __future__ import annotations

import http.client
import ssl
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from headrace import AsyncClient
from headrace.cli.authority import Authority
from tests.e2e.front import Front, envoy, free_port
from tests.e2e.harness import Controller


@dataclass(frozen=True)
class Answer:
    """Of an HTTP server."""

    status: int
    headers: dict[str, str]
    data: bytes


class Site:
    """Certificates, controllers by port, and Envoy before them."""

    def __init__(
        self,
        home: Path,
        directory: Path,
        environment: dict[str, str],
        program: str = "headrace_server",
    ) -> None:
        """`program`: of the controllers."""
        envoy()
        self.certificates = directory / "certificates"
        self.certificates.mkdir()
        authority = Authority(self.certificates)
        authority.issue("server", ("localhost", "127.0.0.1"), 1, server=True)
        authority.issue("client", ("front",), 1, server=False)
        self._home = home
        self._environment = environment
        self._program = program
        self.running: dict[int, Controller] = {}
        telemetry = environment.get("OTEL_EXPORTER_OTLP_ENDPOINT", "").rpartition(":")[2]
        self.front = Front(
            directory / "front", self.certificates, int(telemetry) if telemetry else None
        )
        self._stack = ExitStack()
        self._stack.enter_context(self.front)

    def start(self, port: int) -> Controller:
        """A controller that talks to nobody but who has a certificate."""
        at = self.certificates
        tls = ("--tls-cert", at / "server.crt", "--tls-key", at / "server.key")
        options = (*tls, "--tls-client-ca", at / "ca.crt", "--grace", "30s")
        started = Controller(
            self._home,
            *map(str, options),
            listen=f"127.0.0.1:{port}",
            extra=self._environment,
            program=self._program,
        )
        self._stack.enter_context(started)
        self.running[port] = started
        return started

    def open(self, controllers: int) -> None:
        for _ in range(controllers):
            self.start(free_port())
        self.front.controllers([*self.running])
        self.front.wait_for(healthy=controllers)

    def client(self, **options: Any) -> AsyncClient:
        trusting = grpc.ssl_channel_credentials((self.certificates / "ca.crt").read_bytes())
        return AsyncClient(self.front.target, timeout=120, credentials=trusting, **options)

    def ask(
        self, path: str, body: bytes, kind: str, method: str = "POST", **headers: str
    ) -> Answer:
        """A request as a browser or curl makes it, by HTTP/1.1."""
        context = ssl.create_default_context(cafile=str(self.certificates / "ca.crt"))
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        with closing(
            http.client.HTTPSConnection("localhost", self.front.port, timeout=120, context=context)
        ) as connection:
            connection.request(method, path, body, {"content-type": kind, **named})
            answer = connection.getresponse()
            return Answer(answer.status, dict(answer.getheaders()), answer.read())

    def close(self) -> None:
        self._stack.close()
