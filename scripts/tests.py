"""Run the tests in two lanes side by side: what waits for processes, and what computes by itself.

On two cores that takes hardly longer than the first lane alone. The first one is seen as it runs,
the second one when it is done. Arguments are pytest's, for both.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent / "tests"
_ALONE = "unit"
_NOTHING = 5
"""pytest's exit code where a lane has no test of those that were asked for."""


def main(arguments: list[str]) -> int:
    """Gives 0 where both lanes have passed, else the exit code of one that has not."""
    folders = sorted(path.parent for path in TESTS.glob("*/test_*.py"))
    folders += sorted(path.parent for path in TESTS.glob("*/*/test_*.py"))
    named = dict.fromkeys(folder.relative_to(TESTS).parts[0] for folder in folders)
    waiting = [str(TESTS / name) for name in named if name != _ALONE]
    pytest = [sys.executable, "-m", "pytest", *arguments]
    with tempfile.TemporaryFile() as told:
        second = subprocess.Popen(
            [*pytest, str(TESTS / _ALONE)], stdout=told, stderr=subprocess.STDOUT
        )
        try:
            codes = [subprocess.run([*pytest, *waiting], check=False).returncode]
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
