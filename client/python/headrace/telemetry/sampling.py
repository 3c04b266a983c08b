"""What is recorded and what is exported: the sampler's choice holds for the export alone."""

from __future__ import annotations

from collections.abc import Sequence

from opentelemetry.context import Context
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import Link, SpanKind
from opentelemetry.trace.span import TraceState
from opentelemetry.util.types import Attributes


class RecordAll(Sampler):
    """Records what another sampler would drop, without sampling it.

    Such a span is kept here and exported by nobody, and the context sent on says that it is not
    sampled: others do as they would have done.
    """

    def __init__(self, exported: Sampler) -> None:
        """`exported` decides what is sampled."""
        self._exported = exported

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        """Decide about one span."""
        result = self._exported.should_sample(
            parent_context, trace_id, name, kind, attributes, links, trace_state
        )
        if result.decision is not Decision.DROP:
            return result
        return SamplingResult(Decision.RECORD_ONLY, attributes, result.trace_state)

    def get_description(self) -> str:
        """Name the sampler, for people."""
        return f"RecordAll{{{self._exported.get_description()}}}"
