"""Every option of the sampler against the same rules in plain numpy."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import mlx.core as mx
import numpy as np
import pytest

from headrace_runner.engine.text.sampling import (
    SamplerRow,
    SamplingParams,
    choice_seed,
    draw_key,
    sample,
)
from tests.unit.engine.reference import Array, expected, softmax, truncated

VOCABULARY = 150
"""Some blocks of ids, the last of them not full."""

OPTIONS = [
    pytest.param({}, id="plain"),
    pytest.param({"temperature": 0.3}, id="cool"),
    pytest.param({"temperature": 3.0}, id="hot"),
    pytest.param({"top_k": 1}, id="top_k=1"),
    pytest.param({"top_k": 5}, id="top_k"),
    pytest.param({"top_k": VOCABULARY + 1}, id="top_k over the vocabulary"),
    pytest.param({"top_p": 0.5}, id="top_p"),
    pytest.param({"top_p": 1e-6}, id="top_p that leaves one"),
    pytest.param({"min_p": 0.1}, id="min_p"),
    pytest.param({"min_p": 1.0}, id="min_p that leaves one"),
    pytest.param({"top_k": 20, "top_p": 0.8, "min_p": 0.05, "temperature": 1.5}, id="all cuts"),
    pytest.param({"xtc_probability": 1.0, "xtc_threshold": 0.05}, id="xtc always"),
    pytest.param({"xtc_probability": 0.5, "xtc_threshold": 0.02}, id="xtc now and then"),
    pytest.param({"xtc_probability": 1.0, "xtc_threshold": 0.5}, id="xtc above all"),
    pytest.param({"repetition_penalty": 1.8}, id="repetition"),
    pytest.param({"presence_penalty": 1.5}, id="presence"),
    pytest.param({"frequency_penalty": 0.8}, id="frequency"),
    pytest.param({"frequency_penalty": -0.8, "penalty_window": 3}, id="short window"),
    pytest.param({"logit_bias": ((3, 4.0), (7, -1000.0))}, id="bias"),
    pytest.param(
        {
            "logit_bias": ((3, 2.0), (9, -3.0)),
            "repetition_penalty": 1.3,
            "presence_penalty": 0.4,
            "frequency_penalty": 0.2,
            "temperature": 0.8,
            "top_k": 30,
            "top_p": 0.9,
            "min_p": 0.01,
            "xtc_probability": 0.4,
            "xtc_threshold": 0.1,
        },
        id="everything",
    ),
]


def random_logits(rows: int, seed: int, vocabulary: int = VOCABULARY) -> Array:
    return np.random.default_rng(seed).normal(0, 2.0, (rows, vocabulary))


def draw(
    logits: Array, rows: Sequence[SamplerRow], inputs: Sequence[int], positions: Sequence[int]
) -> list[int]:
    tokens = sample(
        mx.array(logits, mx.float32), mx.array(list(inputs), mx.uint32), rows, positions
    )
    result: list[int] = tokens.tolist()  # type: ignore[assignment]
    return result


@pytest.mark.parametrize("temperature", [None, 0.0])
@pytest.mark.parametrize("options", OPTIONS)
def test_draws_are_those_of_the_reference(
    options: dict[str, object], temperature: float | None
) -> None:
    given = options if temperature is None else options | {"temperature": temperature}
    params = SamplingParams(**given, seed=11)  # type: ignore[arg-type]
    seen = [3, 3, 3, 8, 9, 41, 8]
    row = SamplerRow.start(params, seen[:-1])
    for position in range(40):
        logits = random_logits(1, seed=position)
        (token,) = draw(logits, [row], seen[-1:], [position])
        assert token == expected(logits[0], params, seen, position)
        seen.append(token)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_draws_from_a_long_vocabulary_are_those_of_the_reference(temperature: float) -> None:
    cuts: list[dict[str, float]] = [
        {"top_p": 0.9},
        {"top_p": 0.3},
        {"top_p": 0.999},
        {"top_k": 7},
        {"top_k": 3000, "top_p": 0.7},
        {"min_p": 0.02},
    ]
    params = [
        SamplingParams(**cut, temperature=temperature, seed=i)  # type: ignore[arg-type]
        for i, cut in enumerate(cuts)
    ]
    for position in range(5):
        logits = random_logits(len(cuts), seed=position, vocabulary=5003)
        drawn = draw(logits, [SamplerRow(p) for p in params], [0] * 6, [position] * 6)
        wanted = [expected(row, p, [], position) for row, p in zip(logits, params, strict=True)]
        assert drawn == wanted


def mixed_params() -> list[SamplingParams]:
    """All options, every third one greedy."""
    options: list[dict[str, object]] = [parameter.values[0] for parameter in OPTIONS]  # type: ignore[misc]
    return [
        SamplingParams(**(o | {"temperature": 0.0} if i % 3 == 0 else o), seed=i)  # type: ignore[arg-type]
        for i, o in enumerate(options)
    ]


@pytest.mark.parametrize("vocabulary", [VOCABULARY, 5003])
def test_rows_of_a_mixed_batch_draw_what_they_draw_alone(vocabulary: int) -> None:
    params = mixed_params()
    contexts = [[i, i + 1, 3] for i in range(len(params))]
    logits = random_logits(len(params), seed=5, vocabulary=vocabulary)
    inputs = [i % 7 for i in range(len(params))]
    positions = [i * 3 for i in range(len(params))]
    rows = [SamplerRow.start(p, c) for p, c in zip(params, contexts, strict=True)]
    together = draw(logits, rows, inputs, positions)
    one_by_one = [
        draw(logits[i : i + 1], [SamplerRow.start(p, c)], [inputs[i]], [positions[i]])[0]
        for i, (p, c) in enumerate(zip(params, contexts, strict=True))
    ]
    assert together == one_by_one


def test_rows_come_and_go_and_start_again_and_draw_the_same() -> None:
    # A context longer than some windows, shorter than others.
    params = mixed_params()
    contexts = [[(i * 7 + j) % VOCABULARY for j in range(10)] for i in range(len(params))]
    steps = 12
    logits = [random_logits(len(params), seed=100 + step) for step in range(steps)]

    def run(order: np.random.Generator | None, restarts: bool) -> list[list[int]]:
        """Each row's tokens over all steps; with `order` a step may take any of the rows."""
        seen = [list(context) for context in contexts]
        rows = [SamplerRow.start(p, c[:-1]) for p, c in zip(params, contexts, strict=True)]
        done = [0] * len(params)
        while min(done) < steps:
            behind = [i for i in range(len(params)) if done[i] < steps]
            if order is not None:
                behind = list(order.permutation(behind)[: order.integers(1, len(behind) + 1)])
            if restarts:
                for i in behind:
                    rows[i] = SamplerRow.start(params[i], seen[i][:-1])
            tokens = draw(
                np.stack([logits[done[i]][i] for i in behind]),
                [rows[i] for i in behind],
                [seen[i][-1] for i in behind],
                [done[i] for i in behind],
            )
            for i, token in zip(behind, tokens, strict=True):
                seen[i].append(token)
                done[i] += 1
        return seen

    together = run(None, restarts=False)
    assert run(np.random.default_rng(1), restarts=False) == together
    assert run(np.random.default_rng(2), restarts=True) == together


def test_each_row_looks_back_as_far_as_its_own_window() -> None:
    # What is in the window is ruled out, so that a window of n goes round n + 1 tokens.
    windows = (2, 6, 1, 300)
    rows = [
        SamplerRow.start(
            SamplingParams(temperature=0.0, presence_penalty=1000.0, penalty_window=window), []
        )
        for window in windows
    ]
    logits = np.repeat(-np.arange(VOCABULARY, dtype=float)[None], len(rows), axis=0)
    drawn = [[0] * len(rows)]
    for position in range(20):
        drawn.append(draw(logits, rows, drawn[-1], [position] * len(rows)))
    for window, tokens in zip(windows, zip(*drawn, strict=True), strict=True):
        assert list(tokens) == [i % (window + 1) for i in range(21)]


def test_several_positions_of_a_request_are_drawn_in_one_call() -> None:
    for params in mixed_params():
        context, drafted = [4, 9], [17, 4, 17, 60]
        logits = random_logits(len(drafted), seed=8)
        one_by_one = []
        row = SamplerRow.start(params, context)
        for position, (line, token) in enumerate(zip(logits, drafted, strict=True)):
            one_by_one += draw(line[None], [row], [token], [position])
        rows = [row] * len(drafted)
        if params.penalised:
            with pytest.raises(ValueError, match="once"):
                draw(logits, rows, drafted, range(len(drafted)))
            rows = [SamplerRow.start(params, context + drafted[:i]) for i in range(len(drafted))]
        assert draw(logits, rows, drafted, range(len(drafted))) == one_by_one


def test_the_draw_depends_on_seed_and_position_alone() -> None:
    logits = np.repeat(random_logits(1, seed=1), 64, axis=0)

    def drawn(seed: int) -> list[int]:
        rows = [SamplerRow(SamplingParams(seed=seed)) for _ in range(64)]
        return draw(logits, rows, [0] * 64, range(64))

    mx.random.seed(0)
    first = drawn(5)
    mx.random.seed(1)
    assert drawn(5) == first
    assert drawn(6) != first
    rows = [SamplerRow(SamplingParams(seed=5)) for _ in range(64)]
    assert draw(logits, rows, [0] * 64, [9] * 64) == [first[9]] * 64


def test_keys_stay_the_same_from_version_to_version() -> None:
    # A stream that is resumed by a newer runner goes on with the same draws.
    assert draw_key(0, 0) == (2802244911, 1293516399)
    assert draw_key(2**63 - 1, 5) == (1216274214, 3709290355)
    assert draw_key(42, 1, purpose=1) == (1325695655, 727182973)


def test_keys_are_distinct() -> None:
    keys = {
        draw_key(seed, position, purpose)
        for seed in (0, 1, 2, 2**32, 2**62, 2**63 - 1)
        for position in range(2000)
        for purpose in (0, 1)
    }
    assert len(keys) == 6 * 2000 * 2


def test_choices_have_seeds_of_their_own() -> None:
    assert [choice_seed(7, choice) for choice in range(3)] == [
        7,
        8326263253755198632,
        2565947550714071274,
    ]
    seeds = {choice_seed(seed, choice) for seed in (0, 1, 2**63 - 1) for choice in range(500)}
    assert len(seeds) == 1500
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(seed=1),
        SamplingParams(seed=2, temperature=0.7, top_k=10, top_p=0.9),
        SamplingParams(seed=3, min_p=0.05),
    ],
    ids=["plain", "top_k and top_p", "min_p"],
)
def test_many_draws_follow_the_distribution(params: SamplingParams) -> None:
    draws = 4096
    logits = random_logits(1, seed=2)
    probabilities = softmax(truncated(logits[0], params, xtc=False))
    rows = [SamplerRow(params)] * draws
    drawn = Counter(draw(np.repeat(logits, draws, axis=0), rows, [0] * draws, range(draws)))
    assert all(probabilities[token] > 0 for token in drawn)
    # Pearson's statistic over the tokens that are likely enough for it.
    likely = [i for i in range(VOCABULARY) if probabilities[i] * draws >= 10]
    wanted = probabilities[likely] * draws
    statistic = float(np.sum((np.array([drawn[i] for i in likely]) - wanted) ** 2 / wanted))
    # Mean k and deviation sqrt(2k) for k cells: five deviations never happen by chance.
    assert statistic < len(likely) + 5 * math.sqrt(2 * len(likely))


def test_xtc_applies_as_often_as_asked() -> None:
    params = SamplingParams(seed=4, xtc_probability=0.3, xtc_threshold=0.1)
    logits = np.full((1, VOCABULARY), -20.0)
    logits[0, :2] = 2.0, 1.0  # Where the rule applies, only the second is left.
    drawn = [draw(logits, [SamplerRow(params)], [0], [at])[0] for at in range(1000)]
    share = softmax(logits[0])[1]
    assert drawn.count(1) / 1000 == pytest.approx(0.3 + 0.7 * share, abs=0.06)


def test_xtc_leaves_the_last_of_a_top_k_however_unlikely() -> None:
    params = SamplingParams(seed=4, top_k=2, xtc_probability=1.0, xtc_threshold=0.0)
    logits = np.full((1, VOCABULARY), -60.0)
    logits[0, :2] = 0.0, -30.0
    assert draw(logits, [SamplerRow(params)], [0], [0]) == [1]


@pytest.mark.parametrize("temperature", [1e-45, 1e-38, 1e-20, 1e-6])
def test_the_smallest_temperatures_take_the_likeliest(temperature: float) -> None:
    params = SamplingParams(temperature=temperature, seed=1, top_p=0.9, min_p=0.1)
    logits = random_logits(8, seed=3) + 10
    rows = [SamplerRow(params)] * 8
    assert draw(logits, rows, [0] * 8, range(8)) == np.argmax(logits, axis=-1).tolist()


def test_half_precision_logits_are_sampled_like_full_ones() -> None:
    logits = mx.array(random_logits(4, seed=6), mx.float16)
    rows = [SamplerRow(SamplingParams(seed=i, top_p=0.9)) for i in range(4)]
    inputs = mx.zeros((4,), mx.uint32)
    half = sample(logits, inputs, rows, range(4))
    full = sample(logits.astype(mx.float32), inputs, rows, range(4))
    assert half.tolist() == full.tolist()


def test_what_is_ruled_out_is_never_drawn() -> None:
    options: list[dict[str, float]] = [
        {},
        {"temperature": 10.0},
        {"top_p": 0.999},
        {"top_k": 100},
        {"min_p": 1e-9},
        {"xtc_probability": 1.0, "xtc_threshold": 0.0},
        {"temperature": 0.0},
    ]
    rows = [SamplerRow(SamplingParams(**o, seed=1)) for o in options]  # type: ignore[arg-type]
    logits = random_logits(len(rows), seed=1, vocabulary=3000)
    allowed = [5, 70, 2999]
    ruled_out = np.delete(np.arange(3000), allowed)
    logits[:, ruled_out] = -math.inf
    for position in range(50):
        assert set(draw(logits, rows, [0] * 7, [position] * 7)) <= set(allowed)
    logits[:, allowed[1:]] = -math.inf
    assert draw(logits, rows, [0] * 7, [0] * 7) == [5] * 7


@pytest.mark.parametrize("bad", [math.nan, -math.inf, math.inf])
@pytest.mark.parametrize("vocabulary", [VOCABULARY, 3000])
def test_broken_logits_stay_in_their_row(bad: float, vocabulary: int) -> None:
    params = mixed_params()
    logits = random_logits(len(params), seed=4, vocabulary=vocabulary)
    where = range(len(params))

    def drawn(logits: Array) -> list[int]:
        rows = [SamplerRow.start(p, [1, 2, 3]) for p in params]
        return draw(logits, rows, [4] * len(rows), where)

    whole = drawn(logits)
    for share in (slice(None), slice(0, 10), slice(vocabulary - 1, None)):
        for parity in (0, 1):
            broken = logits.copy()
            broken[parity::2, share] = bad
            tokens = drawn(broken)
            assert tokens[1 - parity :: 2] == whole[1 - parity :: 2]
            assert max(tokens) < vocabulary


def test_equally_likely_tokens_are_cut_together() -> None:
    # A cut must not depend on the order in which equal values happen to be found.
    logits = np.full((1, 3000), -1.0)
    logits[0, ::10] = 2.0
    for options in ({"top_k": 5}, {"top_p": 0.01}, {"top_k": 5, "top_p": 0.01}):
        params = SamplingParams(seed=3, **options)
        rows = [SamplerRow(params)] * 400
        tokens = draw(np.repeat(logits, 400, axis=0), rows, [0] * 400, range(400))
        assert all(token % 10 == 0 for token in tokens)
        assert len(set(tokens)) > 150


def test_a_small_change_of_the_logits_seldom_changes_a_draw() -> None:
    # Rounding differs between a row alone and in a batch. The inverse of the running sum,
    # say, would draw another token in one of a hundred cases here.
    draws, noise = 2000, 1e-3
    logits = random_logits(draws, seed=9, vocabulary=1024) * 1.5
    nearly = logits + np.random.default_rng(10).normal(0, noise, logits.shape)
    rows = [SamplerRow(SamplingParams(seed=12))] * draws
    first, second = (draw(x, rows, [0] * draws, range(draws)) for x in (logits, nearly))
    assert sum(a != b for a, b in zip(first, second, strict=True)) <= 8


def test_nothing_is_computed_before_it_is_asked_for() -> None:
    params = mixed_params()
    rows = [SamplerRow.start(p, [1]) for p in params]
    logits = mx.array(random_logits(len(rows), seed=0, vocabulary=30_000), mx.float32)
    inputs = mx.zeros((len(rows),), mx.uint32)
    mx.eval(logits, inputs)
    mx.reset_peak_memory()
    before = mx.get_peak_memory(), mx.get_active_memory()
    tokens = sample(logits, inputs, rows, [0] * len(rows))
    assert mx.get_active_memory() - before[1] < logits.nbytes / 10
    mx.eval(tokens)
    assert mx.get_peak_memory() - before[1] > logits.nbytes


@pytest.mark.parametrize("options", [{"presence_penalty": 1.0}, {"logit_bias": ((0, 1.0),)}, {}])
def test_the_callers_logits_stay_as_they_are(options: dict[str, object]) -> None:
    values = random_logits(2, seed=7)
    logits = mx.array(values, mx.float32)
    params = SamplingParams(**options, top_p=0.5)  # type: ignore[arg-type]
    rows = [SamplerRow.start(params, [1, 2]) for _ in range(2)]
    mx.eval(sample(logits, mx.zeros((2,), mx.uint32), rows, [0, 0]))
    assert np.array_equal(np.array(logits), values.astype(np.float32))
