"""A trace as rows: which span is below which, what is said of it, and where its bar is. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from headrace.cli.lines import process_name
from headrace.cli.screen import elapsed, safe
from headrace.telemetry import names
from headrace.telemetry.records import SpanEvent, SpanRecord

_DEPTH: Final = 24
"""Levels that are drawn. What is below stands beside them."""
_EIGHTHS: Final = " ▏▎▍▌▋▊▉█"
_OWN: Final = "headrace."
_LONG: Final = 100
"""Characters of a text that gets lines of its own."""
_FIRST, _LAST = 3, 8
"""Lines of a text that are shown at least."""
_CAUSES: Final = (
    names.HEADRACE_RUNNER_CAUSE_OF_DEATH,
    "exception.type",
    names.EXCEPTION_MESSAGE,
)
"""What of an event needs no name before it."""


@dataclass(frozen=True, slots=True)
class Row:
    """One span in its place."""

    span: SpanRecord
    branch: tuple[bool, ...]
    """For each level down to it: whether it, or the one above it, is the last of its siblings."""
    above: str
    """Name of the span that it is part of; empty: none that is kept."""
    cut_off: bool
    """Whether it names a parent that is not kept, in its own process."""


@dataclass(frozen=True, slots=True)
class Window:
    """The time that all bars share. Nanoseconds."""

    start: int
    end: int

    def columns(self, span: SpanRecord, width: int) -> tuple[float, float]:
        """Where a bar begins and ends on a line of so many columns."""
        whole = max(1, self.end - self.start)
        begin = (min(max(span.start, self.start), self.end) - self.start) / whole * width
        end = (min(max(span.end, self.start), self.end) - self.start) / whole * width
        return begin, end


def rows(spans: Sequence[SpanRecord]) -> list[Row]:
    """All spans, each below its parent, siblings by their start. `spans` are by their start."""
    known = {span.span_id for span in spans}
    children: dict[str, list[SpanRecord]] = {}
    for span in spans:
        children.setdefault(span.parent_id if span.parent_id in known else "", []).append(span)
    found: list[Row] = []
    seen: set[str] = set()

    def add(span: SpanRecord, branch: tuple[bool, ...], above: str) -> None:
        if span.span_id in seen:  # Of a loop, or told twice.
            return
        seen.add(span.span_id)
        lost = bool(span.parent_id) and span.parent_id not in known and not span.local_root
        found.append(Row(span, branch, above, lost))
        own = children.get(span.span_id, [])
        for number, child in enumerate(own, 1):
            add(child, (*branch, number == len(own))[-_DEPTH:], span.name)

    for span in [*children.get("", ()), *spans]:
        add(span, (), "")
    return found


def window(spans: Sequence[SpanRecord]) -> Window:
    """From the first start to the last end."""
    return Window(min(span.start for span in spans), max(span.end for span in spans))


def guides(branch: Sequence[bool], *, unicode: bool) -> str:
    """The lines of the tree before a span's name."""
    if not branch:
        return ""
    fork, last = ("├─ ", "└─ ") if unicode else ("|- ", "`- ")
    return f"{below(branch[:-1], unicode=unicode)}{last if branch[-1] else fork}"


def below(branch: Sequence[bool], *, unicode: bool) -> str:
    """The lines of the tree that go on below a span, before a note on it."""
    line = "│  " if unicode else "|  "
    return "".join("   " if ended else line for ended in branch)


def bar(begin: float, end: float, width: int, *, unicode: bool) -> str:
    """A line of blocks from one column to another; something of it is always seen."""
    first = min(int(begin), width - 1)
    if not unicode:
        return " " * first + "#" * max(1, min(round(end), width) - first)
    # A block grows from the left alone, so a bar begins at a whole column and ends at an eighth.
    eighths = max(1, round((min(end, width) - first) * 8))
    return " " * first + "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def title(span: SpanRecord, above: str = "") -> str:
    """A span's name without what is the same in all of them, or said by the one above it."""
    name = span.name.removeprefix(f"{above}.").removeprefix(_OWN).replace("_", " ")
    if "/" in name:
        name = span.name.rpartition("/")[2]
        if span.kind == "CLIENT" and (runner := span.attributes.get(names.HEADRACE_RUNNER_ID)):
            name += f" on {runner}"
    return safe(name)


def source(span: SpanRecord) -> str:
    """Whose span it is."""
    return process_name(span.service, span.instance)


def facts(span: SpanRecord) -> str:
    """What is worth to be known of a span at a glance."""
    told = span.attributes
    parts = []
    for name, words in _FACTS:
        value = told.get(name)
        if value not in (None, "", 0, False):
            parts.append(words.format(value))
    return safe(", ".join(parts))


_FACTS: Final = (
    (names.HEADRACE_ATTEMPT, "attempt {}"),
    (names.GEN_AI_USAGE_INPUT_TOKENS, "{} tokens in"),
    (names.GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS, "{} cached"),
    (names.GEN_AI_USAGE_OUTPUT_TOKENS, "{} out"),
    (names.HEADRACE_PREFILL_TOKENS, "{} tokens"),
    (names.HEADRACE_PREFILL_CACHED_TOKENS, "{} cached"),
    (names.HEADRACE_QUEUE_RUNNING, "{} running"),
    (names.HEADRACE_QUEUE_POSITION, "{} ahead"),
    (names.HEADRACE_RESUMED, "moved {}x"),
    (names.HEADRACE_RUNNER_SPARE, "by the spare"),
)


def outcome(span: SpanRecord) -> str:
    """How a span ended, where that was not well; a CANCELLED or refused call is no error of its
    server, and still worth a word."""
    code = span.attributes.get(names.RPC_STATUS_CODE)
    kind = span.attributes.get(names.ERROR_TYPE)
    told = (names.HEADRACE_ERROR_REASON, names.HEADRACE_ERROR_DETAILS)
    reason, details = (span.attributes.get(name) for name in told)
    words = [str(word) for word in (reason, kind, code, details) if word not in (None, "", "OK")]
    if span.status == "ERROR" and span.message:
        words.append(span.message)
    elif span.status == "ERROR" and not words:
        words.append("failed")
    return safe(": ".join(dict.fromkeys(words)))


def failed(span: SpanRecord) -> bool:
    """Whether it counts as an error."""
    return span.status == "ERROR"


def event_lines(event: SpanEvent, since: int, *, whole: bool) -> list[str]:
    """What happened, and below it what it says in texts: a traceback, last words. Of a long text
    the begin and the end, unless it is wanted whole."""
    rest = dict(event.attributes)
    causes = [str(rest.pop(name)) for name in _CAUSES if rest.get(name)]
    name = event.name.removeprefix(_OWN).replace(".", " ").replace("_", " ")
    first = f"+{elapsed(event.time - since)} {': '.join([name, *causes])}"
    long: list[tuple[str, str]] = []
    for key, value in rest.items():
        text = str(value)
        if "\n" in text or len(text) > _LONG:
            long.append((key, text))
        else:
            first += f"  {key.rpartition('.')[2]}={text}"
    lines = [safe(first)]
    for key, text in long:
        lines.append(f"  {key.rpartition('.')[2]}:")
        texts = text.strip().splitlines()
        if not whole and len(texts) > _FIRST + _LAST:
            left_out = f"… {len(texts) - _FIRST - _LAST} lines, which --verbose shows"
            texts = [*texts[:_FIRST], left_out, *texts[-_LAST:]]
        lines += [f"    {safe(line)}" for line in texts]
    return lines


def attribute_lines(attributes: Mapping[str, object]) -> list[str]:
    """Every attribute, one a line."""
    return [safe(f"{key} = {value}") for key, value in sorted(attributes.items())]


def link_lines(span: SpanRecord, all_spans: Iterable[SpanRecord]) -> list[str]:
    """What a span is linked to: by its name where it is in the same trace."""
    by_id = {other.span_id: other for other in all_spans}
    lines = []
    for link in span.links:
        other = by_id.get(link.span_id)
        if other is not None:
            lines.append(f"after {title(other)} ({source(other)})")
        elif link.trace_id == span.trace_id:
            lines.append(f"after span {link.span_id}, which is not kept")
        else:
            lines.append(f"see trace {link.trace_id}")
    return lines
