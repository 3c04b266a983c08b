"""A timer that is set again and again."""

from __future__ import annotations

import asyncio
import math
from contextvars import ContextVar

from headrace_server.scheduling.alarm import Alarm

_WHOSE: ContextVar[str] = ContextVar("_WHOSE", default="nobody's")
LATE = 3600.0


class Bell:
    """What an alarm rings."""

    def __init__(self) -> None:
        self.rung: asyncio.Queue[str] = asyncio.Queue()
        self.alarm = Alarm(lambda: self.rung.put_nowait(_WHOSE.get()))
        self.now = asyncio.get_running_loop().time

    async def rings(self) -> str:
        return await asyncio.wait_for(self.rung.get(), 5)


async def test_the_earliest_time_counts_whatever_comes_behind_it() -> None:
    bell = Bell()
    bell.alarm.set(bell.now() + LATE)
    bell.alarm.set(bell.now() + 0.01)
    bell.alarm.set(bell.now() + LATE)
    bell.alarm.set(math.inf)
    await bell.rings()
    assert not bell.alarm.cancel(), "it goes off once"


async def test_it_can_be_set_again_by_whom_it_calls() -> None:
    bell, left = Bell(), iter(range(2))

    def again() -> None:
        bell.rung.put_nowait("")
        if next(left, None) is not None:
            alarm.set(bell.now())

    alarm = Alarm(again)
    alarm.set(bell.now())
    for _ in range(3):
        await bell.rings()
    assert not alarm.cancel()


async def test_one_that_is_cancelled_is_silent_until_it_is_set() -> None:
    bell = Bell()
    assert not bell.alarm.cancel()
    bell.alarm.set(bell.now())
    assert bell.alarm.cancel()
    for _ in range(3):
        await asyncio.sleep(0)
    assert bell.rung.empty()
    bell.alarm.set(bell.now() + 0.01)
    await bell.rings()


async def test_what_time_brings_is_part_of_nobody_s_trace() -> None:
    bell = Bell()
    _WHOSE.set("somebody's")
    bell.alarm.set(bell.now())
    assert await bell.rings() == "nobody's"
