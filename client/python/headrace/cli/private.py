"""A controller that belongs to one command: started by it, seen by nobody else, gone with it.

Only the standard library is imported: it starts while the rest of the client is still loading.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from types import FrameType, TracebackType
from typing import Final, Self

_START_SECONDS: Final = 30.0
_STOP_SECONDS: Final = 15.0
_TAIL_BYTES: Final = 16 << 10
_TAIL_LINES: Final = 15


class ControllerDied(Exception):
    """The controller ended, or said nothing, before it was ready."""


class PrivateController:
    """Starts at once; `wait` until it listens, and use it in a `with` block to be rid of it.

    It keeps out of the terminal's process group, so that Ctrl-C reaches this command alone, which
    then stops it. Should this command be killed, the end of its standard input tells it.
    """

    def __init__(self, preload: str | None = None) -> None:
        # The directory is 0700, and short: the path of a socket has 107 bytes at most.
        self._directory = tempfile.mkdtemp(prefix="hr-", dir=_short_directory())
        self.target = f"unix:{self._directory}/c.sock"
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed in stop)
        self._ready, ready = os.pipe()
        command = [sys.executable, "-m", "headrace_server", "--listen", self.target]
        command += ["--parent", "stdin", "--ready-fd", str(ready)]
        # Nobody else sees its socket: what protects a lasting one is not asked for.
        for protection in ("--tokens", "--tls-cert", "--tls-key", "--tls-client-ca"):
            command += [protection, ""]
        # It ends with this command: a spare runner would be made for nothing.
        command += ["--log-format", "text", "--grace", "1s", "--no-spare"]
        # Also where it is empty: what a file or the environment preloads is for a lasting one.
        command += ["--preload", preload or ""]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=self._log,
                stderr=self._log,
                pass_fds=(ready,),
                process_group=0,
            )
        finally:
            os.close(ready)

    def wait(self) -> None:
        """Waits until it listens.

        Raises:
            ControllerDied: it ended before that, or took too long.
        """
        readable, _, _ = select.select([self._ready], [], [], _START_SECONDS)
        if not readable:
            raise ControllerDied(f"it did not listen within {_START_SECONDS:.0f} s")
        if not os.read(self._ready, 4096):
            code = self._process.wait()
            raise ControllerDied(f"it ended with {_ending(code)} before it listened")

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self._process.poll() is None

    def has_ended(self, patience: float = 0.0) -> bool:
        """Whether its process has ended, or does within `patience` seconds: its sockets are closed
        a moment before."""
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            return False
        return True

    def log_tail(self) -> str:
        """The last lines of its log."""
        # It writes through the same file description: reading must not move the offset.
        begin = max(0, os.fstat(self._log.fileno()).st_size - _TAIL_BYTES)
        data = os.pread(self._log.fileno(), _TAIL_BYTES, begin)
        lines = data.decode(errors="replace").splitlines()
        return "\n".join(lines[-_TAIL_LINES:])

    def stop(self) -> None:
        """Stops and reaps it, and removes what it left."""
        try:
            self._process.terminate()
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        finally:
            if self.alive:  # also after a second Ctrl-C; its runners notice by themselves
                self._process.kill()
                self._process.wait()
            if self._process.stdin:
                self._process.stdin.close()
            os.close(self._ready)
            self._log.close()
            shutil.rmtree(self._directory, ignore_errors=True)

    def __enter__(self) -> Self:
        self._handlers = {}
        if threading.current_thread() is threading.main_thread():
            # A signal that would end this process on the spot must end the block instead.
            for number in (signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) is signal.SIG_DFL:
                    self._handlers[number] = signal.signal(number, _leave)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.stop()
        finally:
            for number, handler in self._handlers.items():
                signal.signal(number, handler)


def _leave(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _short_directory() -> str | None:
    directory = os.environ.get("XDG_RUNTIME_DIR", "")
    if directory and len(directory) < 64 and os.access(directory, os.W_OK):
        return directory
    return "/tmp"  # a TMPDIR such as macOS's may be too long for a socket


def _ending(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
