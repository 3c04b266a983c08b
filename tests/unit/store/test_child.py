"""Helper programs: their output, their end, and that none is left behind."""

import asyncio
import os
import sys

import pytest

from headrace_server.store.child import run_child


async def python(program: str, on_line: list[str]) -> tuple[int, str]:
    ended = await run_child([sys.executable, "-c", program], on_line.append, {"EXTRA": "1"})
    return ended.returncode, ended.errors


async def test_lines_status_and_errors() -> None:
    lines: list[str] = []
    program = "import os, sys; print('a\\nb' + os.environ['EXTRA']); sys.exit('oh no')"
    assert await python(program, lines) == (1, "oh no\n")
    assert lines == ["a", "b1"]


async def test_what_it_is_told_first_and_that_its_input_stays_open() -> None:
    program = (
        "import select, sys; line = sys.stdin.readline(); "
        "print(len(line), select.select([0], [], [], 0.1)[0])"
    )
    lines: list[str] = []
    text = "x" * 200_000
    await run_child([sys.executable, "-c", program], lines.append, {}, first_line=text)
    assert lines == ["200001 []"]


async def test_floods_of_errors_are_drained_and_cut() -> None:
    program = "import sys; sys.stderr.write('x' * 5_000_000 + 'end'); print('done')"
    lines: list[str] = []
    code, errors = await python(program, lines)
    assert (code, lines, len(errors)) == (0, ["done"], 1 << 16)
    assert errors.endswith("end")


async def test_a_cancelled_caller_kills_it() -> None:
    lines: list[str] = []
    started = asyncio.Event()

    def on_line(line: str) -> None:
        lines.append(line)
        started.set()

    program = "import os, sys; print(os.getpid(), flush=True); sys.stdin.read()"
    running = asyncio.create_task(run_child([sys.executable, "-c", program], on_line, {}))
    await asyncio.wait_for(started.wait(), 30)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    with pytest.raises(ProcessLookupError):
        os.kill(int(lines[0]), 0)
