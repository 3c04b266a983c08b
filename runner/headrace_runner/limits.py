"""What a runner asks of the system for its own process, at its start.

Set by the process itself: between a fork and the program nothing of Python's may run. What the
system refuses stays as it was; none of it is worth a start that fails.
"""

from __future__ import annotations

import contextlib
import resource
from pathlib import Path

MAX_FILES = 65_536
"""Open files at most, where the system would allow more: a bug is to run into a limit too."""
OOM_SCORE = 200
"""Thousandths of the memory that a runner counts as holding beside what it does, when the kernel
looks for a process to kill: it comes before the controller, which can start another."""

_OOM_SCORE_FILE = Path("/proc/self/oom_score_adj")
_MAX_OOM_SCORE = 1000


def limit_process() -> None:
    """Set the limits: no core dumps, as many files as are sane, and the first to go when the
    machine runs out of memory.

    Once in a process's life, since the last adds to what is inherited, and after MLX is imported:
    mlx-lm lowers the limit of open files, the hard one too, to 4096.
    """
    # The soft limit alone, so that it can be raised again.
    _set(resource.RLIMIT_CORE, 0)
    _set(resource.RLIMIT_NOFILE, files_wanted(*resource.getrlimit(resource.RLIMIT_NOFILE)))
    with contextlib.suppress(OSError, ValueError):  # No such file, but on Linux.
        _OOM_SCORE_FILE.write_text(str(oom_score(int(_OOM_SCORE_FILE.read_text()))))


def allow_core_dumps() -> None:
    """Let a crash write the process's memory to disk: as much as its model takes."""
    _set(resource.RLIMIT_CORE, resource.getrlimit(resource.RLIMIT_CORE)[1])


def files_wanted(soft: int, hard: int) -> int:
    """The limit of open files to ask for: never less than there is."""
    if soft == resource.RLIM_INFINITY:
        return soft
    most = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    return max(soft, most)


def oom_score(inherited: int) -> int:
    """The adjustment to ask for, given that of the controller."""
    return min(inherited + OOM_SCORE, _MAX_OOM_SCORE)


def _set(kind: int, soft: int) -> None:
    # macOS allows fewer files than its hard limit says.
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(kind, (soft, resource.getrlimit(kind)[1]))
