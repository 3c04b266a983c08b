"""The telemetry of a controller, from its start to its end: logs, exports, and the local store."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

from headrace.telemetry.local import LocalLogHandler, LocalSpanExporter
from headrace.telemetry.setup import configure
from headrace.telemetry.store.schema import store_path
from headrace.telemetry.store.writer import StoreWriter
from headrace_server.config import ServerConfig
from headrace_server.runners.supervisor import OnSpan

_SERVICE: Final = "headrace-controller"


@contextmanager
def telemetry(config: ServerConfig) -> Iterator[OnSpan | None]:
    """Log and record while this lasts. Gives what takes the spans of runners; None: nobody does."""
    instance = uuid.uuid4().hex
    with ExitStack() as stack:
        spans, lines, put = None, None, None
        if config.telemetry_store:
            store = StoreWriter(store_path(config.home), config.telemetry_store)
            stack.callback(store.close)
            put = store.put
            spans = LocalSpanExporter(_SERVICE, instance, put)
            lines = LocalLogHandler(_SERVICE, put)
        configured = configure(
            _SERVICE,
            instance_id=instance,
            log_format=config.log_format,
            level=config.log_level.upper(),
            local=spans,
            local_logs=lines,
        )
        stack.callback(configured.shutdown)
        yield put
