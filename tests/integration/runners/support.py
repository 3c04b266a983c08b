"""What the tests of this folder share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from headrace_server.runners.lifecycle import Limits, State
from headrace_server.runners.spares import Activity
from headrace_server.runners.spec import RunnerSpec
from headrace_server.runners.supervisor import RunningRunner, Supervisor

CHILD = Path(__file__).with_name("child.py")

Command = Callable[[str], tuple[str, ...]]


class Watched:
    """A supervisor, the runners it started, and every state it told of, in order."""

    def __init__(
        self,
        environment: dict[str, str],
        command: Sequence[str],
        limits: Limits | None,
        activity: Callable[[], Activity] | None = None,
    ) -> None:
        self.states: list[State] = []
        self.runners: list[RunningRunner] = []
        self._changed = asyncio.Event()
        self.supervisor = Supervisor(
            environment,
            on_change=self._on_change,
            command=command,
            limits=limits,
            activity=activity,
        )

    def start(self, spec: RunnerSpec) -> RunningRunner:
        self.runners.append(self.supervisor.start(spec))
        return self.runners[-1]

    def _on_change(self, runner: RunningRunner) -> None:
        if not self.states or self.states[-1] is not runner.state:
            self.states.append(runner.state)
            self._changed.set()

    async def reach(self, state: State) -> None:
        """Return when the latest state is this one."""
        async with asyncio.timeout(20):
            while not self.states or self.states[-1] is not state:
                self._changed.clear()
                await self._changed.wait()


Supervise = Callable[..., Watched]
"""(mode, limits=None): a supervisor of children of one mode."""
