"""What Headrace uses of mlx-lm's insides.

Names in there change between releases, so that nothing else imports them, but for `fast_paths`,
which puts other functions into its models. mlx-lm is pinned; see constraints.txt. It is imported
late, since that takes a second.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any


def model_classes(config: Mapping[str, Any]) -> object:
    """The classes behind a config.json, remapped names included. Raises ValueError for none."""
    from mlx_lm.utils import _get_classes

    return _get_classes(dict(config))


def load_lazily(model_dir: Path, *, strict: bool = True) -> tuple[Any, dict[str, Any]]:
    """A model whose weights are not read yet, and its configuration.

    Raises ValueError, KeyError, TypeError or RuntimeError where the weights do not fit.
    """
    from mlx_lm.utils import load_model

    return load_model(model_dir, lazy=True, strict=strict)


def dequantized(model: Any) -> Any:
    """The model with its quantised layers expanded, into the type of their scales. Lazy."""
    from mlx_lm.utils import dequantize_model

    return dequantize_model(model)


def quantized(
    model: Any, config: dict[str, Any], group_size: int, bits: int
) -> tuple[Any, dict[str, Any]]:
    """The model with its layers quantised as it allows itself, and its configuration. Lazy."""
    from mlx_lm.utils import quantize_model

    return quantize_model(model, config, group_size, bits)


def new_caches(model: Any) -> list[Any]:
    """Empty caches for one row, one a layer."""
    from mlx_lm.models.cache import make_prompt_cache

    return make_prompt_cache(model)


def attends_to_everything(model: Any) -> bool:
    """Whether every layer's cache keeps the keys and values of all tokens, and nothing else."""
    from mlx_lm.models.cache import KVCache

    return all(type(cache) is KVCache for cache in new_caches(model))


def unbatchable_cache(model: Any) -> str | None:
    """Names the class of cache that keeps this model out of a batch, if there is one."""

    def within(layers: Iterable[Any]) -> Iterator[str]:
        for layer in layers:
            # A list of caches merges whatever it holds, or fails when it is asked to.
            if not hasattr(layer, "merge"):
                yield type(layer).__name__
            yield from within(getattr(layer, "caches", ()))

    return next(within(new_caches(model)), None)


def inferred_reasoning(tokenizer: Any) -> tuple[str, str, tuple[str, ...]]:
    """The markers around a model's reasoning, "" for none, and those that mean text and no more.

    `tokenizer` is what mlx-lm asks: it has a chat template and a vocabulary.
    """
    from mlx_lm.tokenizer_utils import _infer_structural_markers, _infer_thinking

    start, end, *_ = _infer_thinking(tokenizer)  # type: ignore[no-untyped-call]
    around: Iterable[str] = _infer_structural_markers(tokenizer)  # type: ignore[no-untyped-call]
    return start or "", end or "", tuple(around)


def calls_are_json(parser: Any) -> bool:
    """Whether what a parser takes is one JSON object with `name` and `arguments`."""
    module: str = getattr(parser, "__module__", "")
    return module == "mlx_lm.tool_parsers.json_tools"


def inferred_tool_calls(tokenizer: Any, named: object) -> tuple[str, str, Any]:
    """The markers around a model's tool calls and their parser, None where they are not known.

    `named` is the parser that the model's own configuration names, if it does.
    """
    from mlx_lm.tokenizer_utils import _infer_tool_parser

    name = named or _infer_tool_parser(tokenizer)  # type: ignore[no-untyped-call]
    # The name may come from a model's file: it is to lead nowhere but to a parser.
    if not isinstance(name, str) or not name.isidentifier():
        return "", "", None
    try:
        module = importlib.import_module(f"mlx_lm.tool_parsers.{name}")
        return module.tool_call_start, module.tool_call_end, module.parse_tool_call
    except (ImportError, AttributeError):
        return "", "", None
