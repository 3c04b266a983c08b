"""How a GGUF file scales rotary embeddings, as mlx-lm's configuration says the same.

GGUF keeps some scalings as their result, one factor for each frequency in a tensor of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from headrace_runner.convert.metadata import Metadata

FREQS = "rope_freqs.weight"
LONG, SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
TENSORS = frozenset({FREQS, LONG, SHORT})
"""Tensors that hold factors; none of them is a weight of the model."""

ALL = frozenset({"linear", "yarn", "llama3"})
"""What mlx-lm's `initialize_rope` does, for the models that ask it."""

# The one set of parameters that Llama 3.1 to 3.3 were released with; GGUF keeps only their result.
_LLAMA3_ROPE = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def theta(metadata: Metadata) -> float:
    """The base of the frequencies."""
    return metadata.number("rope.freq_base") or 10000.0


def scaling(metadata: Metadata, obeyed: frozenset[str]) -> dict[str, Any] | None:
    """`rope_scaling` of config.json, None for unscaled embeddings.

    Raises UnsupportedModel for what is not in `obeyed`: "linear", "yarn", "llama3", "longrope".
    """
    kind, found = _scaling(metadata)
    if found is not None and kind not in obeyed:
        raise metadata.unsupported(f"rope scaling {kind!r}")
    return found


def _scaling(metadata: Metadata) -> tuple[str, dict[str, Any] | None]:
    kind = metadata.text("rope.scaling.type") or "none"
    factor = metadata.number("rope.scaling.factor") or 1.0
    if metadata.has(LONG):
        return "longrope", _longrope(metadata)
    if metadata.has(FREQS):
        return "llama3", _llama3(metadata)
    if kind == "none":
        return kind, None
    if kind == "linear":
        return kind, {"type": "linear", "factor": float(factor)}
    if kind == "yarn":
        return kind, _yarn(metadata, float(factor))
    raise metadata.unsupported(f"rope scaling {kind!r}")


def _yarn(metadata: Metadata, factor: float) -> dict[str, Any]:
    for key, usual in (("yarn_ext_factor", 1.0), ("attn_factor", 1.0), ("yarn_attn_factor", 1.0)):
        if (metadata.number(f"rope.scaling.{key}") or usual) != usual:
            raise metadata.unsupported(f"rope scaling 'yarn' with {key}")
    if metadata.number("rope.scaling.yarn_log_multiplier"):
        raise metadata.unsupported("rope scaling 'yarn' with yarn_log_multiplier")
    found = {
        "type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": metadata.required(
            "rope.scaling.original_context_length"
        ),
    }
    for key in ("beta_fast", "beta_slow"):
        value = metadata.number(f"rope.scaling.yarn_{key}")
        if value is not None:
            found[key] = value
    return found


def _llama3(metadata: Metadata) -> dict[str, Any]:
    factors = _factors(metadata, FREQS)
    found: dict[str, Any] = {"rope_type": "llama3", "factor": max(factors)} | _LLAMA3_ROPE
    if not np.allclose(factors, llama3_factors(metadata.rope_dim, theta(metadata), found), 1e-3):
        raise metadata.unsupported("rope frequency factors other than Llama 3's")
    return found


def _longrope(metadata: Metadata) -> dict[str, Any]:
    original = metadata.required("rope.scaling.original_context_length")
    ratio = metadata.required("context_length") / original
    usual = math.sqrt(1 + math.log(ratio) / math.log(original)) if ratio > 1 < original else 1.0
    stated = metadata.number("rope.scaling.attn_factor")
    # mlx-lm computes it by itself and takes no other.
    if stated is not None and not math.isclose(stated, usual, rel_tol=1e-3):
        raise metadata.unsupported(f"rope scaling 'longrope' with attn_factor {stated:.4g}")
    return {
        "type": "longrope",
        "long_factor": _factors(metadata, LONG),
        "short_factor": _factors(metadata, SHORT),
        "original_max_position_embeddings": original,
    }


def _factors(metadata: Metadata, name: str) -> list[float]:
    """A tensor of factors, one for each pair of rotated dimensions."""
    tensor = metadata.gguf.tensors.get(name)
    wanted = metadata.rope_dim // 2
    if tensor is None or tensor.type.name != "F32" or tensor.elements != wanted:
        raise metadata.corrupt(f"tensor {name!r} is not {wanted} float32")
    factors = metadata.gguf.read(tensor).view("<f4")
    if not np.isfinite(factors).all():
        raise metadata.corrupt(f"tensor {name!r} has an element that is not a finite number")
    return [float(factor) for factor in factors]


def llama3_factors(head_dim: int, base: float, scaling: Mapping[str, Any]) -> list[float]:
    """By what Llama 3.1 divides each rotary frequency, as llama.cpp's converter computes it."""
    context = scaling["original_max_position_embeddings"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    factors = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * math.pi * base ** (i / head_dim)
        if wavelength < context / high:
            factors.append(1.0)
        elif wavelength > context / low:
            factors.append(scaling["factor"])
        else:
            smooth = (context / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / scaling["factor"] + smooth))
    return factors
