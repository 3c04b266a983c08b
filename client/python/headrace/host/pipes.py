"""The writing end of a pipe, for lines that must arrive and for lines that may wait.

Whoever reads may be slow, stopped, or gone.
"""

from __future__ import annotations

import array
import fcntl
import os
import select
import termios
import threading

_SHARE = 16 << 10
"""Bytes that may be unread in the pipe when a line that may wait is written. A pipe holds 64 KiB;
on Linux, in lines of awkward lengths, half of that. So there is always room for the others."""
_PAUSE = 0.02
"""Seconds. The system tells when a pipe has any room, not when it has enough."""


class Outlet:
    """A file descriptor of a pipe. Any thread may write; lines never mix."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()
        self._closed = threading.Event()
        # A grandchild that held the pipe open would hide this process's death from its reader.
        os.set_inheritable(fd, False)

    def write(self, line: bytes) -> None:
        """Write a line that must arrive, at once. Does nothing where nobody reads any more."""
        with self._lock:
            self._put(line)

    def write_when_there_is_room(self, line: bytes) -> bool:
        """Wait until much of the pipe is free, and write. Gives whether somebody still reads.

        Others may write meanwhile.
        """
        while not self._closed.is_set():
            with self._lock:
                if self._closed.is_set():
                    return False
                if self._has_room():
                    return self._put(line)
            self._closed.wait(_PAUSE)
        return False

    def close(self) -> None:
        """Close it. Who waits for room gives up."""
        self._closed.set()
        with self._lock:
            self._drop()

    def _has_room(self) -> bool:
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        return bool(poll.poll(0)) and _unread(self._fd) <= _SHARE

    def _put(self, line: bytes) -> bool:
        if self._fd < 0:
            return False
        try:
            os.write(self._fd, line)
        except BrokenPipeError:
            # What ends this process then is the end of its stdin, not this write.
            self._closed.set()
            self._drop()
            return False
        return True

    def _drop(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _unread(fd: int) -> int:
    """Bytes in the pipe; 0 where the system does not say."""
    count = array.array("i", [0])
    try:
        fcntl.ioctl(fd, termios.FIONREAD, count)
    except OSError:
        return 0
    return count[0]
