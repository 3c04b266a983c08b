"""A request to generate as the engine's thread has it: how far it is, and its events until they
are sent. Plain values; nothing here computes."""

from __future__ import annotations

from dataclasses import dataclass, field

from headrace_runner.engine.text.output import Output
from headrace_runner.engine.text.request import (
    ChoiceEnd,
    Event,
    Finished,
    GenerationRequest,
    Prefill,
    Started,
)
from headrace_runner.engine.text.rows import Prefilled


@dataclass(slots=True)
class Task:
    """A request on the engine's thread."""

    uid: int
    request: GenerationRequest
    outputs: list[Output]
    rows: list[int] = field(default_factory=list)
    """Of the choices that had not ended by then; empty until it is admitted."""
    ends: dict[int, ChoiceEnd] = field(default_factory=dict)
    """By choice."""
    events: list[Event] = field(default_factory=list)
    started_at: int = 0
    prefilled: int = 0
    """Tokens of its first choice, resumed ones included."""
    first_token_at: int = 0
    parked: bool = False

    @property
    def over(self) -> bool:
        """Whether all its choices have ended."""
        return len(self.ends) == len(self.outputs)

    def note(self, progress: Prefilled, began: int, now: int) -> bool:
        """Takes in that more of a prompt of its has been computed. Gives whether it begins so."""
        begins = not self.started_at
        if begins:
            self.started_at = began
            self.events.append(Started(began, min(progress.cached, len(self.request.prompt))))
        # Else it only began anew, or is a choice that goes on from other tokens.
        if not self.first_token_at and progress.uid == self.rows[0]:
            total = len(self.request.prompt)
            # One that began anew is computed again.
            before = self.prefilled if self.prefilled < progress.done else progress.cached
            self.prefilled = progress.done
            tokens = progress.done - max(before, progress.cached)
            self.events.append(Prefill(min(progress.done, total), total, tokens, began, now))
        return begins

    def finish(self, now: int) -> None:
        """Takes in that all is over."""
        ends = tuple(self.ends[choice] for choice in range(len(self.outputs)))
        self.events.append(Finished(ends, self.started_at, self.first_token_at, now))
