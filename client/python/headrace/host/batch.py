"""How a process takes part in the sharing of cores: as one that computes.

Several threads work at a token and wait for each other: one of Python, one of MLX, the helpers of
the kernels, and then the controller's, which passes it on. By Linux's usual policy a thread that
wakes may take a core from one that computes, which is in the middle of its part of a product, and
all wait for that part. SCHED_BATCH leaves out just this: who wakes waits until a core is free, or
a slice over, some milliseconds at most. The shares of a busy machine stay as they are.
"""

from __future__ import annotations

import contextlib
import os
import sys


def run_as_batch() -> None:
    """Have Linux schedule this thread, and the threads and processes that it starts from now on, by
    SCHED_BATCH; see sched(7).

    Whoever has chosen a policy for this process, by chrt(1) say, has chosen. On other systems, and
    where the system refuses, nothing changes.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            if os.sched_getscheduler(0) == os.SCHED_OTHER:
                os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
