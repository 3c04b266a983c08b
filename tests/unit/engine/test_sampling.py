"""Every option of the sampler against the same rules in plain numpy."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import mlx.core as mx
import numpy as np
import pytest

from headrace_runner.engine.text.sampling import SamplerRow, SamplingParams, draw_key, sample
from tests.unit.engine.reference import Array, expected, softmax, truncated

VOCABULARY = 50

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


def random_logits(rows: int, seed: int) -> Array:
    return np.random.default_rng(seed).normal(0, 2.0, (rows, VOCABULARY))


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


def test_rows_of_a_mixed_batch_draw_what_they_draw_alone() -> None:
    options: list[dict[str, object]] = [parameter.values[0] for parameter in OPTIONS]  # type: ignore[misc]
    params = [
        SamplingParams(**(o | {"temperature": 0.0} if i % 3 == 0 else o), seed=i)  # type: ignore[arg-type]
        for i, o in enumerate(options)
    ]
    contexts = [[i, i + 1, 3] for i in range(len(params))]
    logits = random_logits(len(params), seed=5)
    inputs = [i % 7 for i in range(len(params))]
    positions = [i * 3 for i in range(len(params))]
    rows = [SamplerRow.start(p, c) for p, c in zip(params, contexts, strict=True)]
    together = draw(logits, rows, inputs, positions)
    one_by_one = [
        draw(logits[i : i + 1], [SamplerRow.start(p, c)], [inputs[i]], [positions[i]])[0]
        for i, (p, c) in enumerate(zip(params, contexts, strict=True))
    ]
    assert together == one_by_one


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
