"""Notes what happens to models and runners: one log line and one entry of the journal each.

It remembers nothing of what was meant to happen. Whenever something may have changed it compares
what is there with what was there, and says what differs.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import Context
from dataclasses import replace

from headrace_server.events.journal import Journal
from headrace_server.events.views import ModelView, RunnerView, runner_view
from headrace_server.runners.lifecycle import State
from headrace_server.scheduling.state import Slot, Why
from headrace_server.scheduling.ticket import Life

logger = logging.getLogger(__name__)

KEPT = 1024
"""Changes after which one who has read none of them starts anew."""
PACE = 0.25
"""Seconds between two entries about what changes all the time: requests, and how far a load is."""

_ORDERED = frozenset(why.upper() for why in Why)


class Recorder:
    """Watches one scheduler and one store. Belongs to one event loop."""

    def __init__(self, loaded: Callable[[], Iterable[tuple[Slot, Life]]]) -> None:
        """`loaded`: gives every runner."""
        self._loaded = loaded
        self._runners: dict[str, RunnerView] = {}
        self._lives: dict[str, Life] = {}
        self._models: dict[str, ModelView] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._news = asyncio.Event()
        self.journal: Journal[ModelView] = Journal(uuid.uuid4().hex[:12], KEPT)
        """Models by name, with their runners."""
        self.ended = False
        """Whether nobody is told anything any more."""

    async def news(self) -> None:
        """Wait for another entry, or the end."""
        await self._news.wait()

    def end(self) -> None:
        """Send those who watch away. What happens is still logged."""
        self.ended = True
        self._wake()

    def close(self) -> None:
        """Look no more."""
        self.end()
        if self._timer is not None:
            self._timer.cancel()

    def store_has(self, models: Sequence[ModelView], whys: Mapping[str, str] | None) -> None:
        """See the models of the store, their runners left out.

        `whys`: what has happened to a model of a name; None: this is the first look.
        """
        before, self._models = self._models, {m.manifest.full_name: m for m in models}
        for name in {**before, **self._models} if whys is not None else ():
            old, new = before.get(name), self._models.get(name)
            if (old and old.manifest) != (new and new.manifest):
                why = (whys or {}).get(name, "CHANGED_ELSEWHERE" if new else "DELETED")
                had, has = "stored" if old else None, "stored" if new else "gone"
                _log("model", had, has, why, model=name)
        self._write()

    def look(self) -> None:
        """See the runners. Cheap where nothing has changed; called after everything."""
        lives = {slot.runner: (slot, life) for slot, life in self._loaded()}
        seen = {name: runner_view(*found) for name, found in lives.items()}
        if seen == self._runners:
            return
        if _plain(seen) == _plain(self._runners):
            if self._timer is None:
                loop = asyncio.get_running_loop()
                # In a context of its own: it is part of nobody's trace.
                self._timer = loop.call_later(PACE, self._take, None, context=Context())
            return
        self._take(lives)

    def _take(self, lives: dict[str, tuple[Slot, Life]] | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if lives is None:
            lives = {slot.runner: (slot, life) for slot, life in self._loaded()}
        seen = {name: runner_view(*found) for name, found in lives.items()}
        before = self._runners
        # Between two looks a runner may have died and gone: its end is shown all the same.
        ends = {
            name: replace(view, state=State.DEAD, why=self._lives[name].why.upper(), requests=0)
            for name, view in before.items()
            if name not in seen and view.state is not State.DEAD
        }
        for name, view in {**ends, **seen}.items():
            life = lives[name][1] if name in lives else self._lives[name]
            with life.load.lines():
                _log_runner(before.get(name), view)
        self._lives = {name: life for name, (_, life) in lives.items()}
        if ends:
            self._runners = {**seen, **ends}
            self._write()
        self._runners = seen
        self._write()

    def _write(self) -> None:
        """Bring the journal up to what is known."""
        written = False
        for name in [*self.journal.values]:
            if name not in self._models:
                written |= self.journal.put(name, None)
        for name, model in self._models.items():
            own = tuple(view for view in self._runners.values() if model.served_by(view))
            written |= self.journal.put(name, replace(model, runners=own))
        if written:
            self._wake()

    def _wake(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()


def _plain(runners: Mapping[str, RunnerView]) -> dict[str, RunnerView]:
    return {name: view.plain() for name, view in runners.items()}


def _log_runner(before: RunnerView | None, now: RunnerView) -> None:
    if before is None or before.state is not now.state:
        old = before.state.value if before else None
        _log("runner", old, now.state.value, now.why, model=now.model, runner_id=now.id)
    elif now.state is State.LOADING and before.fraction != now.fraction:
        extra = {"model": now.model, "runner_id": now.id, "load_fraction": now.fraction}
        logger.debug("runner is loading", extra=extra)


def _log(what: str, before: str | None, now: str, why: str, **who: str) -> None:
    wrong = now == State.STALLED.value or (now == State.DEAD.value and why not in _ORDERED)
    extra = {**who, "from": before or "none", "to": now, "why": why}
    logger.log(logging.WARNING if wrong else logging.INFO, "%s is %s", what, now, extra=extra)
