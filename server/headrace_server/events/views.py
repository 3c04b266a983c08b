"""What is seen of models and runners from outside, as values that can be compared. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from headrace_server.config import ModelOptions
from headrace_server.runners.lifecycle import State
from headrace_server.scheduling.state import Phase, Slot
from headrace_server.scheduling.ticket import Life, Runner
from headrace_server.store import Manifest


@dataclass(frozen=True, slots=True)
class RunnerView:
    """One runner."""

    id: str
    model: str
    """The name that it was loaded by."""
    key: str
    digest: str
    state: State
    why: str
    """Of its end: a `Why` in capitals, or the cause of its death."""
    pid: int
    fraction: float | None
    """Of the load, 0 to 1; None when it is over."""
    requests: int
    memory: int
    pinned: bool
    expires_at: float
    """On the scheduler's clock; infinite while it is busy or stays."""

    def plain(self) -> RunnerView:
        """Without what changes all the time: two that are equal so are in the same state."""
        fraction = None if self.fraction is None else 0.0
        return replace(self, fraction=fraction, requests=0, expires_at=0.0)


@dataclass(frozen=True, slots=True)
class ModelView:
    """One model of the store, and its runners."""

    manifest: Manifest
    options: ModelOptions
    key: str
    runners: tuple[RunnerView, ...] = ()

    def served_by(self, runner: RunnerView) -> bool:
        """Whether the runner is one of its: by its options, or loaded by its name before."""
        return runner.key == self.key or (
            runner.model == self.manifest.full_name and runner.digest == self.manifest.digest
        )


def runner_view(slot: Slot, life: Life) -> RunnerView:
    """A runner as it is now."""
    runner = life.runner
    state = runner.state if runner is not None else State.STARTING
    why = life.why
    if state is State.DEAD:
        why = why or _cause(runner)
    elif slot.phase in (Phase.RETIRING, Phase.STOPPING):
        state = State.STOPPING
    fraction = None
    if life.loaded_at is None:
        fraction = runner.fraction if runner is not None else 0.0
    return RunnerView(
        id=slot.runner,
        model=life.wanted.name,
        key=life.wanted.key,
        digest=life.wanted.digest,
        state=state,
        why=why.upper(),
        pid=(runner.pid if runner is not None else None) or 0,
        fraction=fraction,
        requests=len(slot.leases),
        memory=slot.memory,
        pinned=slot.pinned,
        expires_at=slot.expires_at,
    )


def _cause(runner: Runner | None) -> str:
    """What a dead runner died of, as far as its process tells yet."""
    if runner is None or not runner.dead.done() or runner.dead.cancelled():
        return ""
    return "EXITED" if runner.dead.exception() else runner.dead.result().cause
