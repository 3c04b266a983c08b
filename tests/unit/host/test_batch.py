"""The policy by which the system schedules a process, as its threads and children find it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from headrace.host.batch import run_as_batch

linux = pytest.mark.skipif(sys.platform != "linux", reason="the policies are Linux's")

_SCRIPT = """\
import os, subprocess, sys, threading
from headrace.host.batch import run_as_batch
if {first} != os.SCHED_OTHER:
    os.sched_setscheduler(0, {first}, os.sched_param(0))
run_as_batch()
found = [os.sched_getscheduler(0)]
thread = threading.Thread(target=lambda: found.append(os.sched_getscheduler(0)))
thread.start()
thread.join()
ask = "import os; print(os.sched_getscheduler(0))"
child = subprocess.run([sys.executable, "-c", ask], capture_output=True, check=True)
print(*found, int(child.stdout))
"""


def found(first: int) -> set[int]:
    """The policies of a process that had `first`, of its thread, and of its child."""
    command = [sys.executable, "-c", _SCRIPT.format(first=first)]
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    return set(map(int, done.stdout.split()))


@linux
def test_threads_and_children_are_batch_too() -> None:
    assert found(os.SCHED_OTHER) == {os.SCHED_BATCH}


@linux
def test_a_policy_that_was_chosen_stays() -> None:
    assert found(os.SCHED_IDLE) == {os.SCHED_IDLE}


def test_elsewhere_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise AssertionError

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(os, "sched_getscheduler", refuse, raising=False)
    run_as_batch()
