"""The record of a request for images: its phases as spans, a line, and no picture."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from headrace.errors import InternalError, InvalidRequest
from headrace.telemetry import names
from headrace_runner.services import spans
from tests.tracing import spans_of
from tests.unit.image.serving import MODEL, Served, ask

WHOLE = f"generate_content {MODEL}"


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    return spans_of(monkeypatch, spans)


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


async def test_a_request_has_its_phases(
    exporter: InMemorySpanExporter, served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await served.api.draw(ask("a secret rose", seed=3, count=6, width=48, request_id="mine"))
    found = exporter.get_finished_spans()
    (whole,) = (span for span in found if span.name == WHOLE)
    told = attributes(whole)
    assert told[names.GEN_AI_OPERATION_NAME] == "generate_content"
    assert told[names.GEN_AI_RESPONSE_ID] == "mine"
    assert (told[names.GEN_AI_REQUEST_SEED], told[names.HEADRACE_IMAGE_COUNT]) == (3, 6)
    size = (told[names.HEADRACE_IMAGE_WIDTH], told[names.HEADRACE_IMAGE_HEIGHT])
    assert size == (48, 32)
    assert "secret" not in repr(told)
    parts = [span for span in found if span is not whole]
    assert whole.context is not None
    for part in parts:
        assert part.parent is not None
        assert part.parent.span_id == whole.context.span_id
        assert (whole.start_time or 0) <= (part.start_time or 0) <= (part.end_time or 0)
    # Two batches: of four images, and of two.
    assert [span.name for span in parts if span.name != names.SPAN_IMAGE_WRITING] == [
        names.SPAN_QUEUE,
        *(names.SPAN_IMAGE_ENCODING, names.SPAN_IMAGE_DENOISING, names.SPAN_IMAGE_DECODING) * 2,
    ]
    denoised = [attributes(s) for s in parts if s.name == names.SPAN_IMAGE_DENOISING]
    assert [each[names.HEADRACE_IMAGE_TOGETHER] for each in denoised] == [4, 2]
    assert [each[names.HEADRACE_IMAGE_STEPS] for each in denoised] == [4, 4]
    assert sum(span.name == names.SPAN_IMAGE_WRITING for span in parts) == 6
    (line,) = (record for record in caplog.records if record.message == "images ended")
    said = vars(line)
    assert (said["outcome"], said["images"], said["size"]) == ("drawn", 6, "48x32")
    assert "secret" not in repr(said)


async def test_what_fails_says_for_what(exporter: InMemorySpanExporter, served: Served) -> None:
    served.pipeline.fault = lambda drawings: ZeroDivisionError("a bug")
    with pytest.raises(InternalError):
        await served.api.draw(ask())
    with pytest.raises(InvalidRequest):
        await served.api.draw(ask(width=17))
    drawn, refused = (span for span in exporter.get_finished_spans() if span.name == WHOLE)
    assert drawn.status.status_code is refused.status.status_code is StatusCode.ERROR
    assert attributes(drawn)[names.ERROR_TYPE] == "INTERNAL"
    assert attributes(refused)[names.ERROR_TYPE] == "INVALID_REQUEST"
    assert [s.name for s in exporter.get_finished_spans()].count(names.SPAN_QUEUE) == 1
