"""What waits for a slow reader is bounded, and nothing that counts is lost."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from headrace.errors import Draining
from headrace_runner.engine.image.request import Drawn, Event, Finished, Preview, Progress, Started
from headrace_runner.engine.image.stream import HELD_BYTES, ImageStream
from headrace_runner.engine.stream import Failed
from headrace_runner.models.pipeline import Phase

PIXELS = np.zeros((2, 2, 3), np.uint8)


async def read(stream: ImageStream[Event]) -> list[Event]:
    async with asyncio.timeout(5):
        return [event async for event in stream]


async def test_progress_is_complete_for_who_reads() -> None:
    stream: ImageStream[Event] = ImageStream()
    sent: list[Event] = [Started(1), *(Progress(Phase.DENOISING, 0, i, 40) for i in range(41))]
    for event in [*sent, Finished(2)]:
        stream.push(event)
    assert await read(stream) == [*sent, Finished(2)]


async def test_who_reads_nothing_has_the_last_word_on_each_image() -> None:
    stream: ImageStream[Event] = ImageStream()
    stream.push(Started(1))
    pixels = np.zeros((64, 64, 3), np.uint8)
    for step in range(1000):
        for index in range(3):
            stream.push(Progress(Phase.DENOISING, index, step, 1000))
            stream.push(Preview(index, step, pixels))
        if step in (300, 600):
            stream.push(Drawn(step, PIXELS, (), step, 1))
        assert stream._held <= HELD_BYTES + 6 * pixels.nbytes
    assert len(stream._events) < 3000
    stream.push(Finished(2))
    events = await read(stream)
    assert events[0] == Started(1)
    assert [event.index for event in events if isinstance(event, Drawn)] == [300, 600]
    for kind in (Preview, Progress):
        for index in range(3):
            steps = [e.step for e in events if isinstance(e, kind) and e.index == index]
            assert steps == sorted(steps, key=lambda step: step or 0)
            assert steps[-1] == 999
    assert events[-1] == Finished(2)
    assert stream._held == 0


async def test_large_previews_are_held_one_for_each_image() -> None:
    stream: ImageStream[Event] = ImageStream()
    pixels = np.zeros((1024, 1024, 3), np.uint8)
    for step in range(5):
        for index in range(2):
            stream.push(Preview(index, step, pixels))
    stream.push(Finished(2))
    shown = [(e.index, e.step) for e in await read(stream) if isinstance(e, Preview)]
    assert shown == [(0, 4), (1, 4)]


async def test_a_failure_comes_after_what_was_before_it() -> None:
    closed: list[bool] = []
    stream: ImageStream[Event] = ImageStream(lambda: closed.append(True))
    stream.push(Started(1))
    stream.push(Failed(Draining(1.0)))
    assert await anext(stream) == Started(1)
    with pytest.raises(Draining):
        await anext(stream)
    stream.close()
    assert closed == [], "it had ended"
