"""A scripted controller, and the command line that talks to it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.cli.app import run
from tests.unit.cli.running import Run
from tests.unit.sdk.fake import Fake, serving


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    with serving(tmp_path / "c.sock") as fake:
        monkeypatch.setenv("HEADRACE_HOST", fake.target)
        yield fake


@pytest.fixture
def headrace(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    def call(*arguments: str, stdin: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        code = run(arguments)
        out, err = capsys.readouterr()
        return code, out, err

    return call
