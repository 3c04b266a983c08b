"""A span that has ended and a log line, as plain values: what the local store keeps. Pure.

Their JSON is also what a runner reports to its controller. Nothing here needs OpenTelemetry's SDK.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

Value: TypeAlias = str | bool | int | float | Sequence[str | bool | int | float]
"""Of an attribute."""

MAX_TIME: Final = 2**63 - 1
"""Nanoseconds since 1970 that can be kept, in the year 2262."""
MAX_TEXT: Final = 8192
"""Characters of one text that are kept. Its start and its end say most; its middle goes."""
_MAX_ENTRIES: Final = 64
"""Attributes, events or links of a span, and fields of a line, that are kept of each."""


@dataclass(frozen=True, slots=True)
class SpanEvent:
    """What happened at a moment of a span."""

    name: str
    time: int
    """Nanoseconds since 1970."""
    attributes: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SpanLink:
    """Another span that has to do with it."""

    trace_id: str
    span_id: str
    attributes: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SpanRecord:
    """A span that has ended. Times are nanoseconds since 1970, ids lower hexadecimal digits."""

    trace_id: str
    span_id: str
    parent_id: str
    """Empty: it has none."""
    name: str
    kind: str
    """INTERNAL, SERVER, CLIENT, PRODUCER or CONSUMER."""
    service: str
    """As in `service.name`."""
    instance: str
    """Of the service; the id of a runner."""
    start: int
    end: int
    status: str = "UNSET"
    """UNSET, OK or ERROR."""
    message: str = ""
    """Of the status."""
    local_root: bool = False
    """Whether its parent is in another process, or there is none."""
    attributes: Mapping[str, Value] = field(default_factory=dict)
    events: Sequence[SpanEvent] = ()
    links: Sequence[SpanLink] = ()


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of a log."""

    time: int
    """Nanoseconds since 1970."""
    level: int
    """Of Python's logging: 20 is INFO."""
    fields: Mapping[str, Any]
    """All that the line has, as it stands in the log on stderr: message, logger, trace_id …"""

    def text(self, name: str) -> str:
        """A field's text; empty where the line has none."""
        value = self.fields.get(name)
        return "" if value is None else str(value)


def cut(text: str, limit: int = MAX_TEXT) -> str:
    """At most `limit` characters of a text."""
    if len(text) <= limit:
        return text
    half = (limit - 1) // 2
    return f"{text[:half]}…{text[len(text) - half :]}"


def bounded(fields: Mapping[str, Any]) -> dict[str, Any]:
    """So many entries at most, and no text too long."""
    few = list(fields.items())[:_MAX_ENTRIES]
    return {key: cut(value) if isinstance(value, str) else value for key, value in few}


def span_to_fields(span: SpanRecord) -> dict[str, Any]:
    """A span as JSON has it. What it does not have is left out."""
    fields = {
        "trace_id": span.trace_id,
        "span_id": span.span_id,
        "parent_id": span.parent_id,
        "name": cut(span.name),
        "kind": span.kind,
        "service": span.service,
        "instance": span.instance,
        "start": span.start,
        "end": span.end,
        "status": span.status,
        "message": cut(span.message),
        "local_root": span.local_root,
        "attributes": bounded(span.attributes),
        "events": [
            {"name": event.name, "time": event.time, "attributes": bounded(event.attributes)}
            for event in span.events[:_MAX_ENTRIES]
        ],
        "links": [
            {
                "trace_id": link.trace_id,
                "span_id": link.span_id,
                "attributes": bounded(link.attributes),
            }
            for link in span.links[:_MAX_ENTRIES]
        ],
    }
    return {key: value for key, value in fields.items() if value not in ("", [], {}, False)}


def span_from_fields(fields: Mapping[str, Any]) -> SpanRecord:
    """The span that JSON has. Unknown fields are ignored.

    Raises KeyError, TypeError or ValueError where it is none.
    """
    start, end = (min(max(0, int(fields[name])), MAX_TIME) for name in ("start", "end"))
    return SpanRecord(
        trace_id=_id(fields["trace_id"], 32),
        span_id=_id(fields["span_id"], 16),
        parent_id=_id(fields["parent_id"], 16) if fields.get("parent_id") else "",
        name=str(fields["name"]),
        kind=str(fields.get("kind", "INTERNAL")),
        service=str(fields["service"]),
        instance=str(fields.get("instance", "")),
        start=start,
        end=max(start, end),
        status=str(fields.get("status", "UNSET")),
        message=str(fields.get("message", "")),
        local_root=fields.get("local_root") is True,
        attributes=_attributes(fields),
        events=tuple(
            SpanEvent(str(event["name"]), int(event["time"]), _attributes(event))
            for event in fields.get("events", ())
        ),
        links=tuple(
            SpanLink(_id(link["trace_id"], 32), _id(link["span_id"], 16), _attributes(link))
            for link in fields.get("links", ())
        ),
    )


def _id(value: object, digits: int) -> str:
    text = str(value)
    if len(text) != digits or set(text) - set("0123456789abcdef"):
        raise ValueError(f"{text[:40]!r} is no id of {digits} hexadecimal digits")
    return text


def _attributes(fields: Mapping[str, Any]) -> Mapping[str, Value]:
    found = fields.get("attributes", {})
    if not isinstance(found, dict):
        raise TypeError("the attributes are no object")
    return found
