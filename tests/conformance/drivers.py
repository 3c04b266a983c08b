"""The SDKs, and how each one's driver is built, started and talked to."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.clients import typescript

ROOT = Path(__file__).parents[2]
_CLIENTS = ROOT / "client"
_PATIENCE = 120.0
"""Seconds for an answer, which has a deadline of its own in all cases but a few."""


@dataclass(frozen=True)
class Sdk:
    """One language's."""

    name: str
    needs: Sequence[str]
    """Programs without which it cannot be built."""
    builds: Callable[[], None] | Sequence[str]
    """What builds it, or a command in `folder`. It does little the second time."""
    starts: Sequence[str]
    folder: Path = ROOT

    def missing(self) -> list[str]:
        """Of what it needs."""
        return [program for program in self.needs if shutil.which(program) is None]

    def build(self) -> None:
        """Raises AssertionError, with the output."""
        if callable(self.builds):
            self.builds()
            return
        if not self.builds:
            return
        built = subprocess.run(
            self.builds,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert built.returncode == 0, built.stdout[-8000:]


SDKS = (
    Sdk("python", (), (), (sys.executable, "-m", "tests.conformance.driver")),
    Sdk(
        "typescript",
        ("node", "npm"),
        typescript.build,
        ("node", "build/conformance/driver.js"),
        _CLIENTS / "typescript",
    ),
    Sdk(
        "go",
        ("go",),
        ("go", "build", "-o", "build/conformance", "./internal/conformance"),
        ("build/conformance",),
        _CLIENTS / "go",
    ),
    Sdk(
        "java",
        ("java", "mvn"),
        ("mvn", "-q", "-B", "package", "-DskipTests"),
        ("java", "-jar", "conformance/target/conformance.jar"),
        _CLIENTS / "java",
    ),
    Sdk(
        "rust",
        ("cargo",),
        ("cargo", "build", "--quiet", "--locked", "-p", "headrace-conformance"),
        ("target/debug/headrace-conformance",),
        _CLIENTS / "rust",
    ),
)


class Driver:
    """A running driver. Use it in a `with` block."""

    def __init__(self, sdk: Sdk) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("HEADRACE_")}
        program, *arguments = sdk.starts
        if (sdk.folder / program).exists():
            program = str(sdk.folder / program)
        self.sdk = sdk
        self._connected: dict[str, Any] | None = None
        self._process = subprocess.Popen(
            [program, *arguments],
            cwd=sdk.folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._read = b""

    def begin(self, command: Mapping[str, Any]) -> None:
        """Send a command; `end` gives its answer."""
        assert self._process.stdin is not None
        if command["do"] == "connect":
            self._connected = None
        self._process.stdin.write(json.dumps(command, separators=(",", ":")).encode() + b"\n")
        self._process.stdin.flush()

    def end(self) -> dict[str, Any]:
        """The answer to the command that was begun."""
        try:
            answer: dict[str, Any] = json.loads(self._line())
        except BaseException:
            # What it answers later would be taken for the answer to another command.
            self._process.kill()
            raise
        return answer

    def _line(self) -> bytes:
        assert self._process.stdout is not None
        end = time.monotonic() + _PATIENCE
        while b"\n" not in self._read:
            left = max(0.0, end - time.monotonic())
            ready, _, _ = select.select([self._process.stdout], [], [], left)
            more = os.read(self._process.stdout.fileno(), 1 << 20) if ready else b""
            assert ready, f"no answer within {_PATIENCE:g} s"
            assert more, f"the driver ended with {self._process.wait(10)}"
            self._read += more
        line, _, self._read = self._read.partition(b"\n")
        return line

    def ask(self, do: str, **command: Any) -> dict[str, Any]:
        """One command and its answer."""
        self.begin({"do": do, **command})
        return self.end()

    def at(self, target: str, **options: Any) -> Self:
        """This, with a client of that target: the one that it has, if it is such a one."""
        wanted = {"target": target, **options}
        if wanted != self._connected:
            answer = self.ask("connect", **wanted)
            assert answer == {}, answer
            self._connected = wanted
        return self

    def close(self) -> None:
        """It ends with its input."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            assert self._process.wait(20) == 0
        finally:
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()
            self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
