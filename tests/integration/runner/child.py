"""A real `python -m headrace_runner` as a child, heard on its report pipe.

`program` is another module to run in its place.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from headrace.host.blas import find_blas
from headrace.host.compiler import has_cxx
from headrace.host.environment import runner_environment
from headrace.host.handover import Listening, Ready, Report, decode
from headrace.host.machine import describe
from headrace.host.orders import SPARE, Orders, encode

R = TypeVar("R", bound=Report)

START_TIMEOUT = 60.0  # seconds; a start takes about three on a machine with nothing else to do
STOP_TIMEOUT = 20.0


class Child:
    """A runner that has been started. Its socket is in a folder of its own."""

    def __init__(
        self,
        home: Path,
        model_dir: Path,
        *arguments: str,
        program: str = "headrace_runner",
        spare: bool = False,
    ) -> None:
        """`spare`: it is started without a model, and waits for `go_on`."""
        self._folder = Path(tempfile.mkdtemp(prefix="hr-"))
        self.socket = self._folder / "r.sock"
        self._log = self._folder / "log"
        self._unread = b""
        self.reports: list[Report] = []
        self._report_fd, report_fd = os.pipe()
        self._arguments = [
            *("--model", str(model_dir)),
            *("--listen", f"unix:{self.socket}"),
            *("--report-fd", str(report_fd)),
            *("--parent", "stdin"),
            *("--log-format", "json"),
            *arguments,
        ]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", program, *([SPARE] if spare else self._arguments)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=[report_fd],
                env=child_environment(home),
            )
        os.close(report_fd)

    def go_on(self) -> None:
        """Give a spare its arguments."""
        self.tell(encode(Orders(self._arguments)))

    def tell(self, line: bytes) -> None:
        """Write to its stdin."""
        assert self.process.stdin is not None
        self.process.stdin.write(line)
        self.process.stdin.flush()

    @property
    def address(self) -> str:
        return next(r.address for r in self.reports if isinstance(r, Listening))

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def hear(self, kind: type[R], timeout: float = START_TIMEOUT) -> R:
        """The first report of this kind, waited for; in seconds."""
        deadline = time.monotonic() + timeout
        with selectors.DefaultSelector() as selector:
            selector.register(self._report_fd, selectors.EVENT_READ)
            while True:
                for report in self.reports:
                    if isinstance(report, kind):
                        return report
                if not selector.select(deadline - time.monotonic()):
                    raise TimeoutError(f"no {kind.__name__} within {timeout:g} s:\n{self.log}")
                data = os.read(self._report_fd, 65536)
                if not data:
                    raise EOFError(f"it ended without {kind.__name__}:\n{self.log}")
                *lines, self._unread = (self._unread + data).split(b"\n")
                self.reports += map(decode, lines)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end_stdin(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def exit_code(self) -> int:
        """Wait for the end, which has to come by itself."""
        try:
            return self.process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the runner did not end:\n{self.log}") from None

    def close(self) -> None:
        """Make sure that nothing is left."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        self.end_stdin()
        os.close(self._report_fd)
        shutil.rmtree(self._folder)


def child_environment(home: Path) -> dict[str, str]:
    """What a controller with this home would give its runners on this machine."""
    base = os.environ | {
        "HEADRACE_HOME": str(home),
        "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
    }
    # One thread: several would wait for each other whenever another process has a core.
    return runner_environment(base, describe(), find_blas(None, home), has_cxx(), threads=1)


@contextlib.contextmanager
def started(
    home: Path,
    model_dir: Path,
    *arguments: str,
    program: str = "headrace_runner",
    spare: bool = False,
) -> Iterator[Child]:
    """A runner in whatever state it is just after its start."""
    child = Child(home, model_dir, *arguments, program=program, spare=spare)
    try:
        yield child
    finally:
        child.close()


@contextlib.contextmanager
def serving(
    home: Path, model_dir: Path, *arguments: str, program: str = "headrace_runner"
) -> Iterator[Child]:
    """A runner that serves."""
    with started(home, model_dir, *arguments, program=program) as child:
        child.hear(Ready)
        yield child
