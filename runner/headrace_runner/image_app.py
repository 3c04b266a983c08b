"""Makes the runner of a model for images, and its services."""

from __future__ import annotations

from headrace.errors import UnsupportedModel
from headrace.host.handover import ReportWriter
from headrace.host.machine import Machine
from headrace_runner.config import RunnerConfig
from headrace_runner.served import Served
from headrace_runner.starting import Start


def prepare(config: RunnerConfig, machine: Machine, report: ReportWriter, start: Start) -> Served:
    """Reads all of the model but its weights. Raises ModelCorrupt and UnsupportedModel."""
    raise UnsupportedModel("this version draws with no model yet")
