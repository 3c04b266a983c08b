"""Quantises a model directory of MLX or Hugging Face as mlx-lm does, one tensor after the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from headrace.errors import ModelCorrupt, UnsupportedModel
from headrace_runner.convert.facts import dumps
from headrace_runner.convert.plan import group_size
from headrace_runner.convert.progress import Meter, Report
from headrace_runner.convert.shards import write_shards
from headrace_runner.models.architectures import first_line
from headrace_runner.models.insides import load_lazily, quantized


def write_quantized(source: Path, output: Path, bits: int, report: Report) -> None:
    """Write the weights of `source`, quantised, and their config.json to `output`.

    Rows whose length is no multiple of a group stay as they are. Nothing but a shard of the result
    and the tensor in work is in memory.

    Raises UnsupportedModel where mlx-lm cannot build the model, or nothing in it can be quantised,
    and ModelCorrupt where the weights do not fit.
    """
    try:
        model, config = load_lazily(source)
        columns = {
            module.weight.shape[-1]
            for module in model.modules()
            if hasattr(module, "to_quantized") and "weight" in module
        }
        # One group for all that allows the most; 64 unless rows ask for the smaller one.
        group = next((size for size in (64, 32) if all(c % size == 0 for c in columns)), None)
        group = group or max((g for c in columns if (g := group_size(c))), default=None)
        if group is None:
            raise UnsupportedModel("no matrix of the model has rows that can be quantised")
        model, config = quantized(model, config, group, bits)
    except ValueError as error:
        raise ModelCorrupt(
            f"the tensors do not fit config.json: {first_line(error)}", file="model.safetensors"
        ) from error
    except (KeyError, TypeError, RuntimeError, AttributeError) as error:
        raise UnsupportedModel(
            f"mlx-lm cannot build this model: {type(error).__name__}: {first_line(error)}"
        ) from error
    (output / "config.json").write_text(dumps(config), encoding="utf-8")
    flat: Any = tree_flatten(model.parameters())
    del model  # Or it would hold every array until the end.
    write_shards(output, _one_by_one(flat, report))


def _one_by_one(
    arrays: list[tuple[str, mx.array]], report: Report
) -> Iterator[tuple[str, mx.array]]:
    meter = Meter(report, "convert", sum(array.nbytes for _, array in arrays))
    arrays.reverse()
    while arrays:
        name, array = arrays.pop()
        size = array.nbytes
        yield name, array
        del array
        meter.advance(size)
