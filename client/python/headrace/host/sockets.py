"""Unix sockets as files: those of the dead are removed, those of the living left alone."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def remove_stale(path: Path) -> None:
    """Remove a socket that nobody listens on. Raises OSError where somebody does."""
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise OSError("the socket is in use")


@contextmanager
def private_files() -> Iterator[None]:
    """What this process makes meanwhile is its user's alone, from its first moment on: gRPC takes
    no mode for a socket, and one that is changed afterwards could be opened until then."""
    before = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(before)
