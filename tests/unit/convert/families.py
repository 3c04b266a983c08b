"""Tiny models of mlx-lm's own classes, and a writer of them as llama.cpp's converter writes.

The names of tensors come from llama.cpp's own table, in the `gguf` package; nothing in here is
taken from the importer.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import numpy as np
import numpy.typing as npt
from mlx.utils import tree_flatten

from tests.unit.convert.tiny import Vocabulary, byte_vocabulary

Array = npt.NDArray[np.float32]
Edit = Callable[[gguf.GGUFWriter], None]
LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, FEED_FORWARD = 2, 64, 4, 2, 16, 96
TYPES = gguf.GGMLQuantizationType
_COMMON = {
    "num_hidden_layers": LAYERS,
    "hidden_size": HIDDEN,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "intermediate_size": FEED_FORWARD,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
}
_MODULE_NAMES = {"mlp.switch_mlp": "mlp.experts"}


@dataclass(frozen=True)
class Case:
    """One architecture: its settings in mlx-lm's words, and what the file says of them."""

    architecture: str
    model_type: str
    settings: dict[str, Any] = field(default_factory=dict)
    edit: Edit = lambda writer: None
    permuted: bool = False
    tied: bool = False
    plus_one: bool = False
    layers: int = LAYERS
    extra: dict[str, Array] = field(default_factory=dict)
    """Tensors beside the model's own."""


def _granite(writer: gguf.GGUFWriter) -> None:
    writer.add_attention_scale(0.3)
    writer.add_embedding_scale(3.0)
    writer.add_residual_scale(0.5)
    writer.add_logit_scale(2.0)


def _wide_heads(writer: gguf.GGUFWriter) -> None:
    writer.add_key_length(32)
    writer.add_value_length(32)


def _gemma2(writer: gguf.GGUFWriter) -> None:
    _wide_heads(writer)
    writer.add_attn_logit_softcapping(2.0)
    writer.add_final_logit_softcapping(3.0)
    writer.add_sliding_window(4096)


def _gemma3(writer: gguf.GGUFWriter) -> None:
    _wide_heads(writer)
    writer.add_sliding_window(8)
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(4.0)


def _yarn(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(4.0)
    writer.add_rope_scaling_orig_ctx_len(64)


def _linear(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(4.0)


def _experts(writer: gguf.GGUFWriter) -> None:
    writer.add_expert_count(4)
    writer.add_expert_used_count(2)
    writer.add_expert_feed_forward_length(32)


def _longrope(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_dimension_count(12)
    writer.add_rope_scaling_orig_ctx_len(64)
    writer.add_rope_scaling_attn_factors(float(np.sqrt(1 + np.log(4) / np.log(64))))


_YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
_LONG, _SHORT = [1.0, 1.5, 2.0, 3.0, 4.0, 6.0], [1.0] * 6
CASES = {
    "llama": Case("llama", "llama", permuted=True),
    "llama-tied": Case("llama", "llama", permuted=True, tied=True),
    "llama-biases": Case(
        "llama", "llama", {"attention_bias": True, "mlp_bias": True}, permuted=True
    ),
    "mistral-head-dim": Case(
        "llama", "llama", {"head_dim": 32, "rope_theta": 1e6}, _wide_heads, permuted=True
    ),
    "llama-linear": Case(
        "llama",
        "llama",
        {"rope_scaling": {"type": "linear", "factor": 4.0}},
        _linear,
        permuted=True,
    ),
    "smollm3": Case("smollm3", "smollm3", permuted=True, tied=True, layers=4),
    "granite": Case(
        "granite",
        "granite",
        {
            "attention_multiplier": 0.3,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.5,
            "logits_scaling": 2.0,
            "attention_bias": False,
            "mlp_bias": False,
        },
        _granite,
        permuted=True,
        tied=True,
    ),
    "qwen2": Case("qwen2", "qwen2", {"rope_theta": 1e6}),
    "qwen2-yarn": Case("qwen2", "qwen2", {"rope_scaling": _YARN}, _yarn, tied=True),
    "qwen3": Case("qwen3", "qwen3", {"head_dim": 32}, _wide_heads, tied=True),
    "qwen3moe": Case(
        "qwen3moe",
        "qwen3_moe",
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        },
        _experts,
    ),
    "olmo2": Case("olmo2", "olmo2"),
    "gemma": Case("gemma", "gemma", {"head_dim": 32}, _wide_heads, tied=True, plus_one=True),
    "gemma2": Case(
        "gemma2",
        "gemma2",
        {
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
        _gemma2,
        tied=True,
        plus_one=True,
    ),
    "gemma3": Case(
        "gemma3",
        "gemma3_text",
        {
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "sliding_window": 8,
            "sliding_window_pattern": 6,
            "rope_theta": 1e6,
            "rope_local_base_freq": 10000.0,
            "rope_scaling": {"type": "linear", "factor": 4.0},
        },
        _gemma3,
        tied=True,
        plus_one=True,
        layers=7,
    ),
    "phi3": Case("phi3", "phi3"),
    "phi3-longrope": Case(
        "phi3",
        "phi3",
        {
            "partial_rotary_factor": 0.75,
            "original_max_position_embeddings": 64,
            "rope_scaling": {"type": "longrope", "long_factor": _LONG, "short_factor": _SHORT},
        },
        _longrope,
        tied=True,
        extra={
            "rope_factors_long.weight": np.array(_LONG, np.float32),
            "rope_factors_short.weight": np.array(_SHORT, np.float32),
        },
    ),
    "starcoder2": Case("starcoder2", "starcoder2", {"norm_epsilon": 1e-5}, tied=True),
}


def build(case: Case, vocabulary_size: int) -> Any:
    """A model of mlx-lm's class with random weights, in which every parameter matters."""
    module = importlib.import_module(f"mlx_lm.models.{case.model_type}")
    settings = _COMMON | {
        "model_type": case.model_type,
        "vocab_size": vocabulary_size,
        "num_hidden_layers": case.layers,
        "tie_word_embeddings": case.tied,
    }
    model = module.Model(module.ModelArgs.from_dict(settings | case.settings))
    random = np.random.default_rng(11)
    weights = []
    for name, array in parameters(model):
        if case.tied and name.startswith("lm_head"):
            continue
        if "norm" in name and name.endswith("weight"):
            values = random.uniform(0.5, 1.5, array.shape) - case.plus_one
        else:
            values = random.normal(0, 0.25, array.shape)
        weights.append((name, mx.array(values, mx.float32)))
    sanitized = model.sanitize(dict(weights)) if hasattr(model, "sanitize") else dict(weights)
    model.load_weights(list(sanitized.items()))
    mx.eval(model.parameters())
    return model


def parameters(model: Any) -> list[tuple[str, mx.array]]:
    """All parameters with their names."""
    flat = tree_flatten(model.parameters())
    assert isinstance(flat, list)
    return flat


def write(
    case: Case,
    model: Any,
    path: Path,
    *,
    matrices: gguf.GGMLQuantizationType = TYPES.F32,
    vocabulary: Vocabulary | None = None,
) -> None:
    """Write `model` to `path`, its matrices in the type `matrices`."""
    vocabulary = vocabulary or byte_vocabulary()
    settings = _COMMON | {"num_hidden_layers": case.layers} | case.settings
    writer = gguf.GGUFWriter(path, case.architecture)
    writer.add_context_length(settings["max_position_embeddings"])
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(case.layers)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(settings["rope_theta"])
    if "norm_epsilon" in settings:
        writer.add_layer_norm_eps(settings["norm_epsilon"])
    else:
        writer.add_layer_norm_rms_eps(settings["rms_norm_eps"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_merges(vocabulary.merges)
    writer.add_token_types(vocabulary.types)
    writer.add_eos_token_id(0)
    case.edit(writer)
    names = gguf.get_tensor_name_map(_architecture(case.architecture), case.layers)
    for name, array in parameters(model):
        values = np.array(array)
        if case.permuted and ("q_proj" in name or "k_proj" in name):
            heads = HEADS if "q_proj" in name else KV_HEADS
            halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
            values = halves.swapaxes(1, 2).reshape(values.shape)
        if case.plus_one and "norm" in name:
            values = values + 1
        for mlx_name, hf_name in _MODULE_NAMES.items():
            name = name.replace(mlx_name, hf_name)
        kind = matrices if values.ndim > 1 else TYPES.F32
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert found is not None, name
        writer.add_tensor(found, gguf.quantize(values, kind), raw_dtype=kind)
    for name, values in case.extra.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _architecture(name: str) -> gguf.MODEL_ARCH:
    return next(arch for arch, named in gguf.MODEL_ARCH_NAMES.items() if named == name)
