"""Spans of one test, kept in memory."""

from __future__ import annotations

from types import ModuleType

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter


def spans_of(monkeypatch: pytest.MonkeyPatch, *modules: ModuleType) -> InMemorySpanExporter:
    """What these modules trace from now on, by their `_tracer`."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    for module in modules:
        monkeypatch.setattr(module, "_tracer", provider.get_tracer("t"))
    return exporter
