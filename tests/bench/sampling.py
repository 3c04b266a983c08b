"""How long a draw takes: `python -m tests.bench.sampling`, beside mlx-lm's samplers row by row, and
beside a sort of the vocabulary of each row that has a top_p, which is how Headrace began."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict

import mlx.core as mx
import numpy as np
from mlx_lm.sample_utils import make_logits_processors, make_sampler

from headrace_runner.engine.text.sampling import SamplerRow, SamplingParams, draw_key, sample

_REPEATS = 7

MIXES: dict[str, list[dict[str, float]]] = {
    "greedy": [{"temperature": 0.0}],
    "temperature": [{"temperature": 0.7}, {"temperature": 1.0}],
    "top_p": [{"temperature": 0.7, "top_p": 0.9}, {"top_p": 0.95}],
    "top_k and top_p": [{"temperature": 0.8, "top_k": 40, "top_p": 0.95}, {"top_k": 64}],
    "min_p": [{"min_p": 0.05}],
    "penalties": [{"temperature": 0.0, "repetition_penalty": 1.1, "frequency_penalty": 0.1}],
    "all kinds": [
        {"temperature": 0.0},
        {"temperature": 1.0},
        {"temperature": 0.7, "top_p": 0.9},
        {"temperature": 0.8, "top_k": 40, "top_p": 0.95},
        {"min_p": 0.05, "repetition_penalty": 1.1},
        {"xtc_probability": 0.5, "xtc_threshold": 0.1},
    ],
}

Step = Callable[[int], mx.array]


def logits_of(shape: tuple[int, int], kind: str) -> mx.array:
    """Like a model's: a few tokens stand out. Or flat: no token does, and a nucleus is wide."""
    random = np.random.default_rng(0)
    values = random.normal(0, 1.0 if kind == "flat" else 2.5, shape).astype(np.float32)
    if kind == "peaked":
        values[:, ::997] += random.uniform(4, 13, values[:, ::997].shape)
    return mx.array(values)


def ours(logits: mx.array, params: Sequence[SamplingParams]) -> Step:
    rows = [SamplerRow.start(p, [1, 2, 3]) for p in params]
    inputs = mx.zeros((len(rows),), mx.uint32)
    return lambda position: sample(logits, inputs, rows, [position] * len(rows))


def mlx_lm(logits: mx.array, params: Sequence[SamplingParams]) -> Step:
    """As its BatchGenerator does where the samplers of the rows differ."""
    seen = mx.array([1, 2, 3])
    made = []
    for p in params:
        names = ("top_p", "min_p", "top_k", "xtc_probability", "xtc_threshold")
        sampler = make_sampler(p.temperature, **{name: asdict(p)[name] for name in names})
        penalties = (p.repetition_penalty, p.presence_penalty, p.frequency_penalty)
        repetition = penalties[0] if penalties[0] != 1.0 else None
        processors = make_logits_processors(
            repetition_penalty=repetition,
            presence_penalty=penalties[1],
            frequency_penalty=penalties[2],
        )
        made.append((sampler, processors))

    def step(_: int) -> mx.array:
        rows = [logits[i : i + 1] for i in range(len(made))]
        for i, (_sampler, processors) in enumerate(made):
            for process in processors:
                rows[i] = process(seen, rows[i])
        logprobs = mx.concatenate(rows)
        logprobs = logprobs - mx.logsumexp(logprobs, axis=-1, keepdims=True)
        return mx.concatenate([one(logprobs[i : i + 1]) for i, (one, _) in enumerate(made)])

    return step


def with_sort(logits: mx.array, params: Sequence[SamplingParams]) -> Step:
    """Temperature, top_k and top_p alone."""
    temperatures = mx.array([max(p.temperature, 1e-30) for p in params])[:, None]

    def step(position: int) -> mx.array:
        if all(p.greedy for p in params):
            return mx.argmax(logits, axis=-1)
        rows = [row[None] for row in logits / temperatures]
        for i, p in enumerate(params):
            if p.top_k:
                least = mx.topk(rows[i], p.top_k).min(axis=-1, keepdims=True)
                rows[i] = mx.where(rows[i] < least, -math.inf, rows[i])
            if p.top_p < 1.0:
                ordered = -mx.sort(-rows[i], axis=-1)
                before = mx.cumsum(mx.softmax(ordered, axis=-1), axis=-1, inclusive=False)
                kept = (before < p.top_p).sum(axis=-1, keepdims=True)
                least = mx.take_along_axis(ordered, kept - 1, axis=-1)
                rows[i] = mx.where(rows[i] < least, -math.inf, rows[i])
        keys = mx.array([draw_key(p.seed, position) for p in params], mx.uint32)
        draw = mx.vmap(lambda row, key: mx.random.categorical(row, key=key))
        return draw(mx.concatenate(rows), keys)

    return step


def milliseconds(step: Step) -> float:
    """The least of some, after a first one: whatever else the machine does only adds."""
    times = []
    for position in range(_REPEATS + 1):
        begin = time.perf_counter()
        mx.eval(step(position))
        times.append(time.perf_counter() - begin)
    return min(times[1:]) * 1e3


def main() -> None:
    print(f"{'ms a draw':36}{'headrace':>10}{'sort':>10}{'mlx-lm':>10}")
    ways = (ours, with_sort, mlx_lm)
    for kind, vocabulary in (("peaked", 49_152), ("flat", 49_152), ("peaked", 151_936)):
        for count in (1, 8, 32):
            logits = logits_of((count, vocabulary), kind)
            for name, mix in MIXES.items():
                params = [
                    SamplingParams(**mix[i % len(mix)], seed=i)  # type: ignore[arg-type]
                    for i in range(count)
                ]
                has_sort = name not in ("min_p", "penalties", "all kinds")
                times = [
                    f"{milliseconds(way(logits, params)):10.2f}"
                    if has_sort or way is not with_sort
                    else f"{'–':>10}"
                    for way in ways
                ]
                print(f"{f'{count}×{vocabulary} {kind}, {name}':36}{''.join(times)}")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
