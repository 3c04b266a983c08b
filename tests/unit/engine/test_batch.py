"""Rows that share a batch compute what each would alone, whenever they join and leave."""

from __future__ import annotations

import random
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import ChunkedKVCache

from headrace.errors import UnsupportedModel
from headrace_runner.engine.text.batch import TextBatch
from headrace_runner.engine.text.layouts import choose_layout
from headrace_runner.engine.text.pace import Pace
from headrace_runner.engine.text.rows import Drawn, NewRow
from headrace_runner.engine.text.sampling import SamplingParams
from tests.unit.engine.reference import expected
from tests.unit.engine.tiny import GREEDY, VOCABULARY, alone, new_batch, tiny_model

LENGTHS = (1, 2, 9, 17, 40)


@pytest.fixture(params=[False, True], ids=["read at once", "a step ahead"])
def ahead(request: pytest.FixtureRequest) -> bool:
    """Whether the next step is launched before the one before it is read."""
    return bool(request.param)


def random_prompt(source: random.Random, length: int | None = None) -> list[int]:
    length = length or source.choice(LENGTHS)
    return [source.randrange(VOCABULARY) for _ in range(length)]


def random_sampling(source: random.Random) -> SamplingParams:
    seed = source.randrange(2**63)
    return source.choice(
        [
            GREEDY,
            SamplingParams(seed=seed),
            SamplingParams(seed=seed, temperature=0.7, top_p=0.9, top_k=40),
            SamplingParams(seed=seed, xtc_probability=0.5, xtc_threshold=0.05, min_p=0.01),
            SamplingParams(seed=seed, repetition_penalty=1.2, penalty_window=10),
            SamplingParams(temperature=0.0, frequency_penalty=0.5, logit_bias=((7, 2.0),)),
        ]
    )


class Schedule:
    """Random joins, leaves and cancels; notes what every row drew."""

    def __init__(self, model: Any, seed: int, *, most: int, ahead: bool) -> None:
        self._random = random.Random(seed)
        self._most = most
        self.batch = new_batch(model, ahead=ahead, prefix_bytes=1 << 22)
        self._wanted: dict[int, int] = {}
        self.requests: list[tuple[list[int], SamplingParams]] = []
        self.drawn: dict[int, list[int]] = {}

    def run(self, steps: int) -> None:
        for _ in range(steps):
            while len(self.batch) < self._most and self._random.random() < 0.3:
                self._join()
            if self._wanted and self._random.random() < 0.05:
                self._leave(self._random.choice(list(self._wanted)))
            self._step()
        while self._wanted:
            self._step()

    def _join(self) -> None:
        uid = len(self.requests)
        prompt, sampling = random_prompt(self._random), random_sampling(self._random)
        self.requests.append((prompt, sampling))
        self.drawn[uid] = []
        self._wanted[uid] = self._random.randint(1, 30)
        if self._random.random() < 0.5 and uid:  # Often something that came before.
            prompt = self.requests[self._random.randrange(uid)][0] + prompt
            self.requests[-1] = prompt, sampling
        self.batch.add(prompt, [NewRow(uid, sampling, self._random.choice([None, 0, 3]))])

    def _leave(self, uid: int) -> None:
        del self._wanted[uid]
        self.batch.remove([uid])

    def _step(self) -> None:
        for draw in self.batch.step()[1]:
            self.drawn[draw.uid].append(draw.token)
        done = [uid for uid, wanted in self._wanted.items() if len(self.drawn[uid]) >= wanted]
        for uid in done:
            self._leave(uid)


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(s, marks=pytest.mark.slow) for s in (2, 3))])
def test_b5_any_schedule_gives_every_row_the_tokens_it_draws_alone(
    model: Any, seed: int, ahead: bool
) -> None:
    schedule = Schedule(model, seed, most=8, ahead=ahead)
    schedule.run(steps=200)
    assert len(schedule.requests) > 50
    for uid, (prompt, sampling) in enumerate(schedule.requests):
        tokens = schedule.drawn[uid]
        assert tokens == alone(model, prompt, sampling, len(tokens)), f"row {uid}"


@pytest.mark.parametrize(
    "sampling",
    [
        GREEDY,
        SamplingParams(seed=5),
        SamplingParams(seed=5, temperature=0.8, top_p=0.9, repetition_penalty=1.5),
        SamplingParams(temperature=0.0, frequency_penalty=-3.0, penalty_window=6),
    ],
    ids=["greedy", "sampled", "penalised", "rewarded"],
)
def test_tokens_are_those_of_the_reference_without_a_cache(
    model: Any, sampling: SamplingParams
) -> None:
    source = random.Random(3)
    for _ in range(25):
        prompt = random_prompt(source, 3)
        tokens = list(prompt)
        for position in range(4):
            logits = np.array(model(mx.array([tokens])), np.float64)[0, -1]
            tokens.append(expected(logits, sampling, tokens, position))
        assert alone(model, prompt, sampling, 4) == tokens[3:]


@pytest.mark.parametrize("architecture", ["gemma3_text", "lfm2"])
def test_other_kinds_of_cache_join_and_leave_as_well(architecture: str, ahead: bool) -> None:
    model = tiny_model(architecture)
    schedule = Schedule(model, 9, most=4, ahead=ahead)
    schedule.run(steps=40)
    for uid, (prompt, sampling) in enumerate(schedule.requests):
        tokens = schedule.drawn[uid]
        assert tokens == alone(model, prompt, sampling, len(tokens)), f"row {uid}"


@pytest.mark.parametrize("chunk", [1, 3, 16, 1000])
def test_the_size_of_a_prefill_chunk_changes_nothing(model: Any, chunk: int) -> None:
    prompt = random_prompt(random.Random(1), 50)
    assert alone(model, prompt, GREEDY, 12, chunk) == alone(model, prompt, GREEDY, 12)


def test_a_row_that_is_resumed_goes_on_with_the_same_tokens(model: Any) -> None:
    prompt = random_prompt(random.Random(2), 10)
    tokens = alone(model, prompt, GREEDY, 20)
    assert alone(model, prompt + tokens[:8], GREEDY, 12) == tokens[8:]


def test_a_long_prefill_holds_up_nobody(model: Any, ahead: bool) -> None:
    batch = new_batch(model, 4, ahead=ahead)
    batch.add([1, 2], [NewRow(1, GREEDY)])
    batch.step()
    batch.add(list(range(101)), [NewRow(2, GREEDY)])
    for step in range(1, 26):
        prefilled, drawn = batch.step()
        assert [(p.uid, p.done, p.total) for p in prefilled] == [(2, 4 * step, 101)]
        # The last chunk is computed beside the step of the first row, and the second draws next.
        assert [draw.uid for draw in drawn] == [1]
    drawn = [draw for _ in range(1 + ahead) for draw in batch.step()[1]]
    assert [draw.uid for draw in drawn][-2:] == [1, 2]


def test_a_chunk_is_shared_by_short_prompts(model: Any, ahead: bool) -> None:
    batch = new_batch(model, 8, ahead=ahead)
    for uid in range(4):
        batch.add([uid] * 4, [NewRow(uid, GREEDY)])
    prefilled, _ = batch.step()
    assert [(p.uid, p.done) for p in prefilled] == [(0, 3), (1, 3), (2, 2)]


def test_rows_are_removed_wherever_they_are(model: Any, ahead: bool) -> None:
    batch = new_batch(model, 4, ahead=ahead)
    for uid, length in enumerate((2, 3, 40, 5)):
        batch.add([5] * length, [NewRow(uid, GREEDY, 2)])
    tokens = [draw.token for draw in batch.step()[1] if draw.uid == 0]
    assert len(batch) == 4
    assert batch.kv_bytes > 0
    batch.remove([1, 77])  # One that runs, and one that nobody knows.
    batch.remove([2, 3])  # One that is being prefilled, and one that waits.
    assert len(batch) == 1
    tokens += [draw.token for _ in range(6) for draw in batch.step()[1]]
    assert tokens == alone(model, [5, 5], GREEDY, len(tokens))
    batch.remove([0])
    assert (len(batch), batch.kv_bytes) == (0, 0)
    assert batch.step() == ([], [])


def test_a_cache_that_cannot_be_batched_is_an_unsupported_model() -> None:
    class Chunked:
        def make_cache(self) -> list[ChunkedKVCache]:
            return [ChunkedKVCache(8)]  # type: ignore[no-untyped-call]

    with pytest.raises(UnsupportedModel, match="ChunkedKVCache"):
        choose_layout(Chunked(), on_cpu=True, prefix_bytes=0)


def test_an_empty_prompt_is_refused(model: Any) -> None:
    with pytest.raises(ValueError, match="at least one token"):
        new_batch(model).add([], [NewRow(1, GREEDY)])


@pytest.mark.parametrize(
    "sampling",
    [GREEDY, SamplingParams(seed=3, temperature=2.0, logit_bias=((9, 5.0),), presence_penalty=1)],
    ids=["greedy", "sampled"],
)
def test_logprobs_are_those_of_the_models_own_distribution(
    model: Any, sampling: SamplingParams, ahead: bool
) -> None:
    prompts = {1: [4, 8, 15], 2: [16, 23]}
    batch = new_batch(model, 4, ahead=ahead)
    for uid, prompt in prompts.items():
        batch.add(prompt, [NewRow(uid, sampling, 5)])
    draws: list[Drawn] = []
    while len(draws) < 16:
        draws += batch.step()[1]
    for uid, prompt in prompts.items():
        own = [draw for draw in draws if draw.uid == uid]
        inputs = prompt + [draw.token for draw in own[:-1]]
        logits = np.array(model(mx.array([inputs])), np.float64)[0, len(prompt) - 1 :]
        exact = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
        for draw, row in zip(own, exact, strict=True):
            assert draw.logprobs is not None
            assert draw.logprobs.token == pytest.approx(row[draw.token], abs=1e-3)
            ids = [token for token, _ in draw.logprobs.top]
            assert ids == np.argsort(-row)[:5].tolist()
            assert [value for _, value in draw.logprobs.top] == pytest.approx(row[ids], abs=1e-3)
            if sampling is GREEDY:
                assert ids[0] == draw.token


def test_logprobs_cost_nobody_who_did_not_ask(model: Any, ahead: bool) -> None:
    batch = new_batch(model, 8, ahead=ahead)
    for uid, top in enumerate((None, 0, 2)):
        batch.add([3, 4], [NewRow(uid, GREEDY, top)])
    while not (drawn := batch.step()[1]):
        pass
    plain, own, with_top = (draw.logprobs for draw in drawn)
    assert plain is None
    assert own is not None
    assert own.top == ()
    assert with_top is not None
    assert len(with_top.top) == 2


def prompts_and_draws(batch: TextBatch, steps: int) -> list[tuple[set[int], set[int]]]:
    """By step: the rows whose prompt went on, and those that drew."""
    found = []
    for _ in range(steps):
        prefilled, drawn = batch.step()
        found.append(({each.uid for each in prefilled}, {each.uid for each in drawn}))
    return found


def hard_pressed(model: Any) -> TextBatch:
    """A batch of chunks of eight tokens, whose rows have no time to spare for prompts."""
    batch = new_batch(model, chunk=8)
    batch._pace._saved = -100.0
    return batch


def test_prompts_that_come_together_are_computed_before_their_rows_go_on(model: Any) -> None:
    batch = hard_pressed(model)
    for uid in range(4):
        batch.add([uid] * 9, [NewRow(uid, GREEDY)])
    # A chunk is a prompt's length; those that are ready have a step each time.
    drawn = [drawn for _, drawn in prompts_and_draws(batch, 4)]
    assert drawn[1] == {0, 1}
    assert drawn[3] == {0, 1, 2, 3}
    batch.add([9] * 20, [NewRow(4, GREEDY)])  # It comes later, and takes what is left for it.
    assert all(4 not in drawn for _, drawn in prompts_and_draws(batch, 8))


def test_rows_do_not_let_a_prompt_go_first_that_takes_long(model: Any) -> None:
    batch = hard_pressed(model)
    batch.add([1] * 3000, [NewRow(0, GREEDY)])
    batch.add([2] * 3, [NewRow(1, GREEDY)])
    batch._pace.prefilled(10**6, 10**4, decoding=False)  # As on a slow machine.
    done = [each.done for _ in range(8) for each in batch.step()[0] if each.uid == 0]
    assert done[-1] < 8 + 8


def test_who_has_begun_goes_on_while_others_are_prefilled(model: Any) -> None:
    batch = new_batch(model, chunk=8)
    batch.add([1] * 4, [NewRow(0, GREEDY)])
    while not batch.step()[1]:
        pass
    for uid in (1, 2, 3):
        batch.add([uid] * 20, [NewRow(uid, GREEDY)])
    steps = prompts_and_draws(batch, 6)
    assert all(0 in drawn for _, drawn in steps)
    assert any(prefilled for prefilled, _ in steps)


def test_rows_do_not_let_prompts_of_a_lower_priority_go_first(model: Any) -> None:
    batch = hard_pressed(model)
    batch.add([9] * 3, [NewRow(0, GREEDY)], priority=5)
    for uid in (1, 2, 3):
        batch.add([uid] * 20, [NewRow(uid, GREEDY)])
    steps = prompts_and_draws(batch, 6)
    assert [drawn for _, drawn in steps] == [{0}] * 6


class Measured(Pace):
    """Notes for how many prompt tokens each step's time was taken."""

    def __init__(self) -> None:
        super().__init__(8)
        self.tokens_of_steps: list[int] = []

    def together(self, tokens: int, seconds: float, *, rows: int = 1) -> None:
        self.tokens_of_steps.append(tokens)

    def decoded(self, seconds: float, *, rows: int = 1, beside: bool = False) -> None:
        self.tokens_of_steps.append(0)


def test_a_step_s_time_is_that_of_the_pass_that_was_waited_for(model: Any, ahead: bool) -> None:
    batch = new_batch(model, chunk=8, ahead=ahead)
    batch._pace = pace = Measured()
    batch.add([1, 2, 3], [NewRow(0, GREEDY)])
    while not batch.step()[1]:
        pass
    pace.tokens_of_steps.clear()
    batch.add([4] * 20, [NewRow(1, GREEDY)])
    for _ in range(5):
        batch.step()
    assert pace.tokens_of_steps == [0, 8, 8, 3, 0] if ahead else [8, 8, 3, 0, 0]
