"""The SDKs, and how each one's driver is built, started and talked to."""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

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
    builds: Sequence[Sequence[str]]
    """Commands, in `folder`; they do nothing the second time."""
    starts: Sequence[str]
    folder: Path = ROOT

    def missing(self) -> list[str]:
        """Of what it needs."""
        return [program for program in self.needs if shutil.which(program) is None]

    def build(self) -> None:
        """Raises subprocess.CalledProcessError, with the output on the standard error."""
        for command in self.builds:
            built = subprocess.run(
                command,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
            if built.returncode:
                print(built.stdout[-8000:])
            built.check_returncode()


SDKS = (
    Sdk("python", (), (), (sys.executable, "-m", "tests.conformance.driver")),
    Sdk(
        "typescript",
        ("node", "npm"),
        (("npm", "ci", "--no-audit", "--no-fund"), ("npm", "run", "conformance:build")),
        ("node", "build/conformance/driver.js"),
        _CLIENTS / "typescript",
    ),
    Sdk(
        "go",
        ("go",),
        (("go", "build", "-o", "build/conformance", "./internal/conformance"),),
        ("build/conformance",),
        _CLIENTS / "go",
    ),
    Sdk(
        "java",
        ("java", "mvn"),
        (("mvn", "-q", "-B", "package", "-DskipTests"),),
        ("java", "-jar", "conformance/target/conformance.jar"),
        _CLIENTS / "java",
    ),
    Sdk(
        "rust",
        ("cargo",),
        (("cargo", "build", "--quiet", "--locked", "-p", "headrace-conformance"),),
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
            text=True,
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._process.stdout.close()
        self._lines.put("")

    def begin(self, command: Mapping[str, Any]) -> None:
        """Send a command; `end` gives its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command, separators=(",", ":")) + "\n")
        self._process.stdin.flush()

    def end(self) -> dict[str, Any]:
        """The answer to the command that was begun."""
        line = self._lines.get(timeout=_PATIENCE)
        assert line, f"the driver ended with {self._process.wait(10)}"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, do: str, **command: Any) -> dict[str, Any]:
        """One command and its answer."""
        self.begin({"do": do, **command})
        return self.end()

    def at(self, target: str, **options: Any) -> Self:
        """This, with a client of that target: the one that it has, if it is such a one."""
        wanted = {"target": target, **options}
        if wanted != self._connected:
            self._connected = None
            answer = self.ask("connect", **wanted)
            assert answer == {}, answer
            self._connected = wanted
        return self

    def close(self) -> None:
        """It ends with its input."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            assert self._process.wait(20) == 0
        finally:
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()
            self._reader.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
