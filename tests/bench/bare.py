"""The bare MLX loop: what a machine gives without a server. A child of the bench, run by its path.

Reads from stdin, line by line, `{"prompts": [text], "tokens": count}`; prefills all prompts
together, then runs batched forward and argmax and nothing else; answers with one line of JSON:
seconds at which each step's tokens were there, counted from the request's arrival, and the texts.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import BatchKVCache
from mlx_lm.utils import load


def generate(model: Any, prompts: list[list[int]], tokens: int) -> tuple[list[float], Any]:
    """Greedy tokens for all prompts at once: the time of each step, and [step][prompt] tokens."""
    longest = max(map(len, prompts))
    padding = [longest - len(prompt) for prompt in prompts]
    padded = mx.array([[0] * pad + p for pad, p in zip(padding, prompts, strict=True)])
    cache = [BatchKVCache(padding) for _ in model.layers]
    model(padded[:, :-1], cache=cache)
    # Evaluates the caches alone, not the logits of the whole prompts.
    mx.eval([layer.state for layer in cache])

    step = _next(model, padded[:, -1], cache)
    steps = [step.tolist()]
    times = [time.perf_counter()]
    following = _next(model, step, cache)
    for left in reversed(range(1, tokens)):
        step = following
        if left > 1:
            # One step is always under way while the one before is read, as in mlx-lm itself.
            following = _next(model, step, cache)
        steps.append(step.tolist())
        times.append(time.perf_counter())
    return times, steps


def _next(model: Any, tokens: mx.array, cache: list[Any]) -> mx.array:
    step = mx.argmax(model(tokens[:, None], cache=cache)[:, -1, :], axis=-1)
    mx.async_eval(step)  # type: ignore[no-untyped-call]
    return step


def main() -> None:
    """Answers until stdin ends."""
    model, tokenizer = load(sys.argv[1])[:2]
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        begin = time.perf_counter()
        prompts = [list(tokenizer.encode(text)) for text in request["prompts"]]
        times, steps = generate(model, prompts, request["tokens"])
        answer = {
            "times": [moment - begin for moment in times],
            "prompt_tokens": [len(prompt) for prompt in prompts],
            "texts": [tokenizer.decode(list(row)) for row in zip(*steps, strict=True)],
        }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
