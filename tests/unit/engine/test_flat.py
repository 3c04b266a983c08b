"""A pass over rows of any lengths gives each row what the model gives it alone."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest

from headrace_runner.engine.text.attention import choose_way
from headrace_runner.engine.text.flat import FlatPass
from headrace_runner.engine.text.windows import Prompt, Segment, Window
from headrace_runner.models.fast_paths import Head, route_attention, trim_head
from tests.unit.engine.tiny import VOCABULARY, tiny_model

Floats = npt.NDArray[np.float32]
LAYERS = 2
FUSED = choose_way(on_cpu=False, by_kernels=False)


@pytest.fixture(scope="module")
def routed() -> Any:
    model = tiny_model()
    route_attention(model)
    return model


@pytest.fixture(params=[False, True], ids=["fast", "by products"])
def flat(routed: Any, request: pytest.FixtureRequest) -> FlatPass:
    way = choose_way(on_cpu=request.param, by_kernels=False)
    return FlatPass(routed, LAYERS, trim_head(routed), way)


def tokens_of(source: random.Random, count: int) -> list[int]:
    return [source.randrange(VOCABULARY) for _ in range(count)]


def alone(model: Any, tokens: Sequence[int]) -> Floats:
    """The logits after every token, [tokens, vocabulary], without any cache."""
    logits: Floats = np.array(model(mx.array([list(tokens)])))[0]
    return logits


def close(found: Any, wanted: Floats) -> bool:
    return bool(np.abs(np.array(found) - wanted).max() < 1e-4 * np.abs(wanted).max())


def prefilled(flat: FlatPass, tokens: Sequence[int]) -> Segment:
    prompt = Prompt(len(tokens))
    flat.prefill([(prompt, tokens)])
    return prompt.segment()


@dataclass
class Rows:
    """Rows in windows, with all the tokens that each has had."""

    flat: FlatPass
    model: Any
    windows: list[Window]
    tokens: dict[int, list[int]] = field(default_factory=dict)

    def join(self, window: int, uid: int, tokens: list[int]) -> None:
        self.windows[window].join(uid, prefilled(self.flat, tokens))
        self.tokens[uid] = list(tokens)

    def step(self, source: random.Random, *, but: Sequence[int] = ()) -> None:
        """One more token for all, and a look at the logits of all but some."""
        order = [uid for window in self.windows for uid in window.uids]
        new = tokens_of(source, len(order))
        logits = self.flat.decode(self.windows, mx.array(new))
        assert logits.shape == (len(order), VOCABULARY)
        for uid, token, row in zip(order, new, logits, strict=True):
            self.tokens[uid].append(token)
            if uid not in but:
                assert close(row, alone(self.model, self.tokens[uid])[-1]), uid


def test_prompts_are_prefilled_together_in_any_chunks(flat: FlatPass, routed: Any) -> None:
    source = random.Random(1)
    texts = [tokens_of(source, length) for length in (1, 2, 40, 150, 300)]
    prompts = [Prompt(len(text)) for text in texts]
    while waiting := [i for i, p in enumerate(prompts) if p.length < len(texts[i])]:
        chunks = []
        for i in waiting:
            start = prompts[i].length
            count = min(source.choice([1, 7, 140]), len(texts[i]) - start)
            chunks.append((prompts[i], texts[i][start : start + count]))
        flat.prefill(chunks)
    window = Window()
    for uid, prompt in enumerate(prompts):
        window.join(uid, prompt.segment())
    logits = flat.decode([window], mx.array([9] * len(texts)))
    for text, row in zip(texts, logits, strict=True):
        assert close(row, alone(routed, [*text, 9])[-1])


@pytest.mark.parametrize("seed", range(3))
def test_rows_of_several_windows_step_together(flat: FlatPass, routed: Any, seed: int) -> None:
    source = random.Random(seed)
    rows = Rows(flat, routed, [Window(), Window(), Window()])
    for uid in range(9):
        rows.join(uid % 3, uid, tokens_of(source, source.choice([1, 2, 30, 90])))
    for turn in range(12):
        rows.step(source)
        window = source.randrange(3)
        if turn % 3 == 0:
            rows.join(window, 100 + turn, tokens_of(source, source.choice([1, 5, 120])))
        elif len(rows.windows[window]) > 1:
            uids = rows.windows[window].uids
            rows.windows[window].keep(set(source.sample(uids, len(uids) - 1)))


def test_several_tokens_of_a_row_give_the_logits_after_each(flat: FlatPass, routed: Any) -> None:
    source = random.Random(5)
    text = tokens_of(source, 20)
    rows = Rows(flat, routed, [Window()])
    rows.join(0, 3, text)
    window = rows.windows[0]
    drafted = tokens_of(source, 6)
    logits = flat.decode([window], mx.array(drafted), 6)
    wanted = alone(routed, [*text, *drafted])[20:]
    assert close(logits, wanted)
    # The last four are taken back, and others come in their place.
    window.end -= 4
    rows.tokens[3] += drafted[:2]
    for _ in range(3):
        rows.step(source)
    assert window.length(3) == 25


def test_a_row_that_is_broken_breaks_no_other_while_it_runs_nor_after(
    flat: FlatPass, routed: Any
) -> None:
    source = random.Random(6)
    rows = Rows(flat, routed, [Window()])
    rows.join(0, 1, tokens_of(source, 25))
    bad = prefilled(flat, tokens_of(source, 60))
    bad = Segment(
        tuple(keys * math.nan for keys in bad.keys), tuple(values / 0 for values in bad.values)
    )
    window = rows.windows[0]
    window.join(2, bad)
    rows.tokens[2] = [0] * 60
    rows.join(0, 3, tokens_of(source, 50))
    for _ in range(3):
        rows.step(source, but=[2])
    assert not np.isfinite(np.array(window.segment(2, 0, 60).keys[0])).any()
    window.keep({1, 3})
    rows.step(source)
    # Others take its place: a shorter one, one as long, and a longer one.
    for uid, length in ((4, 10), (5, 60), (6, 100)):
        rows.join(0, uid, tokens_of(source, length))
        rows.step(source)


def test_a_row_has_the_same_logits_whoever_is_beside_it(flat: FlatPass) -> None:
    source = random.Random(7)
    texts = [tokens_of(source, length) for length in (70, 33, 12)]
    together = Window()
    for uid, text in enumerate(texts):
        together.join(uid, prefilled(flat, text))
    logits = flat.decode([together], mx.array([1, 2, 3]))
    for uid, text in enumerate(texts):
        single = Window()
        single.join(0, prefilled(flat, text))
        assert close(logits[uid], np.array(flat.decode([single], mx.array([uid + 1])))[0])


def test_a_model_that_attends_to_the_last_tokens_only_is_refused() -> None:
    model = tiny_model("gemma3_text")
    with pytest.raises(NotImplementedError, match="last tokens"):
        FlatPass(model, LAYERS, trim_head(model), FUSED).prefill([(Prompt(3), [1, 2, 3])])


def test_states_of_prompts_of_any_lengths(flat: FlatPass, routed: Any) -> None:
    source = random.Random(23)
    prompts = [tokens_of(source, length) for length in (1, 30, 7)]
    for prompt, found in zip(prompts, flat.states(prompts), strict=True):
        wanted = np.array(routed.model(mx.array([prompt])))[0]
        assert found.shape == wanted.shape
        assert close(found, wanted)


def test_no_states_of_a_model_whose_head_is_not_known(routed: Any) -> None:
    with pytest.raises(NotImplementedError, match="head"):
        FlatPass(routed, LAYERS, Head(), FUSED).states([[1, 2]])


def test_few_prompt_tokens_ride_along_where_all_their_logits_are_computed(routed: Any) -> None:
    known = FlatPass(routed, LAYERS, trim_head(routed), FUSED)
    other = FlatPass(routed, LAYERS, Head(), FUSED)
    for each in (known, other):
        prefilled(each, [1, 2, 3])
    assert other.beside < 100 < known.beside
