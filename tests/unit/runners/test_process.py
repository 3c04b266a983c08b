"""The parts of starting a runner that need no process."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import pytest

from headrace_server.runners.spawn import MAX_SOCKET_PATH, make_socket_dir
from headrace_server.runners.spec import RunnerSpec


def test_a_socket_folder_is_private(tmp_path_factory: pytest.TempPathFactory) -> None:
    base = tmp_path_factory.mktemp("s")
    folder = make_socket_dir({"XDG_RUNTIME_DIR": str(base)})
    assert folder.parent == base
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("missing", [False, True])
def test_a_runtime_folder_that_will_not_do_is_passed_over(tmp_path: Path, missing: bool) -> None:
    base = tmp_path / ("gone" if missing else "d" * MAX_SOCKET_PATH)
    if not missing:
        base.mkdir()
    folder = make_socket_dir({"XDG_RUNTIME_DIR": str(base)})
    try:
        assert folder.parent == Path(tempfile.gettempdir())
        assert len(os.fsencode(folder / "r.sock")) <= MAX_SOCKET_PATH
    finally:
        folder.rmdir()


def test_the_command_line_says_the_context_only_when_there_is_one() -> None:
    spec = RunnerSpec("r1", "tiny", "sha256:ab", Path("/m"))
    assert "--context" not in spec.arguments("unix:/r", 5)
    words = RunnerSpec("r1", "tiny", "sha256:ab", Path("/m"), context=512).arguments("unix:/r", 5)
    assert words[words.index("--context") + 1] == "512"
    assert words[words.index("--report-fd") + 1] == "5"


def test_a_runner_logs_what_its_controller_does() -> None:
    spec = RunnerSpec("r1", "tiny", "sha256:ab", Path("/m"), log_level="debug")
    words = spec.arguments("unix:/r", 5)
    assert words[words.index("--log-level") + 1] == "debug"
