"""From an exit status and the last lines to a cause."""

from __future__ import annotations

import errno
import signal

import pytest

from headrace.host.handover import Failed
from headrace_server.runners.diagnosis import Verdict, diagnose, not_started
from headrace_server.scheduling.hearing import FINAL


@pytest.mark.parametrize(
    ("returncode", "lines", "cause"),
    [
        (0, [], "EXITED"),
        (3, ["Traceback (most recent call last):", "ValueError: no"], "EXITED"),
        (1, ["MemoryError"], "OUT_OF_MEMORY"),
        (-signal.SIGABRT, ["libc++abi: terminating due to uncaught exception"], "NATIVE_ABORT"),
        (-signal.SIGSEGV, ["Fatal Python error: Segmentation fault"], "NATIVE_ABORT"),
        (
            -signal.SIGABRT,
            ["[METAL] Command buffer execution failed: Insufficient Memory (00000008:kIOGPU…)"],
            "OUT_OF_MEMORY",
        ),
        (-signal.SIGABRT, ["[malloc] Unable to allocate 34359738368 bytes."], "OUT_OF_MEMORY"),
        (-signal.SIGABRT, ["what():  std::bad_alloc"], "OUT_OF_MEMORY"),
        (1, ["[metal::malloc] … greater than the maximum allowed buffer size"], "OUT_OF_MEMORY"),
        (1, ["cudaMalloc failed: out of memory"], "OUT_OF_MEMORY"),
        (-signal.SIGKILL, [], "SIGNAL"),
        (-signal.SIGTERM, [], "SIGNAL"),
        (-40, [], "SIGNAL"),
        # A clean exit needs no explanation, whatever was printed.
        (0, ["out of memory"], "EXITED"),
    ],
)
def test_cause(returncode: int, lines: list[str], cause: str) -> None:
    death = diagnose(returncode, lines)
    assert death.cause == cause
    assert death.returncode == returncode
    assert not death.expected


def test_what_was_decided_comes_before_what_was_said_and_that_before_what_was_printed() -> None:
    reported = Failed("MODEL_CORRUPT", "cut short", "model.safetensors")
    verdict = Verdict("STALLED", "no step for 30 s")
    said = diagnose(1, ["out of memory"], reported=reported)
    assert (said.cause, said.message, said.file) == (
        "MODEL_CORRUPT",
        "cut short",
        "model.safetensors",
    )
    decided = diagnose(-9, ["out of memory"], reported=reported, verdict=verdict, stopping=True)
    assert (decided.cause, decided.expected) == ("STALLED", False)
    assert decided.message.endswith("no step for 30 s")


def test_sigkill_hints_at_memory() -> None:
    assert "lack of memory" in diagnose(-signal.SIGKILL, []).message
    assert "lack of memory" not in diagnose(-signal.SIGTERM, []).message


def test_a_kill_that_nobody_counted_may_be_one_for_memory_and_no_other_may() -> None:
    assert diagnose(-signal.SIGKILL, []).perhaps_memory
    assert not diagnose(-signal.SIGKILL, [], oom_killed=False).perhaps_memory
    assert not diagnose(-signal.SIGKILL, [], stopping=True).perhaps_memory
    assert not diagnose(-signal.SIGTERM, []).perhaps_memory
    verdict = Verdict("STALLED", "no step")
    assert not diagnose(-signal.SIGKILL, [], verdict=verdict).perhaps_memory


def test_the_kernels_count_names_the_cause_of_a_sigkill() -> None:
    killed = diagnose(-signal.SIGKILL, [], oom_killed=True)
    assert killed.cause == "OUT_OF_MEMORY"
    # Where the kernel counts and has not counted, memory is not guessed at.
    other = diagnose(-signal.SIGKILL, [], oom_killed=False)
    assert other.cause == "SIGNAL"
    assert "memory" not in other.message
    # What is known better stays.
    verdict = Verdict("STALLED", "no step")
    assert diagnose(-signal.SIGKILL, [], verdict=verdict, oom_killed=True).cause == "STALLED"
    assert diagnose(-signal.SIGSEGV, [], oom_killed=True).cause == "NATIVE_ABORT"


def test_a_stop_that_nobody_ordered_is_said_to_be_one() -> None:
    assert "though" in diagnose(0, []).message
    assert "though" not in diagnose(0, [], stopping=True).message


def test_a_clients_message_quotes_nothing_printed() -> None:
    death = diagnose(-signal.SIGABRT, ["secret prompt", "abort"])
    assert "secret" not in death.message
    assert death.detail == "secret prompt\nabort"


def test_the_detail_is_the_end_of_long_output() -> None:
    death = diagnose(1, ["x" * 100_000, "the end"])
    assert len(death.detail) <= 2000
    assert death.detail.endswith("the end")


@pytest.mark.parametrize(
    ("number", "cause", "final"),
    [
        (errno.EAGAIN, "EXITED", False),
        (errno.EMFILE, "EXITED", False),
        (errno.ENFILE, "EXITED", False),
        (errno.ENOMEM, "OUT_OF_MEMORY", False),
        (errno.ENOENT, "LOAD_FAILED", True),
        (errno.EACCES, "LOAD_FAILED", True),
        (errno.ENOSPC, "LOAD_FAILED", True),
    ],
)
def test_a_process_that_could_not_be_made_for_want_of_something_is_tried_again(
    number: int, cause: str, final: bool
) -> None:
    death = not_started(OSError(number, "no"))
    assert death.cause == cause
    assert (death.cause in FINAL) is final
    assert death.returncode is None
