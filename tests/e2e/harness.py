"""Real processes for the tests: controllers, the command line, and what they leave behind.

Every wait is bounded. Nothing here knows what a test expects.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
import psutil

from headrace import AsyncClient
from headrace.rpc.options import channel_options

T = TypeVar("T")

MODEL = "smollm2:135m"
QUESTION = "What is the capital of France? Explain briefly."
ANSWER = "Le Grand Paris, la femme de la France, la femme de la France"
"""How SmolLM2 begins to answer QUESTION greedily, as llama.cpp does. What comes next, behind 17
tokens, depends on what is rounded: a comma and a full stop are as likely."""

PATIENCE = 60.0
"""Seconds for what takes a few on an idle machine."""

_MARK = "HEADRACE_TEST_MARK"


class Place:
    """A folder for sockets, and the environment of processes that put theirs into it.

    Whatever is started with `environment` can be found again, also when its parent is gone.
    """

    def __init__(self, home: Path, extra: Mapping[str, str] | None = None) -> None:
        self.home = home
        # Not pytest's own folder: the path of a socket has 107 bytes at most.
        self.sockets = Path(tempfile.mkdtemp(prefix="hrt-", dir="/tmp"))
        self._mark = uuid.uuid4().hex
        inherited = {
            k: v for k, v in os.environ.items() if not k.startswith(("HEADRACE_", "OTEL_"))
        }
        self.environment = {
            **inherited,
            "HEADRACE_HOME": str(home),
            # Nobody listens here unless a test says otherwise.
            "HEADRACE_HOST": f"unix:{self.sockets}/none.sock",
            "XDG_RUNTIME_DIR": str(self.sockets),
            _MARK: self._mark,
            **(extra or {}),
        }

    def processes(self) -> list[psutil.Process]:
        """Every living process that was started from here."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(_MARK) == self._mark and alive(process):
                    found.append(process)
        return found

    def close(self) -> None:
        """End what is left."""
        for process in self.processes():
            with suppress(psutil.Error):
                process.kill()
        shutil.rmtree(self.sockets, ignore_errors=True)


class Controller(Place):
    """A controller process of one's own. Use it in a `with` block."""

    def __init__(
        self,
        home: Path,
        *arguments: str,
        listen: str = "",
        extra: Mapping[str, str] | None = None,
        program: str = "headrace_server",
    ) -> None:
        """Starts it and waits until it listens."""
        super().__init__(home, extra)
        listen = listen or f"unix:{self.sockets}/c.sock"
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the rest)
        self._last_words = ""
        ready, ready_writer = os.pipe()
        command = [sys.executable, "-m", program, "--listen", listen]
        command += ["--home", str(home), "--ready-fd", str(ready_writer), "--parent", "stdin"]
        # Models that share two cores with each other and with the tests are quickest on one each.
        # A spare runner is no runner of a model: tests that want one say so.
        command += ["--log-format", "json", "--threads", "1", "--no-spare", *arguments]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=self._log,
            pass_fds=(ready_writer,),
            env=self.environment,
            start_new_session=True,
        )
        os.close(ready_writer)
        try:
            readable, _, _ = select.select([ready], [], [], PATIENCE)
            line = os.read(ready, 4096) if readable else b""
            if not line:
                raise RuntimeError(f"the controller did not come up:\n{self.log_text()}")
        except BaseException:
            self.close()
            raise
        finally:
            os.close(ready)
        self.target: str = json.loads(line)["address"]
        self.environment["HEADRACE_HOST"] = self.target

    @property
    def pid(self) -> int:
        return self.process.pid

    def runners(self) -> list[psutil.Process]:
        """Its runner processes."""
        found = []
        for child in psutil.Process(self.pid).children():
            with suppress(psutil.Error):
                if "headrace_runner" in child.cmdline() and alive(child):
                    found.append(child)
        return found

    def runner(self) -> psutil.Process:
        """Its only runner, once it is there: a child has no command line for a moment."""
        until = time.monotonic() + PATIENCE
        while len(found := self.runners()) != 1 and time.monotonic() < until:
            time.sleep(0.01)  # noqa: TID251 - nothing tells of it
        (runner,) = found
        return runner

    def kill(self) -> None:
        """SIGKILL, and reap."""
        self.process.kill()
        self.process.wait(PATIENCE)

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """Its exit status."""
        return self.process.wait(PATIENCE)

    def log_text(self) -> str:
        """All that it has written so far; its end alone once this is closed."""
        if self._log.closed:
            return self._last_words
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), size, 0).decode(errors="replace")

    def log(self) -> list[dict[str, Any]]:
        """Its log lines, runners' included; one that is still being written is left out."""
        whole, _, _ = self.log_text().rpartition("\n")
        return [json.loads(line) for line in whole.splitlines() if line.startswith("{")]

    async def logged(self, text: str = "", count: int = 1, **fields: Any) -> list[dict[str, Any]]:
        """Its log lines with this text and these fields, once there are so many at least.

        A line is written a moment after what it tells of.
        """

        def found() -> list[dict[str, Any]]:
            lines = (line for line in self.log() if text in line["message"])
            return [line for line in lines if fields.items() <= line.items()]

        async with asyncio.timeout(PATIENCE):
            while len(lines := found()) < count:  # noqa: ASYNC110 - nothing else tells of it
                await asyncio.sleep(0.02)
        return lines

    def close(self) -> None:
        """Stop it, reap it, and end what it left behind."""
        try:
            self.process.terminate()
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()
        finally:
            if self.process.stdin:
                self.process.stdin.close()
            self._last_words = self.log_text()[-8000:]
            self._log.close()
            super().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            print(self.log_text()[-8000:])  # shown with the failure
        self.close()


StartController = Callable[..., Controller]


def alive(process: psutil.Process) -> bool:
    """Whether it still runs; a zombie does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def gone(processes: Sequence[psutil.Process], timeout: float) -> bool:
    """Whether all have ended within `timeout` seconds."""
    _, left = psutil.wait_procs(processes, timeout)
    return not any(alive(process) for process in left)


def runner_address(runner: psutil.Process) -> str:
    """Where a runner listens."""
    words = runner.cmdline()
    return words[words.index("--listen") + 1]


def headrace(
    place: Place, *arguments: str, stdin: str | None = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    ended = subprocess.run(
        [sys.executable, "-m", "headrace.cli.main", *arguments],
        env=place.environment,
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert not check or ended.returncode == 0, ended.stderr
    return ended


def start_headrace(place: Place, *arguments: str) -> subprocess.Popen[str]:
    """Start the command line; read its output and wait for it."""
    return subprocess.Popen(
        [sys.executable, "-m", "headrace.cli.main", *arguments],
        env=place.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def eventually(look: Callable[[], Any]) -> Any:
    """What a look gives, once it gives something: at what tells other processes of nothing."""
    until = time.monotonic() + PATIENCE
    while not (found := look()) and time.monotonic() < until:
        time.sleep(0.05)  # noqa: TID251 - that is what it is for
    return found


def aio_channel(target: str) -> grpc.aio.Channel:
    """A channel without anything of the SDK around it, and without retries."""
    return grpc.aio.insecure_channel(
        target, options=[*channel_options(target), ("grpc.enable_retries", 0)]
    )


def borrow_home(model_home: Path, home: Path) -> Path:
    """A store of one's own with the models of another, whose files are shared and not copied."""
    shutil.copytree(model_home / "models", home / "models")
    (home / "snapshots").mkdir()
    for snapshot in (model_home / "snapshots").iterdir():
        (home / "snapshots" / snapshot.name).symlink_to(snapshot.resolve())
    # A fast BLAS is prepared once and for all.
    (model_home / "cache").mkdir(exist_ok=True)
    (home / "cache").symlink_to(model_home / "cache")
    return home


def python_path(folder: Path, code: str) -> str:
    """A PYTHONPATH by which every Python process runs `code` at its start."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(code)
    return os.pathsep.join(e for e in (str(folder), os.environ.get("PYTHONPATH")) if e)


async def killed_under(client: AsyncClient, call: Coroutine[Any, Any, T]) -> T:
    """What a call gives whose runner, the only one, is killed while it waits for it."""
    (runner,) = (await client.list_runners()).runners
    process = psutil.Process(runner.pid)
    # So it cannot be done before it is killed.
    process.send_signal(signal.SIGSTOP)
    waiting = asyncio.create_task(call)
    try:
        async with asyncio.timeout(PATIENCE):
            while not (await client.list_runners()).runners[0].active_requests:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    finally:
        process.kill()
    answer = await waiting
    (other,) = (await client.list_runners()).runners
    assert other.pid != runner.pid
    return answer
