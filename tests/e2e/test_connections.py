"""A controller's bounds on connections, by its options."""

from __future__ import annotations

import socket

import pytest

from headrace.client import Client
from tests.e2e.harness import StartController


def _read_to_the_end(dialled: socket.socket) -> None:
    while dialled.recv(4096):
        pass


def test_connections_are_bounded_and_those_without_a_call_closed(start: StartController) -> None:
    controller = start(
        *("--max-connections", "2", "--max-connection-idle", "3s"), listen="127.0.0.1:0"
    )
    host, _, port = controller.target.rpartition(":")
    at = (host, int(port))
    with Client(controller.target, timeout=30) as client, client.watch_models() as watch:
        events = iter(watch)
        next(events)
        with (
            socket.create_connection(at, timeout=30) as idle,
            socket.create_connection(at, timeout=30) as refused,
        ):
            _read_to_the_end(refused)
            idle.settimeout(0.1)
            with pytest.raises(TimeoutError):
                _read_to_the_end(idle)
            idle.settimeout(30)
            _read_to_the_end(idle)
        # A stream is not idle, and calls go on beside it.
        assert client.list_models()
