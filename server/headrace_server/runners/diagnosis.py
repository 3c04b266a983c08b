"""Why did a runner die? From its exit status, what it reported and what it printed last. Pure.

Each runner is explained by its own output alone, and only by lines printed just before the end.
"""

from __future__ import annotations

import errno
import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from headrace.errors import HeadraceError, LoadFailed, ModelCorrupt, UnsupportedModel
from headrace.host.handover import Failed, FailureCause

DeathCause = Literal[FailureCause, "NATIVE_ABORT", "SIGNAL", "STALLED", "EXITED"]

_NATIVE_SIGNALS = {"SIGABRT", "SIGSEGV", "SIGBUS", "SIGILL", "SIGFPE", "SIGTRAP"}
_OUT_OF_MEMORY = re.compile(
    r"insufficient memory|out of memory|kIOGPUCommandBufferCallbackErrorOutOfMemory"
    r"|std::bad_alloc|\bMemoryError\b|cudaErrorMemoryAllocation|CUDA_ERROR_OUT_OF_MEMORY"
    r"|\[malloc[^\]]*\] (unable|attempting|failed) to allocate|maximum allowed buffer size",
    re.IGNORECASE,
)
_DETAIL_CHARACTERS = 2000
_SCARCE: dict[int | None, DeathCause] = {
    errno.EAGAIN: "EXITED",
    errno.EMFILE: "EXITED",
    errno.ENFILE: "EXITED",
    errno.ENOMEM: "OUT_OF_MEMORY",
}
"""What may be there again in a moment. Any other error is the same with every try."""


@dataclass(frozen=True)
class Verdict:
    """Why the controller itself killed a runner."""

    cause: DeathCause
    reason: str
    """Completes "the runner was killed: "."""


@dataclass(frozen=True)
class Death:
    """The end of a runner."""

    cause: DeathCause
    message: str
    """One sentence, fit for a client: it quotes nothing that the process printed."""
    detail: str = ""
    """The last lines it printed, for the operator."""
    file: str | None = None
    """The damaged file, with MODEL_CORRUPT."""
    returncode: int | None = None
    """Negative for a signal; None if the process never ran."""
    expected: bool = False
    """It was told to stop."""
    perhaps_memory: bool = False
    """It was killed where nobody counts the kernel's kills for lack of memory: it may be one."""


def diagnose(
    returncode: int,
    last_lines: Sequence[str],
    *,
    reported: Failed | None = None,
    verdict: Verdict | None = None,
    stopping: bool = False,
    oom_killed: bool | None = None,
) -> Death:
    """Name the cause of a death.

    `last_lines`: what the process printed outside its log in its last moments. `reported`: what it
    said itself. `verdict`: why it was killed, if it was. `stopping`: it was told to go.
    `oom_killed`: whether the kernel killed a process for lack of memory just then; None: unknown.
    What was decided outweighs what was said, and both outweigh what can be guessed from a text.
    """
    cause, message = _explain(
        returncode, last_lines, reported, verdict, stopping=stopping, oom_killed=oom_killed
    )
    unknown = returncode == -signal.SIGKILL and oom_killed is None and not stopping
    return Death(
        cause=cause,
        message=message,
        detail="\n".join(last_lines)[-_DETAIL_CHARACTERS:],
        file=reported.file if reported else None,
        returncode=returncode,
        expected=stopping and not verdict,
        perhaps_memory=cause == "SIGNAL" and unknown,
    )


def not_started(error: OSError) -> Death:
    """The end of a runner for which no process could be made."""
    cause = _SCARCE.get(error.errno, "LOAD_FAILED")
    return Death(cause, "the runner could not be started", detail=str(error))


def _explain(
    returncode: int,
    last_lines: Sequence[str],
    reported: Failed | None,
    verdict: Verdict | None,
    *,
    stopping: bool,
    oom_killed: bool | None,
) -> tuple[DeathCause, str]:
    if verdict:
        return verdict.cause, f"the runner was killed: {verdict.reason}"
    if reported:
        return reported.cause, reported.message
    if returncode == 0:
        how = "stopped" if stopping else "stopped, though nothing of this controller's told it to"
        return "EXITED", f"the runner {how}"
    if any(_OUT_OF_MEMORY.search(line) for line in last_lines):
        return "OUT_OF_MEMORY", "the runner ran out of memory"
    if returncode > 0:
        return "EXITED", f"the runner exited with status {returncode}"
    name = _signal_name(-returncode)
    if name in _NATIVE_SIGNALS:
        return "NATIVE_ABORT", f"the runner crashed in native code ({name})"
    if name == "SIGKILL" and oom_killed:
        return "OUT_OF_MEMORY", "the system killed the runner, for it was short of memory"
    if stopping:
        return "SIGNAL", f"the runner did not stop by itself and was ended by {name}"
    unknown = name == "SIGKILL" and oom_killed is None
    hint = ", perhaps by the system for lack of memory" if unknown else ""
    return "SIGNAL", f"the runner was killed by {name}{hint}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal has no name
        return f"signal {number}"


def load_error(death: Death, model: str) -> HeadraceError:
    """What one who waits for a model is told when its runner died instead of serving."""
    match death.cause:
        case "MODEL_CORRUPT":
            return ModelCorrupt(death.message, file=death.file or "")
        case "UNSUPPORTED_MODEL":
            return UnsupportedModel(death.message)
        case cause:
            return LoadFailed(f"{model} could not be loaded: {death.message}", cause=cause)
