"""Starting a process with what a runner needs: pipes, and a private folder for its socket."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

MAX_SOCKET_PATH = 100
"""Bytes; the system's limit is 104 on macOS and 108 on Linux, a closing zero included."""

_SOCKET = "r.sock"
_LAST_WORDS = 1.0  # seconds
_LAST_WORDS_BYTES = 4096


@dataclass(frozen=True)
class Pipe:
    """A pipe whose one end this loop reads and whose other end is for a child."""

    reader: asyncio.StreamReader
    transport: asyncio.ReadTransport
    write_fd: int
    """The number that the child knows its end by. Closed here."""

    @classmethod
    async def open(cls, undo: contextlib.ExitStack, child_ends: contextlib.ExitStack) -> Pipe:
        """`undo` closes the reading end if all fails; `child_ends` closes the other in any case."""
        read_fd, write_fd = os.pipe()
        child_ends.callback(os.close, write_fd)
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read_fd, "rb", buffering=0)
        )
        undo.callback(transport.close)
        return cls(reader, transport, write_fd)


@dataclass(frozen=True)
class Spawned:
    """A process, and what is here for it alone. Whoever has it disposes of it."""

    process: asyncio.subprocess.Process
    socket_dir: Path
    output: Pipe
    """Both of its standard output and its standard error."""
    reports: Pipe

    @property
    def listen(self) -> str:
        """The address for it to listen on."""
        return f"unix:{self.socket_dir / _SOCKET}"

    def tell(self, line: bytes) -> None:
        """Write a line to its stdin; harmless if it has ended. Its stdin stays open."""
        assert self.process.stdin is not None
        self.process.stdin.write(line)

    async def last_words(self) -> str:
        """What it has printed, if nobody has read it: for an operator, when it has ended."""
        with contextlib.suppress(TimeoutError):  # a grandchild may hold the pipe open
            async with asyncio.timeout(_LAST_WORDS):
                return (await self.output.reader.read(_LAST_WORDS_BYTES)).decode(errors="replace")
        return ""

    def dispose(self) -> None:
        """Remove its traces, and kill it if it lives: nobody will wait for it any more."""
        self.output.transport.close()
        self.reports.transport.close()
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        shutil.rmtree(self.socket_dir, ignore_errors=True)


async def spawn(
    command: Sequence[str],
    arguments: Callable[[str, int], Sequence[str]],
    environment: Mapping[str, str],
) -> Spawned:
    """Start `command` with the `arguments` for an address to listen on and a pipe to report on.

    Raises OSError when the process cannot be started; nothing is left behind then.
    """
    with contextlib.ExitStack() as undo:
        socket_dir = make_socket_dir(environment)
        undo.callback(shutil.rmtree, socket_dir, ignore_errors=True)
        with contextlib.ExitStack() as child_ends:
            output = await Pipe.open(undo, child_ends)
            reports = await Pipe.open(undo, child_ends)
            process = await asyncio.create_subprocess_exec(
                *command,
                *arguments(f"unix:{socket_dir / _SOCKET}", reports.write_fd),
                stdin=asyncio.subprocess.PIPE,
                stdout=output.write_fd,
                stderr=output.write_fd,
                pass_fds=(reports.write_fd,),
                env=dict(environment),
                # A Ctrl-C in the terminal is for the controller, which then drains its runners.
                start_new_session=True,
            )
        undo.pop_all()
    return Spawned(process, socket_dir, output, reports)


def make_socket_dir(environment: Mapping[str, str]) -> Path:
    """A new folder of mode 0700 whose path leaves room for a socket's name."""
    for base in (environment.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp"):
        if not base or len(os.fsencode(base)) + len("/hr-12345678/r.sock") > MAX_SOCKET_PATH:
            continue
        with contextlib.suppress(OSError):  # gone or not ours: try the next
            return Path(tempfile.mkdtemp(prefix="hr-", dir=base))
    raise OSError("no folder for a runner's socket: set XDG_RUNTIME_DIR to a short, writable path")
