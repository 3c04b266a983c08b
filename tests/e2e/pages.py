"""The examples of a page of the documentation, and what it takes to run one."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.e2e.harness import Place

DOCS = Path(__file__).parents[2] / "docs"


def examples(page: str) -> list[str]:
    """The programs in Python of a page."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def first_line(example: str) -> str:
    """What a test of an example is called."""
    return example.partition("\n")[0]


def run_example(place: Place, example: str) -> None:
    """See that an example ends well, without a warning, and says something."""
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", example],
        env=place.environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip()
