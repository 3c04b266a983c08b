"""A command starts a controller of its own, and leaves nothing behind, however it ends."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[2]


@dataclass
class Shell:
    """Starts `headrace` where the stand-in for the controller is installed."""

    directory: Path
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def env(self, **more: str) -> dict[str, str]:
        paths = (HERE / "stand_in", ROOT / "client/python", ROOT)
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "HEADRACE_HOST": f"unix:{self.directory}/none.sock",
            "XDG_RUNTIME_DIR": str(self.directory),
            "STAND_IN_DIARY": str(self.directory / "diary"),
            **more,
        }

    def start(self, *arguments: str, **env: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "headrace.cli.main", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.env(**env),
        )
        self.started.append(process)
        return process

    def diary(self) -> dict[str, str]:
        """What the stand-in noted: one word and its value a line."""
        text = (self.directory / "diary").read_text()
        return {
            word: value for word, _, value in (line.partition(" ") for line in text.split("\n"))
        }

    def nothing_is_left(self) -> bool:
        """Whether neither process nor socket nor directory remains."""
        try:
            os.kill(int(self.diary()["pid"]), 0)
        except ProcessLookupError:
            return [path.name for path in self.directory.iterdir()] == ["diary"]
        return False


@pytest.fixture
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    # A short path: sockets go into it.
    shell = Shell(tmp_path_factory.mktemp("sh"))
    yield shell
    for process in shell.started:
        process.kill()
        process.communicate()


def test_an_answer_and_nothing_left(shell: Shell) -> None:
    process = shell.start("run", "m:1", "hi")
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, "Hello\n"), err
    assert err.startswith("2 tokens · ")
    assert err.count("\n") == 1
    diary = shell.diary()
    assert diary["preload"] == "m:1"
    assert "SIGTERM" in diary
    assert "ended" in diary
    assert shell.nothing_is_left()


def test_a_store_command_preloads_nothing(shell: Shell) -> None:
    process = shell.start("list")
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out.splitlines()[1].split()[0]) == (0, "m:1"), err
    assert shell.diary()["preload"] == ""  # Said, so that no file or environment says otherwise.
    assert shell.nothing_is_left()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_mid_answer(shell: Shell, number: signal.Signals, code: int) -> None:
    process = shell.start("run", "m:1", "hi", STAND_IN_MODE="endless")
    assert process.stdout
    assert process.stdout.read(3) == "Hel"
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (code, "\n"), err
    assert "Traceback" not in err
    assert shell.nothing_is_left()


def test_a_killed_command_takes_its_controller_along(shell: Shell) -> None:
    process = shell.start("run", "m:1", "hi", STAND_IN_MODE="endless")
    assert process.stdout
    assert process.stdout.read(3) == "Hel"
    # The pidfd is readable when the process has ended, whosever child it is.
    controller = os.pidfd_open(int(shell.diary()["pid"]))
    process.kill()
    try:
        assert select.select([controller], [], [], 10)[0]
    finally:
        os.close(controller)
    assert "orphaned" in shell.diary()


def test_a_controller_that_does_not_start(shell: Shell) -> None:
    process = shell.start("run", "m:1", "hi", STAND_IN_MODE="broken")
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (4, "")
    assert "could not be started: it ended with exit code 1" in err
    assert "the model store is on fire" in err
    assert shell.nothing_is_left()


def test_a_controller_that_dies(shell: Shell) -> None:
    process = shell.start("run", "m:1", "hi", STAND_IN_MODE="endless")
    assert process.stdout
    assert process.stdout.read(3) == "Hel"
    os.kill(int(shell.diary()["pid"]), signal.SIGUSR1)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (4, "\n")
    assert "the private controller has ended" in err
    assert "out of luck" in err


def test_a_chat_on_a_terminal(shell: Shell) -> None:
    terminal, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "headrace.cli.main", "run", "m:1"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=shell.env(TERM="dumb", STAND_IN_MODE="endless"),
        start_new_session=True,
    )
    os.close(theirs)
    try:
        read_until(terminal, b">>> ")
        os.write(terminal, b"hi\n")
        read_until(terminal, b"Hel")
        os.kill(process.pid, signal.SIGINT)
        read_until(terminal, b"stopped")
        read_until(terminal, b">>> ")
        os.write(terminal, b"/exit\n")
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(terminal)
    assert shell.nothing_is_left()


def read_until(terminal: int, wanted: bytes) -> None:
    """Reads from the terminal up to these bytes."""
    seen = b""
    while wanted not in seen:
        assert select.select([terminal], [], [], 20)[0], seen
        seen += os.read(terminal, 1)


def test_serve_becomes_the_controller(shell: Shell) -> None:
    process = shell.start("serve", "--help")
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert "--ready-fd" in out
    process = shell.start("serve", "--unknown", "x")
    assert "--unknown" in process.communicate(timeout=30)[1]
    assert process.returncode == 2


def test_what_is_piped_in_must_be_utf8(shell: Shell) -> None:
    for command in (("run", "m:1"), ("tokenize", "m:1")):
        process = subprocess.run(
            [sys.executable, "-m", "headrace.cli.main", *command],
            input=b"\xff\xfe",
            capture_output=True,
            env=shell.env(PYTHONIOENCODING="utf-8:strict"),
            check=False,
        )
        assert process.returncode == 2
        assert b"is not UTF-8" in process.stderr


def test_without_the_command_line_installed() -> None:
    code = """
import sys
sys.modules["click"] = None
from headrace.cli.main import main
main()
"""
    process = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True
    )
    assert process.returncode == 1
    assert "pip install 'headrace[cli]'" in process.stderr


def test_help_imports_neither_grpc_nor_rich() -> None:
    code = """
import sys
from headrace.cli.app import run
assert run(["--help"]) == 0
assert run(["run", "--help"]) == 0
heavy = {"grpc", "rich", "opentelemetry", "google.protobuf", "asyncio"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
