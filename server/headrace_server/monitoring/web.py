"""A small HTTP server for those who scrape.

No client can hold it up, nor its end: they are bounded in number, and each in time.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

logger = logging.getLogger(__name__)

CLIENTS = 8
"""Connections at once. An HTTP client may hold some without a request."""
_PATIENCE = 5.0
"""Seconds for a client to send something, or to take the answer."""
_WHOLE = 10.0
"""Seconds from a connection to the end of the answer: as many as Prometheus waits by default."""
_BUSY = (
    b"HTTP/1.0 503 Service Unavailable\r\nContent-Type: text/plain\r\nContent-Length: 26\r\n\r\n"
    b"too many scrapes at once.\n"
)

App = Callable[[Any, Any], Any]
"""By WSGI."""


class Server(ThreadingMixIn, WSGIServer):
    """Serves `app`, each client by a thread, which asks `app` when those before have their answer.

    Threads do not keep the process from ending.
    """

    daemon_threads = True
    request_queue_size = 16

    def __init__(self, family: int, address: Any, app: App, *, shared: bool) -> None:
        """Listens at once. `shared`: whether another process may listen there too. Raises
        OSError."""
        self._open: dict[socket.socket, float] = {}
        """Connections that are served, and until when on the monotonic clock."""
        self._changed = threading.Condition()
        self.address_family = family
        self.allow_reuse_port = shared
        super().__init__(address, _Handler)
        self.set_app(_one_by_one(app))
        self._thread = threading.Thread(target=self.serve_forever, name="metrics", daemon=True)

    def begin(self) -> None:
        """Serve, until `end`."""
        self._thread.start()

    def end(self, patience: float) -> None:
        """Stop to listen, and wait for those who have sent a request, for `patience` seconds."""
        self.shutdown()
        self.server_close()
        self._thread.join()
        with self._changed:
            for request in self._open:
                _shut(request, socket.SHUT_RD)
            self._changed.wait_for(lambda: not self._open, patience)
            for request in self._open:
                _shut(request, socket.SHUT_RDWR)

    def server_bind(self) -> None:
        """Bind, without HTTPServer's question to the resolver for this machine's name, which may
        take seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Have a thread serve a client, if there may be one more. Never waits: nobody could come,
        nor the end, while this does."""
        with self._changed:
            welcome = len(self._open) < CLIENTS
            if welcome:
                self._open[request] = time.monotonic() + _WHOLE
        if welcome:
            super().process_request(request, client_address)
            return
        logger.debug("a client was turned away")
        with contextlib.suppress(OSError):
            request.sendall(_BUSY)
        self.shutdown_request(request)

    def service_actions(self) -> None:
        """Part with those whose time is over; called all the while, every half second at least."""
        now = time.monotonic()
        with self._changed:
            for request, until in self._open.items():
                if now >= until:
                    _shut(request, socket.SHUT_RDWR)

    def shutdown_request(self, request: Any) -> None:
        """A client is done with, one way or another."""
        with self._changed:
            self._open.pop(request, None)
            self._changed.notify_all()
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """One who goes while he is being answered, or takes too long, is no news."""
        logger.debug("a scrape was broken off")


def _shut(request: socket.socket, how: int) -> None:
    """Have the thread that serves a client find its connection ended."""
    with contextlib.suppress(OSError):  # The client has ended it already.
        request.shutdown(how)


def _one_by_one(app: App) -> App:
    """OpenTelemetry's exporter mixes up what two collections at once give."""
    turn = threading.Lock()

    def answer(environ: Any, start_response: Any) -> Any:
        with turn:
            return app(environ, start_response)

    return answer


class _Handler(WSGIRequestHandler):
    timeout = _PATIENCE

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug(format, *args)

    def get_stderr(self) -> Any:
        return _Log()


class _Log:
    """What a failed scrape prints."""

    def write(self, text: str) -> None:
        if text.strip():
            logger.error("a scrape failed: %s", text.rstrip())

    def flush(self) -> None:
        pass
