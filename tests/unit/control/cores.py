"""The scheduling core on a virtual clock, for tests of its rules."""

from typing import Any

from headrace.errors import LoadFailed
from headrace_server.scheduling.core import decide
from headrace_server.scheduling.events import Action, Event, Exited, Loaded, Refuse, Tick
from headrace_server.scheduling.state import Asked, Limits, Phase, Policy, Slot, State


class Desk:
    """The core with a clock that the test moves."""

    def __init__(self, policy: Policy | None = None, **limits: int | float) -> None:
        self.state = State(Limits(**{"memory": 100, **limits}))  # type: ignore[arg-type]
        self.policy = policy or Policy()
        self.now = 0.0
        self._requests = 0

    def tell(self, event: Event) -> tuple[Action, ...]:
        self.state, actions = decide(self.state, event, self.now)
        return actions

    def ask(self, key: str, needs: int = 40, **more: Any) -> tuple[Action, ...]:
        """Ask as request 1, 2, 3, …"""
        self._requests += 1
        return self.tell(Asked(self._requests, key, key, needs, **{"policy": self.policy, **more}))

    def wait(self, seconds: float) -> tuple[Action, ...]:
        self.now += seconds
        return self.tell(Tick())

    def exited(self, runner: str, cause: str = "EXITED") -> tuple[Action, ...]:
        return self.tell(Exited(runner, cause, LoadFailed("it failed", cause=cause)))

    def load(self, key: str, needs: int = 40, **more: Any) -> str:
        """Ask, and load the runner that is started; gives its id. The request is served on it."""
        self.ask(key, needs, **more)
        runner = f"r{self.state.started}"
        self.tell(Loaded(runner))
        return runner

    def slot(self, runner: str) -> Slot:
        return self.state.slots[runner]

    def phase(self, key: str) -> Phase | None:
        """Of its first runner."""
        return next((slot.phase for slot in self.state.slots_of(key)), None)


def errors(actions: tuple[Action, ...]) -> list[tuple[int, type]]:
    return [
        (action.request, type(action.error)) for action in actions if isinstance(action, Refuse)
    ]
