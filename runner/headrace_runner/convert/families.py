"""The architectures of GGUF files that are read, as a table: what mlx-lm calls their parts.

Names and layouts are those that llama.cpp's converter writes; configuration keys and modules those
of mlx-lm's model classes. A family says all that differs; `gguf_model` does the rest for all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from headrace_runner.convert import rope
from headrace_runner.convert.metadata import Metadata

Settings: TypeAlias = Callable[[Metadata], dict[str, Any]]
"""Gives the keys of config.json that a family has beside the common ones."""


@dataclass(frozen=True)
class Family:
    """How one architecture of GGUF becomes a model of mlx-lm."""

    model_type: str
    """mlx-lm's name."""
    class_name: str
    """`architectures` of config.json."""
    layer: Mapping[str, str]
    """GGUF's name of a tensor within a layer to mlx-lm's module there."""
    settings: Settings = lambda metadata: {}
    norm_epsilon: tuple[str, str] = ("attention.layer_norm_rms_epsilon", "rms_norm_eps")
    """The key of the metadata, and that of config.json."""
    rotated: bool = False
    """Whether the rows of q and k are stored for rotary embeddings of neighbouring elements."""
    norm_offset: bool = False
    """Whether norms are stored with the 1 added that mlx-lm adds by itself."""
    wide: bool = False
    """Whether activations leave the range of float16, so that half precision is bfloat16."""
    always_tied: bool = False
    """Whether mlx-lm's class has no head of its own."""
    own_head_dim: bool = True
    """Whether heads may be of another size than hidden / heads."""
    partial_rope: bool = False
    """Whether a part of each head may go without rotary embedding."""
    ropes: frozenset[str] = rope.ALL
    """The scalings of rotary embeddings that mlx-lm's class obeys."""
    obeys: frozenset[str] = frozenset()
    """Keys of the metadata that others refuse."""
    fine: tuple[str, ...] = ()
    """Modules that mlx-lm keeps at 8 bits or more, by the end of their names."""


_ATTENTION = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
_MLP = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
_EXPERTS = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.switch_mlp.gate_proj",
    "ffn_up_exps": "mlp.switch_mlp.up_proj",
    "ffn_down_exps": "mlp.switch_mlp.down_proj",
}
_NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_NORMS_AROUND = {
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_NORMS_BEHIND = {
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_LLAMA = _ATTENTION | _MLP | _NORMS
_GEMMA_CAPS = frozenset({"attn_logit_softcapping", "final_logit_softcapping"})


def _granite(metadata: Metadata) -> dict[str, Any]:
    return {
        "attention_multiplier": metadata.number("attention.scale") or metadata.head_dim**-0.5,
        "embedding_multiplier": metadata.number("embedding_scale") or 1.0,
        "residual_multiplier": metadata.number("residual_scale") or 1.0,
        "logits_scaling": metadata.number("logit_scale") or 1.0,
    }


def _query_scale(metadata: Metadata, layers_of_27b: int) -> int:
    """The files do not say it: it is the size of a head, but for the models of 27B."""
    if metadata.layers == layers_of_27b:
        return metadata.hidden // metadata.heads
    return metadata.head_dim


def _gemma2(metadata: Metadata) -> dict[str, Any]:
    return {
        "attn_logit_softcapping": metadata.number("attn_logit_softcapping") or 50.0,
        "final_logit_softcapping": metadata.number("final_logit_softcapping") or 30.0,
        "query_pre_attn_scalar": _query_scale(metadata, layers_of_27b=46),
        "sliding_window": metadata.integer("attention.sliding_window") or 4096,
    }


def _gemma3(metadata: Metadata) -> dict[str, Any]:
    return {
        "query_pre_attn_scalar": _query_scale(metadata, layers_of_27b=62),
        "rope_local_base_freq": metadata.number("rope.freq_base_swa") or 10000.0,
        "rope_theta": metadata.number("rope.freq_base") or 1_000_000.0,
        "sliding_window": metadata.required("attention.sliding_window"),
        "sliding_window_pattern": metadata.integer("attention.sliding_window_pattern") or 6,
    }


def _phi3(metadata: Metadata) -> dict[str, Any]:
    original = metadata.integer("rope.scaling.original_context_length")
    return {
        "partial_rotary_factor": metadata.rope_dim / metadata.head_dim,
        "original_max_position_embeddings": original or metadata.required("context_length"),
    }


def _qwen3_moe(metadata: Metadata) -> dict[str, Any]:
    return {
        "num_experts": metadata.required("expert_count"),
        "num_experts_per_tok": metadata.required("expert_used_count"),
        "moe_intermediate_size": metadata.required("expert_feed_forward_length"),
        # llama.cpp computes these models so, whatever the file says.
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


FAMILIES: Mapping[str, Family] = {
    "llama": Family("llama", "LlamaForCausalLM", _LLAMA, rotated=True),
    "smollm3": Family("smollm3", "SmolLM3ForCausalLM", _LLAMA, rotated=True),
    "granite": Family(
        "granite",
        "GraniteForCausalLM",
        _LLAMA,
        _granite,
        rotated=True,
        own_head_dim=False,
        obeys=frozenset({"attention.scale", "embedding_scale", "residual_scale", "logit_scale"}),
        fine=("self_attn.o_proj", "mlp.down_proj", "lm_head"),
    ),
    "qwen2": Family("qwen2", "Qwen2ForCausalLM", _LLAMA, own_head_dim=False),
    "qwen3": Family("qwen3", "Qwen3ForCausalLM", _LLAMA | _HEAD_NORMS),
    "qwen3moe": Family(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        _ATTENTION | _EXPERTS | _NORMS | _HEAD_NORMS,
        _qwen3_moe,
        ropes=frozenset(),
        obeys=frozenset({"expert_count"}),
        fine=("mlp.gate",),
    ),
    "olmo2": Family("olmo2", "Olmo2ForCausalLM", _ATTENTION | _MLP | _NORMS_BEHIND | _HEAD_NORMS),
    "gemma": Family(
        "gemma",
        "GemmaForCausalLM",
        _LLAMA,
        norm_offset=True,
        wide=True,
        always_tied=True,
        ropes=frozenset(),
    ),
    "gemma2": Family(
        "gemma2",
        "Gemma2ForCausalLM",
        _ATTENTION | _MLP | _NORMS_AROUND,
        _gemma2,
        norm_offset=True,
        wide=True,
        always_tied=True,
        ropes=frozenset(),
        obeys=_GEMMA_CAPS,
    ),
    "gemma3": Family(
        "gemma3_text",
        "Gemma3ForCausalLM",
        _ATTENTION | _MLP | _NORMS_AROUND | _HEAD_NORMS,
        _gemma3,
        norm_offset=True,
        wide=True,
        ropes=frozenset({"linear"}),
    ),
    "phi3": Family(
        "phi3",
        "Phi3ForCausalLM",
        {
            "attn_qkv": "self_attn.qkv_proj",
            "attn_output": "self_attn.o_proj",
            "ffn_up": "mlp.gate_up_proj",
            "ffn_down": "mlp.down_proj",
        }
        | _NORMS,
        _phi3,
        own_head_dim=False,
        partial_rope=True,
        ropes=frozenset({"longrope"}),
    ),
    "starcoder2": Family(
        "starcoder2",
        "Starcoder2ForCausalLM",
        _ATTENTION | {"ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"} | _NORMS,
        norm_epsilon=("attention.layer_norm_epsilon", "norm_epsilon"),
        own_head_dim=False,
        ropes=frozenset(),
    ),
}
