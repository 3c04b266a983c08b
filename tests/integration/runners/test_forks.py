"""A controller that is busy with gRPC starts processes all the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FORKS = Path(__file__).with_name("forks.py")


def test_no_child_of_a_busy_controller_dies_before_it_runs(sockets: Path) -> None:
    ended = subprocess.run(
        [sys.executable, str(FORKS), str(sockets), "300"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ended.stdout == "{0: 300}\n", ended.stderr
