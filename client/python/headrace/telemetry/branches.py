"""Spans leave the process in whole branches: none before the span that it hangs from.

Whoever exports each span as it ends exports children first, and a process that is killed leaves
them behind without their parent. Here a span that has ended is held until its parent in this
process is handed on, and then goes with it. A parent in another process is that one's concern.
"""

from __future__ import annotations

import logging
import threading
from typing import Final

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.export import SpanExporter

logger = logging.getLogger(__name__)

MAX_HELD: Final = 4096
"""Ended spans that are held at most; beyond that the oldest are handed on as they are."""


class Branches:
    """Which spans are held, and for whom. Not for several threads at once."""

    def __init__(self, limit: int = MAX_HELD) -> None:
        self._limit = limit
        self._here: set[int] = set()
        """Ids of the spans that run or are held."""
        self._held: dict[int, list[ReadableSpan]] = {}
        """Ended spans by their parent's id, in the order in which the first of each ended."""
        self._count = 0

    def begin(self, span_id: int) -> None:
        """A span has begun."""
        self._here.add(span_id)

    def end(self, span: ReadableSpan) -> list[ReadableSpan]:
        """A span has ended; gives those that are to be handed on, parents first."""
        parent = span.parent
        if parent is None or parent.is_remote or parent.span_id not in self._here:
            return self._freed([span])
        self._held.setdefault(parent.span_id, []).append(span)
        self._count += 1
        return self._oldest() if self._count > self._limit else []

    def rest(self) -> list[ReadableSpan]:
        """Gives all that are held, parents first; what they hang from will not end any more."""
        spans = (span for held in self._held.values() for span in held)
        ended = {span.context.span_id for span in spans if span.context is not None}
        tops = [parent for parent in self._held if parent not in ended]
        return [span for parent in tops for span in self._of(parent)]

    def _oldest(self) -> list[ReadableSpan]:
        return self._of(next(iter(self._held)))

    def _of(self, parent: int) -> list[ReadableSpan]:
        spans = self._held.pop(parent, [])
        self._count -= len(spans)
        return self._freed(spans)

    def _freed(self, spans: list[ReadableSpan]) -> list[ReadableSpan]:
        """These spans, and all that hang from them. It grows while it is walked."""
        for span in spans:
            context = span.context
            if context is not None:
                self._here.discard(context.span_id)
                below = self._held.pop(context.span_id, ())
                self._count -= len(below)
                spans.extend(below)
        return spans


class WholeBranches(SpanProcessor):
    """Hands spans on to `exported`, and to `local`, in whole branches.

    `exported` is a processor of its own, which passes over spans that are not sampled. `local` gets
    all that are recorded, parents before their children, in the thread that ends a branch: it must
    not block.
    """

    def __init__(
        self, exported: SpanProcessor | None, local: SpanExporter | None, limit: int = MAX_HELD
    ) -> None:
        self._exported = exported
        self._local = local
        self._branches = Branches(limit)
        # Reentrant: a coroutine that the garbage collector closes ends its spans there and then,
        # which may be within this lock.
        self._lock = threading.RLock()

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Note a span that begins."""
        context = span.get_span_context()
        if context is not None:
            with self._lock:
                self._branches.begin(context.span_id)

    def on_end(self, span: ReadableSpan) -> None:
        """Take a span that has ended."""
        with self._lock:
            spans = self._branches.end(span)
        self._hand_on(spans)

    def shutdown(self) -> None:
        """Hand on what is held, whole or not, and end both."""
        with self._lock:
            spans = self._branches.rest()
        self._hand_on(spans)
        if self._local is not None:  # First: a collector that does not answer takes its time.
            self._local.shutdown()
        if self._exported is not None:
            self._exported.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Have what was handed on exported. What is held is not whole yet, and stays."""
        return self._exported is None or self._exported.force_flush(timeout_millis)

    def _hand_on(self, spans: list[ReadableSpan]) -> None:
        if not spans:
            return
        if self._exported is not None:
            for span in spans:
                self._exported.on_end(span)
        if self._local is not None:
            try:
                self._local.export(spans)
            except Exception:  # who ends a span must not pay for those who keep it
                logger.exception("%d spans were not recorded", len(spans))
