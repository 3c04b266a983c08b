"""Whatever happens around a request, it gives what it would have given alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest

from headrace.errors import InsufficientMemory, InternalError
from headrace_runner.engine.stream import Failed
from headrace_runner.engine.text import batch
from headrace_runner.engine.text.logprobs import Logprobs
from headrace_runner.engine.text.output import Output
from headrace_runner.engine.text.request import (
    ChoiceEnd,
    Delta,
    Event,
    Finished,
    GenerationRequest,
    Started,
)
from headrace_runner.engine.text.sampling import SamplingParams, choice_seed
from headrace_runner.engine.text.worker import Limits, TextWorker
from headrace_runner.models.load import LoadedModel
from headrace_runner.models.tokenizer import Tokenizer
from tests.examples import THOROUGH
from tests.unit.engine.engines import NO_MEMORY, a_step_ahead
from tests.unit.engine.tiny import (
    GREEDY,
    VOCABULARY,
    alone,
    byte_tokenizer,
    loader,
    tiny_model,
)

MOST = 8
"""Rows."""
LONGEST = 30
"""Output tokens."""
STEPS = 200 if THOROUGH else 100
FAULTY = "faulty"


@dataclass
class Expected:
    """What a choice gives alone, behind what it was resumed with."""

    text: str
    tokens: list[int]
    end: ChoiceEnd


@dataclass
class Call:
    """A request under way, and what has come of it."""

    request: GenerationRequest
    expected: list[Expected]
    tokens: list[list[int]]
    texts: list[str]
    started: int = 0
    parked: bool = False
    end: Finished | Exception | None = None

    def take(self, event: Event) -> None:
        if self.end is not None:
            return  # So does the engine.
        match event:
            case Started():
                self.started += 1
            case Delta():
                assert self.started
                assert not self.parked
                self.tokens[event.choice] += event.token_ids
                self.texts[event.choice] += event.text
                resumed = self.request.resumed(event.choice)
                sent = len(resumed) + len(self.tokens[event.choice])
                assert event.output_tokens == sent
                asked = self.request.top_logprobs is not None
                assert len(event.logprobs) == (len(event.token_ids) if asked else 0)
            case Finished():
                self.end = event
            case Failed(error):
                self.end = error

    def check(self) -> None:
        """Holds what came against what would have come alone."""
        assert self.started <= 1
        for choice, expected in enumerate(self.expected):
            assert expected.tokens[: len(self.tokens[choice])] == self.tokens[choice]
            assert expected.text.startswith(self.texts[choice])
        if isinstance(self.end, Finished):
            assert self.end.choices == tuple(each.end for each in self.expected)
            assert self.texts == [each.text for each in self.expected]
            assert self.tokens == [each.tokens for each in self.expected]


@dataclass
class Reference:
    """What requests give that have the model to themselves."""

    model: Any
    tokenizer: Tokenizer
    _known: dict[tuple[tuple[int, ...], SamplingParams], list[int]] = field(default_factory=dict)

    def drawn(self, prompt: list[int], sampling: SamplingParams) -> list[int]:
        key = tuple(prompt), sampling
        if key not in self._known:
            self._known[key] = alone(self.model, prompt, sampling, LONGEST)
        return self._known[key]

    def of(self, request: GenerationRequest) -> list[Expected]:
        return [self._choice(request, choice) for choice in range(request.choices)]

    def _choice(self, request: GenerationRequest, choice: int) -> Expected:
        sampling = request.sampling
        sampling = replace(sampling, seed=choice_seed(sampling.seed, choice))
        drawn = self.drawn(request.prompt, sampling)
        output = Output(request, self.tokenizer, choice)
        resumed = request.resumed(choice)
        if (end := output.restore(resumed)) is not None:
            return Expected("", [], end)
        tokens, text = [], ""
        for token in drawn[len(resumed) :]:
            delta, end = PUSH(output, token)
            if delta is not None:
                tokens += delta.token_ids
                text += delta.text
            if end is not None:
                return Expected(text, tokens, end)
        raise AssertionError("it has no end")


@cache
def reference_of(architecture: str) -> Reference:
    """One for all that is played with the same weights."""
    return Reference(tiny_model(architecture), byte_tokenizer())


PUSH = Output.push
"""As it is without faults."""


class Play:
    """Random joins, closes, pauses and faults, on the engine's own thread's work."""

    def __init__(
        self, load: Callable[[], LoadedModel], reference: Reference, seed: int, prefix_bytes: int
    ) -> None:
        self._random = random.Random(seed)
        self._reference = reference
        self._now = 0.0
        limits = Limits(MOST, prefix_bytes=prefix_bytes)
        self.worker = TextWorker(load(), reference.tokenizer, limits, self._deliver)
        self.calls: dict[int, Call] = {}
        self.short = False
        """Whether the next step finds no memory."""
        self.shed = 0

    def _deliver(self, news: list[tuple[int, list[Event]]]) -> None:
        for uid, events in news:
            for event in events:
                self.calls[uid].take(event)

    @property
    def running(self) -> list[int]:
        return [uid for uid, call in self.calls.items() if call.end is None]

    def run(self, steps: int) -> None:
        chance = self._random.random
        for _ in range(steps):
            while len(self.running) < 12 and chance() < 0.3:
                self._join()
            if self.running and chance() < 0.04:
                self._close(self._random.choice(self.running))
            if self.running and chance() < 0.3:
                self._turn(self._random.choice(self.running))
            self.short = chance() < 4 / STEPS
            self._step()
        self.short = False
        while self.running:
            for uid in self.running:
                if self.calls[uid].parked:
                    self._turn(uid)
            self._step()

    def clock(self) -> float:
        """Steps take what they will, so that prompts are cut and tokens guessed in many ways."""
        self._now += self._random.choice((0.0001, 0.001, 0.001, 0.03))
        return self._now

    def _step(self) -> None:
        self.worker.admit()
        self.worker.step()

    def _join(self) -> None:
        uid = len(self.calls) + 1
        request = self._request()
        expected = self._reference.of(request)
        choices = request.choices
        call = Call(request, expected, [[] for _ in range(choices)], [""] * choices)
        self.calls[uid] = call
        self.worker.take(uid, request)

    def _close(self, uid: int) -> None:
        self.calls[uid].end = NotImplementedError("closed")
        self.worker.drop({uid})

    def _turn(self, uid: int) -> None:
        """Its reader falls behind, or catches up. Who has no token yet cannot fall behind."""
        call = self.calls[uid]
        if any(call.tokens):
            call.parked = not call.parked
            self.worker.park(uid, parked=call.parked)

    def _request(self) -> GenerationRequest:
        source = self._random
        prompt = [source.randrange(VOCABULARY) for _ in range(source.choice((1, 2, 9, 40)))]
        if self.calls and source.random() < 0.5:  # Often something that came before.
            earlier = source.choice(list(self.calls.values()))
            prompt = earlier.request.prompt + earlier.tokens[0] + prompt[: source.choice((0, 3))]
        sampling = self._sampling()
        request = GenerationRequest(
            id=FAULTY if source.random() < 0.2 else "r",
            prompt=prompt[-100:],
            max_tokens=source.randint(1, LONGEST),
            sampling=sampling,
            ignore_eos=source.random() < 0.7,
            include_stop=source.random() < 0.5,
            top_logprobs=source.choice((None, None, 0, 3)),
            priority=source.choice((-1, 0, 0, 5)),
            choices=source.choice((1, 1, 1, 2, 4)),
        )
        drawn = self._reference.drawn(request.prompt, sampling)
        if source.random() < 0.3:
            text = self._reference.tokenizer.decode(drawn).decode(errors="replace")
            at = source.randrange(len(text) - 3)
            strings = (text[at : at + source.randint(1, 3)], "never")
            request = replace(request, stop_strings=strings)
        if source.random() < 0.2:
            request = replace(request, stop_token_ids=frozenset({source.choice(drawn)}))
        if source.random() < 0.2:
            drawn_by = [whole.tokens for whole in self._reference.of(request)]
            # Some of nothing, some of all that there is.
            cuts = [source.randint(0, len(tokens)) for tokens in drawn_by]
            resume = tuple(tuple(t[:cut]) for t, cut in zip(drawn_by, cuts, strict=True))
            request = replace(request, resume=resume)
        return request

    def _sampling(self) -> SamplingParams:
        source = self._random
        seed = source.randrange(2**63)
        return source.choice(
            [
                GREEDY,
                SamplingParams(seed=seed),
                SamplingParams(seed=seed, temperature=0.7, top_p=0.9, top_k=40),
                SamplingParams(seed=seed, repetition_penalty=1.3, penalty_window=10),
                SamplingParams(temperature=0.0, frequency_penalty=0.5, logit_bias=((7, 2.0),)),
            ]
        )


@pytest.mark.property
@pytest.mark.parametrize(
    ("architecture", "ahead", "seed"),
    [
        ("llama", False, 0),
        ("llama", False, 1),
        ("llama", True, 0),
        ("llama", True, 1),
        ("gemma3_text", False, 1),
        ("lfm2", True, 1),
    ],
)
def test_every_request_gives_what_it_gives_alone(
    monkeypatch: pytest.MonkeyPatch,
    architecture: str,
    ahead: bool,
    seed: int,
) -> None:
    load = loader(lambda: tiny_model(architecture))
    load = a_step_ahead(load) if ahead else load
    reference = reference_of(architecture)
    play = Play(load, reference, seed, prefix_bytes=seed << 20)

    def push(self: Output, token: int, logprobs: Logprobs | None = None) -> Any:
        if self._request.id == FAULTY and self.tokens == 3:
            raise ZeroDivisionError("a bug")
        return PUSH(self, token, logprobs)

    def short(compute: Callable[..., Any]) -> Callable[..., Any]:
        def computed(*inputs: Any) -> Any:
            if play.short:
                play.short = False
                play.shed += 1
                raise RuntimeError(NO_MEMORY)
            return compute(*inputs)

        return computed

    monkeypatch.setattr(Output, "push", push)
    monkeypatch.setattr(batch, "time", SimpleNamespace(perf_counter=play.clock))
    for name in ("decode", "prefill"):
        compute = getattr(play.worker._layout, name)
        monkeypatch.setattr(play.worker._layout, name, short(compute))
    play.run(STEPS)

    for call in play.calls.values():
        call.check()
    ends = [call.end for call in play.calls.values()]
    assert len(ends) > STEPS // 5
    assert sum(isinstance(end, Finished) for end in ends) > len(ends) // 2
    assert sum(isinstance(end, InsufficientMemory) for end in ends) == play.shed > 0
    faulty = [call for call in play.calls.values() if isinstance(call.end, InternalError)]
    assert {call.request.id for call in faulty} == {FAULTY}
    assert len(play.worker._batch) == 0
    assert play.worker._room.reserved == 0
