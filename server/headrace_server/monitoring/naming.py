"""What Prometheus calls our metrics: as OpenTelemetry's rules for it say."""

from __future__ import annotations

import re

from headrace.telemetry.names import CounterSpec, HistogramSpec, LevelSpec

Spec = CounterSpec | LevelSpec | HistogramSpec

_UNITS = {"s": "seconds", "By": "bytes"}
"""Units in braces only annotate, and are left out."""


def unit_of(unit: str) -> str:
    """A unit's word; empty for those that have none."""
    return _UNITS.get(unit, "")


def family(name: str, unit: str) -> str:
    """The name of a metric, but for the ending of its kind."""
    word = unit_of(unit)
    return "_".join([label(name), *([word] if word else [])])


def label(attribute: str) -> str:
    """An attribute's name."""
    return re.sub(r"[^a-zA-Z0-9_]", "_", attribute)


def series(spec: Spec) -> tuple[str, ...]:
    """The names of a metric's series."""
    name = family(spec.name, spec.unit)
    match spec:
        case CounterSpec():
            return (f"{name}_total",)
        case HistogramSpec():
            return tuple(f"{name}_{part}" for part in ("bucket", "count", "sum"))
        case LevelSpec():
            return (name,)
