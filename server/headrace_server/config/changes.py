"""What a new configuration changes of the one that a controller runs with. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from headrace_server.config.settings import BY_KEY, SETTINGS, Key, ServerConfig, told
from headrace_server.config.values import quoted


@dataclass(frozen=True)
class Change:
    """One setting with another value."""

    key: Key
    before: Any
    """None: not set, as after."""
    after: Any

    @property
    def live(self) -> bool:
        """Whether it takes effect in a controller that runs."""
        return BY_KEY[self.key[1]].live

    def __str__(self) -> str:
        model, key = self.key
        name = f"models.{quoted(model)}.{key}" if model else key
        return f"{name}: {self._shown(self.before)} -> {self._shown(self.after)}"

    def _shown(self, value: Any) -> str:
        return "not set" if value is None else BY_KEY[self.key[1]].kind.show(value)


def changes(before: ServerConfig, after: ServerConfig) -> list[Change]:
    """Every setting that differs."""
    old, new = told(before), told(after)
    return [
        Change(key, old.get(key), new.get(key))
        for key in {**old, **new}
        if old.get(key) != new.get(key)
    ]


def taken_over(before: ServerConfig, after: ServerConfig) -> ServerConfig:
    """What a controller that runs with `before` can take of `after`."""
    fixed = {s.key: getattr(before, s.key) for s in SETTINGS if not s.live}
    return replace(after, **fixed, parent=before.parent, ready_fd=before.ready_fd)
