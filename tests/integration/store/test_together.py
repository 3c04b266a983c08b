"""Processes that change one store at once, whose models share files."""

from __future__ import annotations

import random
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.integration.store.test_kills import is_done, started
from tests.lengths import length
from tests.stores import assert_whole


def churn(home: Path, changes: int, seed: int) -> None:
    print(f"seed {seed}")
    with ExitStack() as stack:
        processes = [
            stack.enter_context(started(home, "churn", own, str(seed + n), str(changes)))
            for n, own in enumerate("ab")
        ]
        for process in processes:
            stack.callback(process.kill)
        assert all(map(is_done, processes))
    assert_whole(home)


def test_two_processes_change_one_store(tmp_path: Path) -> None:
    churn(tmp_path, 40, random.randrange(1 << 32))


@pytest.mark.slow
def test_two_processes_change_one_store_for_long(tmp_path: Path) -> None:
    churn(tmp_path, length(400, 80), random.randrange(1 << 32))
