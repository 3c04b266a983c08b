"""What a controller hears of its end, by real signals."""

from __future__ import annotations

import asyncio
import os
import pty
import signal
import sys
from collections.abc import AsyncIterator

import pytest

from headrace_server.predecessor import HAND_OVER
from headrace_server.signals import Stop


@pytest.fixture
async def loop() -> AsyncIterator[asyncio.AbstractEventLoop]:
    """The loop, without the handlers of signals once the test is over."""
    loop = asyncio.get_running_loop()
    yield loop
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, HAND_OVER):
        loop.remove_signal_handler(number)


async def heard(loop: asyncio.AbstractEventLoop, *numbers: signal.Signals) -> None:
    """Send these signals to this process, and return when all were handled."""
    last = asyncio.Event()
    loop.add_signal_handler(signal.SIGUSR1, last.set)
    for number in (*numbers, signal.SIGUSR1):
        os.kill(os.getpid(), number)
    await asyncio.wait_for(last.wait(), 10)


async def test_a_successor_is_a_reason_to_stop(loop: asyncio.AbstractEventLoop) -> None:
    stop = Stop(can_hand_over=True)
    await heard(loop, HAND_OVER)
    assert stop.wanted.is_set()
    assert stop.has_successor


async def test_without_takeover_it_is_none(loop: asyncio.AbstractEventLoop) -> None:
    stop = Stop(can_hand_over=False)
    await heard(loop, HAND_OVER)
    assert not stop.wanted.is_set()


async def test_one_that_drains_is_not_hastened_by_a_successor(
    loop: asyncio.AbstractEventLoop,
) -> None:
    let_go: list[bool] = []
    stop = Stop(can_hand_over=True)
    stop.let_go = lambda: let_go.append(True)
    await heard(loop, signal.SIGTERM)
    assert stop.wanted.is_set()
    stop.wanted.clear()
    assert not let_go
    await heard(loop, HAND_OVER)
    assert not stop.wanted.is_set()
    assert not stop.has_successor
    assert let_go, "new connections are the successor's"
    await heard(loop, signal.SIGINT)
    assert stop.wanted.is_set()


async def test_one_that_drains_since_its_stdin_ended_is_not_hastened_either(
    loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = Stop(can_hand_over=True)
    reading, writing = os.pipe()
    with os.fdopen(reading) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        await stop.with_stdin()
        os.close(writing)
        await asyncio.wait_for(stop.wanted.wait(), 10)
    stop.wanted.clear()
    await heard(loop, HAND_OVER)
    assert not stop.wanted.is_set()
    assert not stop.has_successor


@pytest.mark.parametrize("fd", [0, 1, 2])
async def test_a_hang_up_is_a_reason_to_stop_where_a_terminal_went_with_it(
    loop: asyncio.AbstractEventLoop, fd: int
) -> None:
    kept = os.dup(fd)
    master, slave = pty.openpty()
    try:
        os.dup2(slave, fd)
        os.close(slave)
        stop = Stop(can_hand_over=False)
        await heard(loop, signal.SIGHUP)
        assert (stop.wanted.is_set(), stop.reread.is_set()) == (False, True)
        os.close(master)
        await heard(loop, signal.SIGHUP)
        assert stop.wanted.is_set()
    finally:
        os.dup2(kept, fd)
        os.close(kept)
