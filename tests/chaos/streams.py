"""Streams that are begun again as soon as they end, each held against its undisturbed run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from random import Random

from headrace.errors import HeadraceError
from headrace.v1.completion_pb2 import LogprobsOptions, SamplingOptions, StreamCompletionRequest
from tests.integration.runner.api import ENDLESS, Answer, Api, Stream

_PATIENCE = 900.0
"""Seconds for one stream, whatever happens to it."""
_NOISE = 1e-3
"""By which a log-probability may differ: a runner that goes on computes in other batches."""
_SUBJECTS = (
    *("The lighthouse", "A recipe for bread", "My grandmother", "The first train", "Rust", "Glass"),
    *("The river Rhine", "An old oak", "Our neighbour", "The moon", "A good teacher", "Salt"),
    *("The smallest bird", "A long winter", "The harbour", "An honest thief"),
)


def requests(model: str, greedy: int, seeded: int, tokens: int) -> list[StreamCompletionRequest]:
    """So many different requests of each kind, of `tokens` tokens at most and half of it at least.

    Some of them are penalised, some want log-probabilities.
    """
    made = []
    for index in range(greedy + seeded):
        sampling = SamplingOptions(temperature=0)
        if index >= greedy:
            sampling = SamplingOptions(temperature=0.8, top_p=0.95, seed=1000 + index)
            if index % 2:
                sampling.repetition_penalty = 1.2
        subject = _SUBJECTS[index % len(_SUBJECTS)]
        made.append(
            StreamCompletionRequest(
                model=model,
                prompt=f"{subject} was" if index < len(_SUBJECTS) else f"{subject}, they say,",
                sampling=sampling,
                stop=ENDLESS,
                max_tokens=tokens - tokens // 2 * index // (greedy + seeded),
                logprobs=LogprobsOptions(enabled=True) if index % 4 == 0 else None,
            )
        )
    return made


@dataclass
class Tally:
    """What has come of all streams."""

    completed: int = 0
    tokens: int = 0
    moves: int = 0
    most_moves: int = 0
    """Of one stream."""
    failures: list[str] = field(default_factory=list)
    """Streams that ended with an error, or broke the contract."""
    differences: list[str] = field(default_factory=list)
    """Streams that were not what they are undisturbed."""

    def take(self, name: str, found: Answer, expected: Answer) -> None:
        """Counts a stream that was completed."""
        self.completed += 1
        self.tokens += len(found.token_ids)
        self.moves += found.completed.resumed
        self.most_moves = max(self.most_moves, found.completed.resumed)
        if difference := compare(found, expected):
            self.differences.append(f"{name}, moved {found.completed.resumed} times: {difference}")


def compare(found: Answer, expected: Answer) -> str:
    """What is different; empty where nothing is."""
    ours, theirs = found.token_ids, expected.token_ids
    if ours != theirs:
        alike = takewhile(lambda pair: pair[0] == pair[1], zip(ours, theirs, strict=False))
        at = len(list(alike))
        return f"tokens from place {at} on: {ours[at:][:8]} instead of {theirs[at:][:8]}"
    if found.text != expected.text:
        return f"the text {found.text!r} instead of {expected.text!r}"
    if [each.token_id for each in found.logprobs] != [e.token_id for e in expected.logprobs]:
        return "log-probabilities of other tokens"
    for at, (one, other) in enumerate(zip(found.logprobs, expected.logprobs, strict=True)):
        if abs(one.logprob - other.logprob) > _NOISE:
            return f"the log-probability {one.logprob} at place {at} instead of {other.logprob}"
    if found.choice != expected.choice:
        return f"the end {found.choice} instead of {expected.choice}"
    return ""


class Streams:
    """All streams of a run."""

    def __init__(self, api: Api, asked: Sequence[StreamCompletionRequest]) -> None:
        self._api = api
        self._asked = asked
        self._expected: list[Answer] = []
        self._interrupted: set[int] = set()
        """Streams that have had no token since the last kill."""
        self._news = asyncio.Event()
        self.tally = Tally()

    async def undisturbed(self) -> None:
        """Runs each once, all of them together."""
        self._expected = await asyncio.gather(*(self._run(i) for i in range(len(self._asked))))

    async def renew(self, wanted: Callable[[], bool], random: Random) -> None:
        """Runs all of them, each again and again while they are wanted."""
        order = random.sample(range(len(self._asked)), len(self._asked))
        async with asyncio.TaskGroup() as group:
            for index in order:
                group.create_task(self._repeat(index, wanted))

    def interrupt(self) -> None:
        """Notes that the runner of all streams was killed."""
        self._interrupted = set(range(len(self._asked)))

    @property
    def advanced(self) -> bool:
        """Whether any stream has gone on since the last kill."""
        return len(self._interrupted) < len(self._asked)

    async def recovered(self) -> None:
        """Waits until every stream that was interrupted has gone on."""
        while self._interrupted:
            self._news.clear()
            await self._news.wait()

    async def _repeat(self, index: int, wanted: Callable[[], bool]) -> None:
        name = f"stream {index}"
        while wanted():
            try:
                found = await self._run(index)
            except (HeadraceError, AssertionError) as error:
                self.tally.failures.append(f"{name}: {type(error).__name__}: {error}")
            else:
                self.tally.take(name, found, self._expected[index])
            self._advance(index)

    async def _run(self, index: int) -> Answer:
        request = self._asked[index]
        call = self._api.completion.StreamCompletion(request, timeout=_PATIENCE)
        stream = Stream(call, request)
        while (kind := await stream.next()) is not None:
            if kind == "delta":
                self._advance(index)
        return stream.answer

    def _advance(self, index: int) -> None:
        self._interrupted.discard(index)
        self._news.set()
