"""Events reach their reader in order, merged when it is slow, and always with an end."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from headrace.errors import Draining
from headrace_runner.engine.stream import Failed
from headrace_runner.engine.text.request import (
    ChoiceEnd,
    Delta,
    Event,
    Finish,
    Finished,
    Prefill,
    Started,
)
from headrace_runner.engine.text.stream import BEHIND, TextStream

FINISHED = Finished((ChoiceEnd(Finish.LENGTH, None, 3),), 0, 1, 2)


class Closed:
    """Counts the times that a stream was given up."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> None:
        self.times += 1


@pytest.fixture
def closed() -> Closed:
    return Closed()


@pytest.fixture
def stream(closed: Closed) -> TextStream:
    return TextStream(closed)


async def everything(stream: TextStream) -> list[Event]:
    async with asyncio.timeout(5):
        return [event async for event in stream]


def letter(text: str, count: int) -> Delta:
    return Delta(text=text, token_ids=[ord(text)], output_tokens=count)


async def test_what_waits_is_merged(stream: TextStream) -> None:
    stream.push(Started(1, 0))
    for done in range(5):
        stream.push(Prefill(done, 5, tokens=1, began=10 * done, at=10 * done + 9))
    for count, text in enumerate("abc", start=1):
        stream.push(letter(text, count))
    stream.push(FINISHED)
    assert await everything(stream) == [
        Started(1, 0),
        Prefill(4, 5, tokens=5, began=0, at=49, passes=5),
        Delta(text="abc", token_ids=[97, 98, 99], output_tokens=3),
        FINISHED,
    ]


async def test_what_was_read_is_not_merged_into(stream: TextStream) -> None:
    stream.push(letter("a", 1))
    async with asyncio.timeout(5):
        first = await anext(stream)
        stream.push(letter("b", 2))
        second = await anext(stream)
    assert (first, second) == (letter("a", 1), letter("b", 2))


async def test_a_reader_is_woken(stream: TextStream) -> None:
    reader = asyncio.create_task(everything(stream))
    await asyncio.sleep(0)
    stream.push(letter("a", 1))
    await asyncio.sleep(0)
    stream.push(FINISHED)
    assert await reader == [letter("a", 1), FINISHED]


async def test_a_failure_comes_after_what_was_before_it(stream: TextStream) -> None:
    stream.push(letter("a", 1))
    stream.push(Failed(Draining(1.0)))
    async with asyncio.timeout(5):
        assert await anext(stream) == letter("a", 1)
        with pytest.raises(Draining):
            await anext(stream)


async def test_close_gives_up_once(stream: TextStream, closed: Closed) -> None:
    stream.push(letter("a", 1))
    stream.close()
    stream.close()
    assert closed.times == 1
    assert await everything(stream) == [letter("a", 1)]


@pytest.mark.parametrize("end", [FINISHED, Failed(Draining(1.0))])
async def test_close_after_the_end_gives_nothing_up(
    stream: TextStream, closed: Closed, end: Event
) -> None:
    stream.push(end)
    stream.close()
    assert closed.times == 0


async def test_a_cancelled_reader_loses_nothing(stream: TextStream) -> None:
    reader = asyncio.create_task(anext(stream))
    await asyncio.sleep(0)
    reader.cancel()
    await asyncio.wait({reader})
    stream.push(FINISHED)
    assert await everything(stream) == [FINISHED]


async def test_each_choice_is_merged_with_itself(stream: TextStream) -> None:
    for count in (1, 2):
        for choice, text in enumerate("ab"):
            stream.push(replace(letter(text, count), choice=choice))
    stream.push(FINISHED)
    assert await everything(stream) == [
        Delta(choice=0, text="aa", token_ids=[97, 97], output_tokens=2),
        Delta(choice=1, text="bb", token_ids=[98, 98], output_tokens=2),
        FINISHED,
    ]


class Told:
    """Notes when a reader is said to be behind, and when to have caught up."""

    def __init__(self) -> None:
        self.news: list[bool] = []
        self.stream = TextStream(lambda: None, self.news.append)

    def push(self, tokens: int, choice: int = 0) -> None:
        self.stream.push(Delta(choice=choice, token_ids=[1] * tokens, output_tokens=tokens))


@pytest.fixture
def told() -> Told:
    return Told()


async def test_who_is_behind_is_told_of_once_and_so_is_the_return(told: Told) -> None:
    told.push(BEHIND)
    assert told.news == []
    told.push(1)
    told.push(1)
    assert told.news == [True]
    async with asyncio.timeout(5):
        await anext(told.stream)
    assert told.news == [True, False]
    told.push(BEHIND + 1)
    assert told.news == [True, False, True]


async def test_who_is_behind_has_to_catch_up_half_of_it(told: Told) -> None:
    half = BEHIND // 2
    for choice in range(3):
        told.push(half, choice)
    assert told.news == [True]
    async with asyncio.timeout(5):
        await anext(told.stream)
        assert told.news == [True]
        await anext(told.stream)
        assert told.news == [True, False]


async def test_nobody_is_told_of_a_stream_that_has_ended(told: Told) -> None:
    told.push(BEHIND + 1)
    told.stream.push(FINISHED)
    assert len(await everything(told.stream)) == 2
    assert told.news == [True]
