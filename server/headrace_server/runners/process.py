"""One runner process: started, heard on its report pipe, stopped, reaped, its traces removed.

Knows nothing of gRPC. A process that has started always ends in `dead`, whatever happens to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from contextvars import Context

from headrace.host import handover, orders
from headrace_server.runners.diagnosis import Death, Verdict, diagnose
from headrace_server.runners.oom import OomKills
from headrace_server.runners.output import Lines, RunnerOutput
from headrace_server.runners.spawn import Spawned, spawn
from headrace_server.runners.spec import RunnerSpec

logger = logging.getLogger(__name__)

RUNNER_COMMAND = (sys.executable, "-m", "headrace_runner")

OnReport = Callable[[handover.Report | None], None]
"""Takes a runner's reports, and None once no more can come."""

_LAST_MOMENTS = 10.0  # seconds before the end in which a printed line may explain it
_DRAIN_PIPES = 1.0  # seconds for output still in the pipes; a grandchild may hold them open


class RunnerProcess:
    """A started process. Make one with `start` or `adopt`."""

    def __init__(
        self,
        spec: RunnerSpec,
        spawned: Spawned,
        on_report: OnReport,
        oom_kills: OomKills,
        lines: Lines = nullcontext,
    ) -> None:
        self.pid = spawned.process.pid
        self._spec = spec
        self._spawned = spawned
        self._on_report = on_report
        self._oom_kills = oom_kills
        self._output = RunnerOutput(spec, lines)
        self._lines = lines
        self._reported: handover.Failed | None = None
        self._verdict: Verdict | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._stopping = False
        self.dead: asyncio.Task[Death] = asyncio.create_task(
            self._live(),
            name=f"runner {spec.id}",
            # What the process logs belongs to no trace but the one it names itself.
            context=Context(),
        )
        """Ends when the process has been reaped and its output read. Wait for it with
        `asyncio.wait` or `shield`: cancelling it would abandon the process."""

    @classmethod
    async def start(
        cls,
        spec: RunnerSpec,
        environment: Mapping[str, str],
        on_report: OnReport,
        command: Sequence[str] = RUNNER_COMMAND,
        oom_kills: OomKills | None = None,
        lines: Lines = nullcontext,
    ) -> RunnerProcess:
        """Start a runner; its reports go to `on_report` on this event loop. `lines` gives the
        context for what is logged of it.

        Raises OSError when the process cannot be started; nothing is left behind then.
        """
        spawned = await spawn(command, spec.arguments, environment)
        # No await from here: the process has no other owner until the object's task exists.
        return cls(spec, spawned, on_report, oom_kills or OomKills(), lines)

    @classmethod
    def adopt(
        cls,
        spec: RunnerSpec,
        spare: Spawned,
        environment: Mapping[str, str],
        on_report: OnReport,
        oom_kills: OomKills,
        lines: Lines = nullcontext,
    ) -> RunnerProcess:
        """Make a spare process this runner. `environment` is added to what the spare has.

        A spare that has just died becomes a runner that dies at once.
        """
        arguments = spec.arguments(spare.listen, spare.reports.write_fd)
        spare.tell(orders.encode(orders.Orders(arguments, environment)))
        return cls(spec, spare, on_report, oom_kills, lines)

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
        """Kill a process that does not do its duty; the first verdict explains its death.

        What it has said of itself before explains it better.
        """
        if self._reported is None:
            self._verdict = self._verdict or verdict
        self._signal(signal.SIGKILL)

    def _end_grace(self, grace: float) -> None:
        with self._lines():
            logger.warning("runner %s did not stop within %g s; killing it", self._spec.id, grace)
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._spawned.process.send_signal(number)

    async def _live(self) -> Death:
        spawned = self._spawned
        readers = [
            asyncio.create_task(self._output.pump(spawned.output.reader)),
            asyncio.create_task(self._read_reports(spawned.reports.reader)),
        ]
        try:
            returncode = await spawned.process.wait()
            ended = time.monotonic()
            await asyncio.wait(readers, timeout=_DRAIN_PIPES)
        finally:
            if self._deadline is not None:
                self._deadline.cancel()
            for task in readers:
                task.cancel()
            results = await asyncio.gather(*readers, return_exceptions=True)
            spawned.dispose()
        for result in results:
            if isinstance(result, Exception):
                with self._lines():
                    logger.error("reading from runner %s failed", self._spec.id, exc_info=result)
        return diagnose(
            returncode,
            self._output.tail.since(ended - _LAST_MOMENTS),
            reported=self._reported,
            verdict=self._verdict,
            stopping=self._stopping,
            oom_killed=self._oom_kills.explains() if returncode == -signal.SIGKILL else False,
        )

    async def _read_reports(self, reports: asyncio.StreamReader) -> None:
        while True:
            try:
                line = await reports.readline()
                if not line:
                    self._on_report(None)
                    return
                report = handover.decode(line)
            except ValueError as error:  # HandoverError, or a line over the reader's limit
                with self._lines():
                    logger.warning("runner %s wrote a bad report: %s", self._spec.id, error)
                continue
            if isinstance(report, handover.Failed):
                self._reported = report
            self._on_report(report)
