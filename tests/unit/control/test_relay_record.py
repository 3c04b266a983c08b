"""The record of a stream: whatever runners die at, the client's view is the undisturbed one."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.v1.completion_pb2 import (
    CompletionDelta,
    CompletionStarted,
    StreamCompletionRequest,
    StreamCompletionResponse,
    TokenLogprob,
)
from headrace_server.relay import completions
from headrace_server.relay.completions import CompletionRecord, carried_tokens
from headrace_server.relay.record import (
    MAX_DEATHS,
    MAX_KILLS,
    End,
    OutOfStepError,
    duration,
)

RESUMED = 2
"""Tokens of the first choice that the client itself resumed."""


@dataclass
class View:
    """What a client has, by choice."""

    kinds: list[str] = field(default_factory=list)
    started: CompletionStarted = field(default_factory=CompletionStarted)
    last: StreamCompletionResponse = field(default_factory=StreamCompletionResponse)
    texts: dict[int, str] = field(default_factory=lambda: defaultdict(str))
    ids: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    logprobs: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))

    def take(self, data: bytes) -> None:
        message = self.last = StreamCompletionResponse.FromString(data)
        kind = message.WhichOneof("event") or ""
        if kind != "progress":
            self.kinds.append(kind)
        if kind == "started":
            self.started = message.started
        delta = message.delta
        if kind == "delta":
            self.texts[delta.choice] += delta.text
            self.ids[delta.choice] += delta.token_ids
            self.logprobs[delta.choice] += [each.token_id for each in delta.logprobs]
            before = RESUMED if delta.choice == 0 else 0
            assert delta.output_tokens == before + len(self.ids[delta.choice])


class Runner:
    """One that honours what a request resumes, and cuts its output into messages as it likes."""

    def __init__(self, outputs: list[list[int]], cached: int) -> None:
        self._outputs = outputs
        self._cached = cached

    def messages(self, data: bytes, cuts: st.DataObject) -> list[StreamCompletionResponse]:
        request = StreamCompletionRequest.FromString(data)
        done = {choice.index: list(choice.token_ids) for choice in request.resume_choices}
        if request.resume_token_ids:
            done[0] = list(request.resume_token_ids)
        for choice, tokens in done.items():
            assert tokens == self._outputs[choice][: len(tokens)]
        start = StreamCompletionResponse()
        start.started.id = request.request_id or "made"
        start.started.seed = request.sampling.seed or 5
        start.started.prompt_tokens = 7
        start.started.cached_tokens = self._cached
        messages = [start]
        left = {c: tokens[len(done.get(c, ())) :] for c, tokens in enumerate(self._outputs)}
        while any(left.values()):
            choice = cuts.draw(st.sampled_from([c for c, tokens in left.items() if tokens]))
            count = cuts.draw(st.integers(1, len(left[choice])))
            new, left[choice] = left[choice][:count], left[choice][count:]
            delta = CompletionDelta(
                choice=choice,
                text="".join(map(chr, new)),
                token_ids=new,
                logprobs=[TokenLogprob(token_id=token) for token in new],
                output_tokens=len(self._outputs[choice]) - len(left[choice]),
            )
            messages.append(StreamCompletionResponse(delta=delta))
            if cuts.draw(st.booleans()):
                sign = StreamCompletionResponse()
                sign.progress.prompt_tokens_total = 7
                messages.append(sign)
        end = StreamCompletionResponse()
        for choice, tokens in enumerate(self._outputs):
            end.completed.choices.add(index=choice, output_tokens=len(tokens))
        end.completed.usage.prompt_tokens = 7
        end.completed.usage.cached_tokens = self._cached
        end.completed.usage.output_tokens = sum(map(len, self._outputs))
        return [*messages, end]


tokens = st.lists(st.integers(97, 122), max_size=12)
steps = st.floats(0.0, 3.0)


class Play:
    """A stream whose runners are lost wherever it may happen."""

    def __init__(self, data: st.DataObject) -> None:
        self._data = data
        choices = data.draw(st.integers(1, 3))
        self.outputs = [data.draw(tokens) for _ in range(choices)]
        self.outputs[0] = [1] * RESUMED + self.outputs[0]
        request = StreamCompletionRequest(model="m", prompt="p", n=choices)
        if data.draw(st.booleans()):
            request.resume_choices.add(index=0, token_ids=[1] * RESUMED)
        else:
            request.resume_token_ids.extend([1] * RESUMED)
        self.now = data.draw(steps)
        carried = carried_tokens(request)
        self.record = CompletionRecord(
            request.SerializeToString(), self.now, carried, alone=choices == 1
        )
        self.view = View()

    def pass_time(self) -> float:
        took = self._data.draw(steps)
        self.now += took
        return took

    def attempt(self, number: int, *, whole: bool) -> bool:
        """One runner, up to some message of its; gives whether the stream has advanced."""
        record = self.record
        record.waited(self.pass_time(), self.pass_time())
        asked_at = self.now
        runner = Runner(self.outputs, cached=number)
        messages = runner.messages(record.ask(self.now), self._data)
        count = len(messages)
        reached = count if whole else self._data.draw(st.integers(0, count - 1))
        advanced = False
        for message in messages[:reached]:
            self.pass_time()
            if message.HasField("completed"):
                inside = (self.now - asked_at) * self._data.draw(st.floats(0.0, 1.0))
                message.completed.timings.prefill.CopyFrom(duration(inside))
            passed = record.take(message.SerializeToString(), self.now)
            if self._data.draw(st.booleans()):
                assert record.begun is (record.tokens_sent is not None)
            advanced |= message.HasField("delta")
            assert record.advanced is advanced
            if passed is not None:
                self.view.take(passed)
        return advanced

    def check(self, moves: int) -> None:
        """Holds what the client has against the undisturbed outputs."""
        view = self.view
        deltas = view.kinds.count("delta")
        assert view.kinds == ["started", *["delta"] * deltas, "completed"]
        for choice, output in enumerate(self.outputs):
            mine = output[RESUMED:] if choice == 0 else output
            assert view.ids[choice] == view.logprobs[choice] == mine
            assert view.texts[choice] == "".join(map(chr, mine))
        completed = view.last.completed
        assert completed.resumed == moves
        assert completed.usage.output_tokens == sum(map(len, self.outputs))
        # The prompt, what the request brought, and each token that was sent: once, for all runners.
        assert self.record.output().charge == 7 + sum(map(len, self.outputs))
        assert completed.usage.prompt_tokens == view.started.prompt_tokens
        assert completed.usage.cached_tokens == view.started.cached_tokens
        times = completed.timings
        parts = (times.queue, times.load, times.prefill, times.decode)
        assert sum(part.ToNanoseconds() for part in parts) <= times.total.ToNanoseconds() + 10


@given(st.data())
def test_the_client_s_view_is_the_undisturbed_one(data: st.DataObject) -> None:
    with patch.object(completions, "_UNREAD", data.draw(st.sampled_from([2, 3, 64]))):
        _play(data)


def _play(data: st.DataObject) -> None:
    play = Play(data)
    moves = data.draw(st.integers(0, 6))
    in_place = 0
    for number in range(moves):
        if play.attempt(number, whole=False):
            in_place = 0
        play.pass_time()
        end = data.draw(st.sampled_from(End))
        in_place += end is End.DIED
        another = play.record.lost(play.now, end)
        assert another is (in_place < MAX_DEATHS)
        if not another:
            sent = {c: ids for c, ids in play.view.ids.items() if ids}
            before = RESUMED if 0 in sent else 0
            assert (play.record.tokens_sent or 0) == before + sum(map(len, sent.values()))
            return
    play.attempt(moves, whole=True)
    assert play.record.completed
    play.check(moves)


def test_what_was_not_started_is_asked_for_as_it_came() -> None:
    request = StreamCompletionRequest(model="m", prompt="p").SerializeToString()
    record = CompletionRecord(request, 0.0)
    assert record.ask(0.0) == request
    assert record.lost(1.0, End.DIED)
    assert record.ask(1.0) == request
    assert record.tokens_sent is None


def test_kills_from_outside_are_no_evidence_but_have_an_end_too() -> None:
    record = CompletionRecord(b"", 0.0)
    for _ in range(MAX_KILLS - 1):
        assert record.lost(1.0, End.KILLED)
        assert not record.suspect
    assert not record.lost(1.0, End.KILLED)


def _delta(tokens: int, of: int) -> bytes:
    delta = CompletionDelta(text="w", token_ids=[1] * tokens, output_tokens=of)
    return StreamCompletionResponse(delta=delta).SerializeToString()


def test_the_first_delta_of_an_attempt_has_to_begin_where_the_stream_is() -> None:
    record = CompletionRecord(b"", 0.0, alone=True)
    record.ask(0.0)
    assert record.take(_delta(2, of=2), 1.0)
    assert record.lost(1.0, End.DIED)
    record.ask(1.0)
    with pytest.raises(OutOfStepError, match="has 2 tokens behind 0, and 2 more make 2"):
        record.take(_delta(2, of=2), 2.0)


@pytest.mark.parametrize("gap", [0, 2])
def test_a_stream_that_is_out_of_step_does_not_complete(gap: int) -> None:
    record = CompletionRecord(b"", 0.0, alone=True)
    start = StreamCompletionResponse(started=CompletionStarted(prompt_tokens=7))
    record.take(start.SerializeToString(), 1.0)
    end = StreamCompletionResponse()
    end.completed.choices.add()
    for count, of in enumerate((1, 2, 2 + gap, 3 + gap), start=1):
        assert record.take(_delta(1, of), 1.0)
        if count == 3:
            assert not record.tokens_sent, "what does not fit together is not counted"
    with pytest.raises(OutOfStepError):
        record.take(end.SerializeToString(), 2.0)
    assert not record.completed
    with pytest.raises(OutOfStepError):
        record.ask(2.0)


def test_a_long_stream_that_is_out_of_step_is_noticed_on_its_way() -> None:
    record = CompletionRecord(b"", 0.0, alone=True)
    counts = (count for count in range(1, 1000) if count != 2)

    def take_all() -> None:
        for count in counts:
            record.take(_delta(1, of=count), 1.0)

    with pytest.raises(OutOfStepError):
        take_all()
    assert next(counts) < 100


def test_a_stream_with_a_delta_that_cannot_be_read_does_not_complete() -> None:
    record = CompletionRecord(b"", 0.0, alone=True)
    record.take(_delta(1, of=1), 1.0)
    record.take(b"\x1a\x7f", 1.0)
    end = StreamCompletionResponse()
    end.completed.choices.add()
    with pytest.raises(OutOfStepError, match="cannot be read"):
        record.take(end.SerializeToString(), 2.0)
    assert not record.completed


def test_a_stream_is_timed_over_all_its_runners() -> None:
    record = CompletionRecord(StreamCompletionRequest(model="m").SerializeToString(), arrived=10.0)

    def take(now: float, tokens: int, of: int) -> None:
        delta = CompletionDelta(token_ids=[1] * tokens, output_tokens=of)
        record.take(StreamCompletionResponse(delta=delta).SerializeToString(), now)

    record.ask(10.0)
    assert (record.first_token_at, record.seconds_per_token()) == (None, None)
    assert (record.prompt_tokens, record.tokens_made) == (0, 0)
    start = StreamCompletionResponse(started=CompletionStarted(prompt_tokens=7))
    record.take(start.SerializeToString(), 11.0)
    take(12.0, 1, of=1)
    assert record.seconds_per_token() is None, "one token has no other to wait for"
    take(13.0, 2, of=3)
    assert record.lost(14.0, End.WENT)
    record.ask(14.0)
    take(20.0, 2, of=5)
    assert record.first_token_at == 12.0
    assert record.seconds_per_token() == 2.0
    assert (record.prompt_tokens, record.tokens_made) == (7, 5)
    # The wait for one that gives nothing is no time of a token.
    assert record.lost(30.0, End.DIED)
    record.ask(60.0)
    assert record.seconds_per_token() == 2.0
