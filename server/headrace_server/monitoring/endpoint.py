"""The endpoint that Prometheus scrapes."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as LateError
from importlib import metadata

from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.resources import Resource
from prometheus_client import CollectorRegistry, ProcessCollector, make_wsgi_app

from headrace.telemetry.setup import exported_signals
from headrace_server.monitoring.engines import Engines, Report
from headrace_server.monitoring.exemplars import AnySpan, ExemplarReader
from headrace_server.monitoring.web import Server
from headrace_server.scheduling.planner import reports_of
from headrace_server.scheduling.state import Slot
from headrace_server.scheduling.ticket import Life

logger = logging.getLogger(__name__)

_REPORTS = 3.0
"""Seconds for the event loop to come with all reports."""
_CLOSING = 5.0
"""Seconds for scrapes under way to be answered."""

Loaded = Callable[[], Iterable[tuple[Slot, Life]]]
"""Gives every runner."""


class Endpoint:
    """Serves all metrics of this controller and of its runners over HTTP, by threads of its own.

    One who scrapes waits for another: each collection asks every runner anyway.
    """

    def __init__(self, loaded: Loaded, *, shared: bool) -> None:
        """To be made on the event loop, on which `loaded` is called. `shared`: whether another
        process may listen on the same address."""
        self._loaded = loaded
        self._shared = shared
        self._loop = asyncio.get_running_loop()
        self._registry = CollectorRegistry()
        self._reader = ExemplarReader(self._registry)
        self._registry.register(Engines(self._ask))
        ProcessCollector(registry=self._registry)
        self._server: Server | None = None
        self._meters = _meters_read_by(self._reader)

    def listen(self, address: str) -> str:
        """Bind `host:port` and serve; gives the URL, with the port that was bound.

        Raises OSError.
        """
        host, _, port = address.rpartition(":")
        host = host.strip("[]")
        family, *_, found = socket.getaddrinfo(
            host, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        app = make_wsgi_app(self._registry)
        self._server = server = Server(family, found, app, shared=self._shared)
        server.begin()
        shown = f"[{host}]" if ":" in host else host
        return f"http://{shown}:{server.server_address[1]}/metrics"

    async def close(self) -> None:
        """Stop to listen. Scrapes under way are answered first, within seconds."""
        server, self._server = self._server, None
        if server is not None:
            await asyncio.to_thread(server.end, _CLOSING)
        self._meters.remove_metric_reader(self._reader)

    def _ask(self) -> Sequence[Report]:
        """The runners' reports, for the endpoint's own thread; none where they do not come."""
        asked: Future[Sequence[Report]] = asyncio.run_coroutine_threadsafe(
            self._reports(), self._loop
        )
        try:
            return asked.result(_REPORTS)
        except (LateError, CancelledError):
            asked.cancel()
            logger.warning("runners are left out of a scrape: their reports did not come in time")
            return ()

    async def _reports(self) -> Sequence[Report]:
        found = [*self._loaded()]
        said = await reports_of(life for _, life in found)
        return [
            Report(life.id, life.wanted.name, slot.memory, report)
            for (slot, life), report in zip(found, said, strict=True)
        ]


def _meters_read_by(reader: ExemplarReader) -> MeterProvider:
    """Those of this process, made if nobody else has asked for any."""
    meters = metrics.get_meter_provider()
    if isinstance(meters, MeterProvider):
        meters.add_metric_reader(reader)
        return meters
    resource = {
        "service.name": "headrace-controller",
        "service.version": metadata.version("headrace"),
    }
    # Where traces are exported, an exemplar is to be found among them.
    exported = "traces" in exported_signals(os.environ)
    meters = MeterProvider(
        [reader],
        resource=Resource(resource),
        exemplar_filter=None if exported else AnySpan(),
        shutdown_on_exit=False,
    )
    metrics.set_meter_provider(meters)
    return meters
