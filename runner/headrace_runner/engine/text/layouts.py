"""Finds the layout that a model can be computed in."""

from __future__ import annotations

import logging
from typing import Any

import mlx.core as mx

from headrace.errors import UnsupportedModel
from headrace_runner.engine.text.attention import as_they_come, choose_way
from headrace_runner.engine.text.flat import FlatPass
from headrace_runner.engine.text.flat_layout import FlatLayout
from headrace_runner.engine.text.layout import Layout
from headrace_runner.engine.text.stock_layout import StockLayout
from headrace_runner.engine.text.windows import Prompt, Segment, Window
from headrace_runner.models.cpu import rounds
from headrace_runner.models.fast_paths import (
    route_attention,
    trim_head,
    vectorise,
    vectorise_functions,
)
from headrace_runner.models.insides import attends_to_everything, new_caches, unbatchable_cache
from headrace_runner.models.lora import Mixture

logger = logging.getLogger(__name__)

_PROBES = ((1, 2, 3), (3, 1))
"""Prompts whose logits both ways must be the same. Of different lengths."""
_TOLERANCE = {mx.float32: 1e-3, mx.float16: 3e-2, mx.bfloat16: 1e-1}
"""Of the largest logit, by the type of the logits."""
_TOLERANCE_ROUNDED = 3e-2
"""The same where numbers are rounded to 8 bits on the way."""
_TOLERANCE_KEPT = 1e-1
"""The same where keys and values are rounded too, after they were tried without: any last digit may
turn one of 8 bits."""


def choose_layout(
    model: Any, *, on_cpu: bool, prefix_bytes: int, mixture: Mixture | None = None
) -> Layout[Any]:
    """The fastest layout that computes this model right.

    That of our own is tried beside mlx-lm's, on a few tokens: a model class may do anything with
    its cache, and only the result tells. `on_cpu` chooses the ways that are fast on a CPU.
    `prefix_bytes` is the budget for what is remembered; `mixture` is what adapters go by, of which
    there are none yet. Raises UnsupportedModel for a model that can be in no batch.
    """
    if (kind := unbatchable_cache(model)) is not None:
        raise UnsupportedModel(f"this model's cache, {kind} of mlx-lm, cannot be batched")
    if attends_to_everything(model):
        expected = [_alone(model, probe) for probe in _PROBES]
        route_attention(model)
        way = choose_way(on_cpu=on_cpu, by_kernels=rounds(model))
        layers, head = len(new_caches(model)), trim_head(model)
        # First with keys and values as they come: whether the way is right must not be hidden
        # behind what is rounded.
        flat = FlatPass(model, layers, head, way._replace(keep=as_they_come), mixture)
        undo = vectorise(model) if on_cpu else None
        tolerance = _tolerance(model, expected[0])
        nothing = _tried(flat, expected, tolerance)
        if nothing is None and undo is not None:
            undo()
            nothing = _tried(flat, expected, tolerance)
        if nothing is not None and way.keep is not as_they_come:
            rounding = FlatPass(model, layers, head, way, mixture)
            if (rounded := _tried(rounding, expected, _TOLERANCE_KEPT)) is not None:
                return FlatLayout(rounding, rounded, prefix_bytes)
            logger.warning(
                "keys and values are kept in float32; in 16 bits they change the results"
            )
        if nothing is not None:
            return FlatLayout(flat, nothing, prefix_bytes)
        logger.warning("the model computes attention in a way of its own; prompts go one by one")
    if on_cpu and rounds(model):
        vectorise_functions(model)
    return StockLayout(model, prefix_bytes=prefix_bytes, mixture=mixture)


def _alone(model: Any, tokens: tuple[int, ...]) -> mx.array:
    logits: mx.array = model(mx.array([tokens]), cache=new_caches(model))[0, -1]
    mx.eval(logits)
    return logits


def _tolerance(model: Any, logits: mx.array) -> float:
    if rounds(model):
        return _TOLERANCE_ROUNDED
    return _TOLERANCE.get(logits.dtype, 1e-1)


def _tried(flat: FlatPass, expected: list[mx.array], tolerance: float) -> Segment | None:
    """Keys and values of no tokens at all, in the model's shapes; None if the results differ."""
    prompts = [Prompt(len(probe) - 1) for probe in _PROBES]
    (first, second), (one, other) = prompts, _PROBES
    alone, both = Window(), Window()
    try:
        flat.prefill([(first, one[:-1])])
        alone.join(0, first.segment())
        # The second prompt in the pass of a row that decodes, then two such rows.
        beside = flat.decode([alone], mx.array(one[-1:]), chunks=[(second, other[:-1])])
        for row, prompt in enumerate(prompts):
            both.join(row, prompt.segment())
        logits = mx.concatenate([flat.decode([both], mx.array([one[-1], other[-1]])), beside])
        mx.eval(logits)
    except Exception:
        logger.debug("the flat pass failed", exc_info=True)
        return None
    wanted = mx.stack([*expected, expected[0]])
    if logits.shape != wanted.shape:
        return None
    limit = tolerance * mx.abs(wanted).max()
    same = bool((mx.abs(logits - wanted).max() <= limit).item())
    return prompts[0].segment().part(0, 0) if same else None
