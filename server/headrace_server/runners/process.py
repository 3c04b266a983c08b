"""One runner process: started, heard on its report pipe, stopped, reaped, its traces removed.

Knows nothing of gRPC. A process that has started always ends in `dead`, whatever happens to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextvars import Context
from dataclasses import dataclass
from pathlib import Path

from headrace.host import handover
from headrace_server.runners.diagnosis import Death, Verdict, diagnose
from headrace_server.runners.output import RunnerOutput
from headrace_server.runners.spec import RunnerSpec

logger = logging.getLogger(__name__)

RUNNER_COMMAND = (sys.executable, "-m", "headrace_runner")
MAX_SOCKET_PATH = 100
"""Bytes; the system's limit is 104 on macOS and 108 on Linux, a closing zero included."""

_LAST_MOMENTS = 10.0  # seconds before the end in which a printed line may explain it
_DRAIN_PIPES = 1.0  # seconds for output still in the pipes; a grandchild may hold them open


class RunnerProcess:
    """A started process. Make one with `start`."""

    def __init__(
        self,
        spec: RunnerSpec,
        process: asyncio.subprocess.Process,
        socket_dir: Path,
        output: _Pipe,
        reports: _Pipe,
        on_report: Callable[[handover.Report], None],
    ) -> None:
        self.pid = process.pid
        self._spec = spec
        self._process = process
        self._socket_dir = socket_dir
        self._on_report = on_report
        self._output = RunnerOutput(spec)
        self._reported: handover.Failed | None = None
        self._verdict: Verdict | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._stopping = False
        self.dead: asyncio.Task[Death] = asyncio.create_task(
            self._live(output, reports),
            name=f"runner {spec.id}",
            # What the process prints later belongs to no trace but the one it names itself.
            context=Context(),
        )
        """Ends when the process has been reaped and its output read. Wait for it with
        `asyncio.wait` or `shield`: cancelling it would abandon the process."""

    @classmethod
    async def start(
        cls,
        spec: RunnerSpec,
        environment: Mapping[str, str],
        on_report: Callable[[handover.Report], None],
        command: Sequence[str] = RUNNER_COMMAND,
    ) -> RunnerProcess:
        """Start a runner; its reports go to `on_report` on this event loop.

        Raises OSError when the process cannot be started; nothing is left behind then.
        """
        with contextlib.ExitStack() as undo:
            socket_dir = make_socket_dir(environment)
            undo.callback(shutil.rmtree, socket_dir, ignore_errors=True)
            with contextlib.ExitStack() as child_ends:
                output = await _Pipe.open(undo, child_ends)
                reports = await _Pipe.open(undo, child_ends)
                process = await asyncio.create_subprocess_exec(
                    *command,
                    *spec.arguments(f"unix:{socket_dir / 'r.sock'}", reports.write_fd),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=output.write_fd,
                    stderr=output.write_fd,
                    pass_fds=(reports.write_fd,),
                    env=dict(environment),
                    # A Ctrl-C in the terminal is for the controller, which then drains its runners.
                    start_new_session=True,
                )
            # No await from here: the process has no other owner until the object's task exists.
            runner = cls(spec, process, socket_dir, output, reports, on_report)
            undo.pop_all()
        return runner

    async def stop(self, grace: float) -> Death:
        """Ask for a drain, and kill after `grace` seconds. Returns when the process is reaped.

        Cancelling this does not call the stop off. A second call sets the time left anew.
        """
        if not self._stopping:
            self._stopping = True
            self._signal(signal.SIGTERM)
        if self._deadline is not None:
            self._deadline.cancel()
        if not self.dead.done():
            loop = asyncio.get_running_loop()
            self._deadline = loop.call_later(grace, self._end_grace, grace)
        return await asyncio.shield(self.dead)

    def kill(self, verdict: Verdict) -> None:
        """Kill a process that does not do its duty; the first verdict explains its death."""
        self._verdict = self._verdict or verdict
        self._signal(signal.SIGKILL)

    def _end_grace(self, grace: float) -> None:
        logger.warning("runner %s did not stop within %g s; killing it", self._spec.id, grace)
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def _live(self, output: _Pipe, reports: _Pipe) -> Death:
        readers = [
            asyncio.create_task(self._output.pump(output.reader)),
            asyncio.create_task(self._read_reports(reports.reader)),
        ]
        try:
            returncode = await self._process.wait()
            ended = time.monotonic()
            await asyncio.wait(readers, timeout=_DRAIN_PIPES)
        finally:
            if self._deadline is not None:
                self._deadline.cancel()
            for task in readers:
                task.cancel()
            results = await asyncio.gather(*readers, return_exceptions=True)
            output.transport.close()
            reports.transport.close()
            _kill(self._process)
            shutil.rmtree(self._socket_dir, ignore_errors=True)
        for result in results:
            if isinstance(result, Exception):
                logger.error("reading from runner %s failed", self._spec.id, exc_info=result)
        return diagnose(
            returncode,
            self._output.tail.since(ended - _LAST_MOMENTS),
            reported=self._reported,
            verdict=self._verdict,
            stopping=self._stopping,
        )

    async def _read_reports(self, reports: asyncio.StreamReader) -> None:
        while True:
            try:
                line = await reports.readline()
                if not line:
                    return
                report = handover.decode(line)
            except ValueError as error:  # HandoverError, or a line over the reader's limit
                logger.warning("runner %s wrote a bad report: %s", self._spec.id, error)
                continue
            if isinstance(report, handover.Failed):
                self._reported = report
            self._on_report(report)


@dataclass(frozen=True)
class _Pipe:
    """A pipe whose one end this loop reads and whose other end is for a child."""

    reader: asyncio.StreamReader
    transport: asyncio.ReadTransport
    write_fd: int

    @classmethod
    async def open(cls, undo: contextlib.ExitStack, child_ends: contextlib.ExitStack) -> _Pipe:
        """`undo` closes the reading end if all fails; `child_ends` closes the other in any case."""
        read_fd, write_fd = os.pipe()
        child_ends.callback(os.close, write_fd)
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read_fd, "rb", buffering=0)
        )
        undo.callback(transport.close)
        return cls(reader, transport, write_fd)


def make_socket_dir(environment: Mapping[str, str]) -> Path:
    """A new folder of mode 0700 whose path leaves room for a socket's name."""
    for base in (environment.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp"):
        if not base or len(os.fsencode(base)) + len("/hr-12345678/r.sock") > MAX_SOCKET_PATH:
            continue
        with contextlib.suppress(OSError):  # gone or not ours: try the next
            return Path(tempfile.mkdtemp(prefix="hr-", dir=base))
    raise OSError("no folder for a runner's socket: set XDG_RUNTIME_DIR to a short, writable path")


def _kill(process: asyncio.subprocess.Process) -> None:
    """For when nobody will wait for the process any more; harmless if it has ended."""
    with contextlib.suppress(ProcessLookupError):
        process.kill()
