"""Run the tests in two lanes side by side: those of whole processes, and all others.

On two cores that takes hardly longer than the longer lane alone, as processes wait for each other.
The first lane is seen as it runs, the second one when it is done. Arguments are pytest's, for both.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent / "tests"
_PROCESSES = ("chaos", "e2e")
"""Folders whose tests start controllers all the time. What is left takes about as long."""
_NOTHING = 5
"""pytest's exit code where a lane has no test of those that were asked for."""


def main(arguments: list[str]) -> int:
    """Gives 0 where both lanes have passed, else the exit code of one that has not."""
    folders = {path.relative_to(TESTS).parts[0] for path in TESTS.rglob("test_*.py")}
    first = [str(TESTS / name) for name in _PROCESSES]
    # What is quick and touches no process comes first: whoever waits for a mistake waits less.
    others = sorted(folders.difference(_PROCESSES), key=lambda name: (name != "unit", name))
    pytest = [sys.executable, "-m", "pytest", *arguments]
    with tempfile.TemporaryFile() as told:
        second = subprocess.Popen(
            [*pytest, *(str(TESTS / name) for name in others)],
            stdout=told,
            stderr=subprocess.STDOUT,
        )
        try:
            codes = [subprocess.run([*pytest, *first], check=False).returncode]
            codes.append(second.wait())
        finally:
            if second.poll() is None:
                second.terminate()
                second.wait()
        told.seek(0)
        sys.stdout.write(told.read().decode(errors="replace"))
    return next((code for code in codes if code not in (0, _NOTHING)), 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
