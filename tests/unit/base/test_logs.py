"""Log lines and the buffer between them and a slow reader."""

import asyncio
import json
import logging
import os
import re
import threading
from collections.abc import Iterator
from typing import IO, Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from headrace.telemetry.logs import BufferedHandler, JsonFormatter, TextFormatter, bind


@pytest.fixture
def pipe() -> Iterator[tuple[IO[bytes], int]]:
    reading, writing = os.pipe()
    with open(reading, "rb") as reader:  # noqa: PTH123 - a descriptor, not a path
        yield reader, writing
        os.close(writing)


@pytest.fixture
def handler(pipe: Any) -> Iterator[BufferedHandler]:
    made = BufferedHandler(pipe[1], limit=100_000)
    made.setFormatter(JsonFormatter("headrace-runner"))
    yield made
    made.close()


@pytest.fixture
def logger(handler: BufferedHandler) -> Iterator[logging.Logger]:
    made = logging.Logger("headrace_runner.engine")  # noqa: LOG001 - not of the process's tree
    made.addHandler(handler)
    yield made
    made.removeHandler(handler)


def test_a_line_has_the_whole_schema(pipe: Any, logger: logging.Logger) -> None:
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("t")
    with tracer.start_as_current_span("s") as span:
        logger.info("loaded %s in %d s", "smollm2\nあ", 3, extra={"model": "m", "bytes": 7})
    line = json.loads(pipe[0].readline())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("timestamp"))
    assert line == {
        "level": "INFO",
        "message": "loaded smollm2\nあ in 3 s",
        "logger": "headrace_runner.engine",
        "service": "headrace-runner",
        "trace_id": trace.format_trace_id(span.get_span_context().trace_id),
        "span_id": trace.format_span_id(span.get_span_context().span_id),
        "model": "m",
        "bytes": 7,
    }


def test_a_line_of_another_process_keeps_its_origin(pipe: Any, logger: logging.Logger) -> None:
    origin = {"service": "other", "timestamp": "2001-01-01T00:00:00.000Z", "trace_id": "a" * 32}
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("t")
    with tracer.start_as_current_span("s"):
        logger.warning("re-emitted", extra=origin)
    line = json.loads(pipe[0].readline())
    assert {key: line[key] for key in origin} == origin


def test_an_exception_is_in_its_line(pipe: Any, logger: logging.Logger) -> None:
    try:
        raise ValueError("why")
    except ValueError:
        logger.exception("failed")
    line = json.loads(pipe[0].readline())
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("ValueError: why")


@pytest.mark.parametrize("value", [object(), "\udcff", b"\xff", {1, 2}, float("inf")])
def test_any_value_can_be_logged(pipe: Any, logger: logging.Logger, value: object) -> None:
    logger.info("value", extra={"value": value})
    assert "value" in json.loads(pipe[0].readline())


def test_a_wrong_log_call_does_not_break_its_caller(pipe: Any, logger: logging.Logger) -> None:
    logger.info("%d and %d", 1)  # noqa: PLE1206 - the point of it
    line = json.loads(pipe[0].readline())
    assert "cannot be formatted" in line["message"]
    assert "test_logs.py" in line["message"]


def test_a_reader_that_stops_costs_lines_and_no_time(
    pipe: Any, handler: BufferedHandler, logger: logging.Logger
) -> None:
    text = "x" * 10_000
    done = threading.Event()

    def log() -> None:
        for number in range(1000):
            logger.info(text, extra={"number": number})
        done.set()

    thread = threading.Thread(target=log, daemon=True)
    thread.start()
    assert done.wait(10), "a full pipe blocked the caller"
    thread.join()
    assert handler._held <= 100_000

    # Once it reads again, it gets what was held, and the count of the rest.
    numbers: list[int] = []
    dropped = 0
    while len(numbers) + dropped < 1000:
        line = json.loads(pipe[0].readline())
        if "number" in line:
            numbers.append(line["number"])
        else:
            dropped += int(line["message"].split()[0])
    assert numbers == sorted(set(numbers))
    assert dropped > 900
    logger.info("again")
    assert json.loads(pipe[0].readline())["message"] == "again"


def test_close_does_not_wait_for_ever(pipe: Any, handler: BufferedHandler) -> None:
    for _ in range(20):
        handler.emit(logging.makeLogRecord({"msg": "x" * 10_000}))
    closed = threading.Thread(target=handler.close, daemon=True)
    closed.start()
    closed.join(10)
    assert not closed.is_alive()
    while pipe[0].read1(1 << 20).count(b"\n") == 0:
        continue


def test_a_reader_that_is_gone_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    handler = BufferedHandler(writing)
    handler.emit(logging.makeLogRecord({"msg": "to nobody"}))
    handler.flush()
    assert handler._held == 0
    handler.close()
    os.close(writing)


def test_text_for_people() -> None:
    def text(level: int) -> str:
        record = logging.LogRecord("headrace.app", level, "", 0, "slow %s", ("disk",), None)
        record.model = "m"
        return TextFormatter().format(record)

    clock = r"\d\d:\d\d:\d\d\.\d{3}"
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("t")
    with tracer.start_as_current_span("s") as span:
        calm, wrong = text(logging.INFO), text(logging.WARNING)
    assert re.fullmatch(rf"{clock} INFO    headrace\.app: slow disk model=m", calm)
    # By which the rest of the story is found.
    trace_id = trace.format_trace_id(span.get_span_context().trace_id)
    assert re.fullmatch(
        rf"{clock} WARNING headrace\.app: slow disk trace_id={trace_id} model=m", wrong
    )


async def test_lines_carry_what_their_task_is_about(pipe: Any, logger: logging.Logger) -> None:
    async def request(name: str) -> None:
        bind(model=name)
        await both.wait()
        bind(runner_id=f"r-{name}")
        logger.info("served")
        logger.info("another's", extra={"model": "other"})

    both = asyncio.Barrier(2)
    await asyncio.gather(request("a"), request("b"))
    logger.info("of nobody")
    lines = [json.loads(pipe[0].readline()) for _ in range(5)]
    about = [(line.get("model"), line.get("runner_id")) for line in lines]
    assert sorted(about[:4]) == [("a", "r-a"), ("b", "r-b"), ("other", "r-a"), ("other", "r-b")]
    assert about[4] == (None, None)
