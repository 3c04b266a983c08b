"""The HTTP server, with clients that do not do as they should."""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import pytest

from headrace_server.monitoring import web
from headrace_server.monitoring.web import CLIENTS, Server

LONG = 60.0
"""Seconds that no good run comes near."""
_REQUEST = b"GET /metrics HTTP/1.1\r\n\r\n"


class Scraped:
    """Answers `so it is`, once it may."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.may_answer = threading.Event()
        self.may_answer.set()

    def __call__(self, environ: Any, start_response: Callable[..., Any]) -> list[bytes]:
        self.asked.set()
        self.may_answer.wait()
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"so it is"]


@contextmanager
def serving(app: Scraped) -> Iterator[Server]:
    server = Server(socket.AF_INET, ("127.0.0.1", 0), app, shared=False)
    server.begin()
    yield server
    app.may_answer.set()
    server.end(LONG)


def connect(server: Server) -> socket.socket:
    made = socket.create_connection(("127.0.0.1", server.server_port))
    made.settimeout(LONG)
    return made


def read(client: socket.socket) -> str:
    """All that comes until the connection ends."""
    with client.makefile("rb") as file:
        return file.read().decode()


def scrape(client: socket.socket) -> str:
    client.sendall(_REQUEST)
    return read(client)


def test_clients_that_say_nothing_hold_nobody_up() -> None:
    with serving(Scraped()) as server, ExitStack() as stack:
        for _ in range(CLIENTS - 1):
            stack.enter_context(connect(server))
        assert "so it is" in scrape(stack.enter_context(connect(server)))


def test_one_too_many_is_turned_away_until_another_has_gone() -> None:
    with serving(Scraped()) as server, ExitStack() as stack:
        silent = [stack.enter_context(connect(server)) for _ in range(CLIENTS)]
        assert read(stack.enter_context(connect(server))).startswith("HTTP/1.0 503 ")
        silent[0].shutdown(socket.SHUT_WR)
        assert read(silent[0]) == ""
        assert "so it is" in scrape(stack.enter_context(connect(server)))


def test_a_request_that_comes_by_drops_is_broken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "_WHOLE", 1.0)
    with serving(Scraped()) as server, connect(server) as client, suppress(ConnectionError):
        end = time.monotonic() + LONG
        while not select.select([client], [], [], 0.1)[0]:
            assert time.monotonic() < end
            client.send(b"G")


def test_clients_that_say_nothing_do_not_put_the_end_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web._Handler, "timeout", LONG)
    with ExitStack() as stack, serving(Scraped()) as server:
        for _ in range(CLIENTS + 1):
            stack.enter_context(connect(server))
        began = time.monotonic()
        server.end(LONG)
        assert time.monotonic() - began < LONG / 2


@contextmanager
def scraping() -> Iterator[tuple[Scraped, Server, socket.socket]]:
    """A scrape under way that has no answer yet."""
    app = Scraped()
    app.may_answer.clear()
    with serving(app) as server, connect(server) as client:
        client.sendall(_REQUEST)
        assert app.asked.wait(LONG)
        yield app, server, client


def test_a_scrape_under_way_is_answered_before_the_end() -> None:
    with scraping() as (app, server, client):
        ending = threading.Thread(target=server.end, args=(LONG,))
        ending.start()
        ending.join(1.0)
        assert ending.is_alive()
        app.may_answer.set()
        assert "so it is" in read(client)
        ending.join(LONG)
        assert not ending.is_alive()


def test_a_scrape_without_an_answer_does_not_put_the_end_off() -> None:
    with scraping() as (_, server, client):
        server.end(0.1)
        assert read(client) == ""
