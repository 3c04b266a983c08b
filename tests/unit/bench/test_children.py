"""Children of the bench, real ones: ready, asked, dead too early, deaf to SIGTERM."""

import os
import sys

import pytest

from tests.bench import children
from tests.bench.children import BenchError, running


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-u", "-c", code)


async def test_an_answer_comes_back() -> None:
    code = "print('up')\nfor line in __import__('sys').stdin: print('{' + line.strip() + '}')"
    async with running(python(code), os.environ, b"up") as child:
        await child.ready()
        assert await child.ask(b"a", 10) == b"{a}\n"
        assert await child.ask(b"b", 10) == b"{b}\n"


async def test_a_death_before_ready_tells_its_last_words() -> None:
    with pytest.raises(BenchError, match="ended with 3") as caught:
        async with running(
            python("import sys; print('no such model', file=sys.stderr); sys.exit(3)"),
            os.environ,
            b"up",
        ) as child:
            await child.ready()
    assert "no such model" in caught.value.__notes__[0]


async def test_an_answer_that_does_not_come_is_not_waited_for_long() -> None:
    code = "print('up'); __import__('sys').stdin.read()"
    async with running(python(code), os.environ, b"up") as child:
        await child.ready()
        with pytest.raises(BenchError, match="its answer"):
            await child.ask(b"a", 0.05)


async def test_a_child_that_ignores_sigterm_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "STOP_SECONDS", 0.2)
    code = (
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('up')\nwhile True: signal.pause()"
    )
    async with running(python(code), os.environ, b"up") as child:
        await child.ready()
        pid = child.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
