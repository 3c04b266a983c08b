"""Taking a socket's path over: from the dead alone."""

import socket
from pathlib import Path

import pytest

from headrace.host.sockets import remove_stale


def test_only_a_socket_that_nobody_listens_on_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        with pytest.raises(OSError, match="in use"):
            remove_stale(path)
        assert path.is_socket()
    remove_stale(path)
    assert not path.exists()


def test_what_is_no_socket_stays(tmp_path: Path) -> None:
    path = tmp_path / "s"
    remove_stale(path)
    path.write_text("a file")
    remove_stale(path)
    assert path.read_text() == "a file"
