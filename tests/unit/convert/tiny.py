"""A whole llama model of 100,000 weights as a GGUF file, written as llama.cpp's converter does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, FEED_FORWARD, LAYERS = 64, 4, 2, 16, 96, 2
SPECIAL = ("<|end|>", "<|user|>")
TEMPLATE = "{% for m in messages %}<|user|>{{ m.content }}<|end|>{% endfor %}"
_TEXT = "the quick brown fox jumps over the lazy dog; the other 12 dogs don't care, they sleep. "

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Vocabulary:
    tokens: list[str]
    merges: list[str]
    types: list[int]


def byte_vocabulary() -> Vocabulary:
    """Byte-level BPE, two control tokens first."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator([_TEXT], trainer)
    ids = trained.get_vocab()
    tokens = sorted(ids, key=lambda token: ids[token])
    # Each learnt token is the merge of the only two that make it up when it is learnt.
    merges = []
    known = set(tokens[: len(SPECIAL) + 256])
    for token in tokens[len(known) :]:
        cuts = ((token[:i], token[i:]) for i in range(1, len(token)))
        left, right = next(cut for cut in cuts if known.issuperset(cut))
        merges.append(f"{left} {right}")
        known.add(token)
    return Vocabulary(tokens, merges, [3 if token in SPECIAL else 1 for token in tokens])


def reference_weights(vocabulary_size: int, *, tied: bool = True) -> dict[str, Array]:
    """Weights under mlx-lm's names, in its row order."""
    random = np.random.default_rng(7)

    def matrix(rows: int, columns: int) -> Array:
        return random.normal(0, 0.3, (rows, columns)).astype(np.float32)

    weights: dict[str, Array] = {
        "model.embed_tokens.weight": matrix(vocabulary_size, HIDDEN),
        "model.norm.weight": (random.integers(32, 96, HIDDEN) / 64).astype(np.float32),
    }
    if not tied:
        weights["lm_head.weight"] = matrix(vocabulary_size, HIDDEN)
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        for name, rows, columns in (
            ("self_attn.q_proj", HEADS * HEAD_DIM, HIDDEN),
            ("self_attn.k_proj", KV_HEADS * HEAD_DIM, HIDDEN),
            ("self_attn.v_proj", KV_HEADS * HEAD_DIM, HIDDEN),
            ("self_attn.o_proj", HIDDEN, HEADS * HEAD_DIM),
            ("mlp.gate_proj", FEED_FORWARD, HIDDEN),
            ("mlp.up_proj", FEED_FORWARD, HIDDEN),
            ("mlp.down_proj", HIDDEN, FEED_FORWARD),
        ):
            weights[f"{prefix}.{name}.weight"] = matrix(rows, columns)
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{prefix}.{name}.weight"] = np.ones(HIDDEN, np.float32)
    return weights


def write_gguf(
    path: Path,
    *,
    matrices: str = "Q4_1",
    embedding: str = "Q8_0",
    tied: bool = True,
    architecture: str = "llama",
    pre: str = "smollm",
    vocabulary: Vocabulary | None = None,
    rope_freqs: list[float] | None = None,
    edit: Callable[[gguf.GGUFWriter], None] = lambda writer: None,
) -> dict[str, Array]:
    """Write the model to `path`; gives the weights that the file holds, quantisation applied."""
    vocabulary = vocabulary or byte_vocabulary()
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(256)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_license("mit")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_merges(vocabulary.merges)
    writer.add_token_types(vocabulary.types)
    writer.add_eos_token_id(0)
    writer.add_chat_template(TEMPLATE)
    edit(writer)
    stored = {}
    for name, weight in reference_weights(len(vocabulary.tokens), tied=tied).items():
        is_matrix = weight.ndim > 1
        kind = (embedding if "embed" in name else matrices) if is_matrix else "F32"
        stored[name] = _add(writer, name, weight, gguf.GGMLQuantizationType[kind])
    if rope_freqs is not None:
        writer.add_tensor("rope_freqs.weight", np.array(rope_freqs, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stored


def _add(
    writer: gguf.GGUFWriter, name: str, weight: Array, kind: gguf.GGMLQuantizationType
) -> Array:
    if "q_proj" in name or "k_proj" in name:
        heads = HEADS if "q_proj" in name else KV_HEADS
        halves = weight.reshape(heads, 2, HEAD_DIM // 2, HIDDEN)
        data = gguf.quantize(halves.swapaxes(1, 2).reshape(weight.shape), kind)
    else:
        data = gguf.quantize(weight, kind)
    writer.add_tensor(_gguf_name(name), data, raw_dtype=kind)
    restored: Array = gguf.dequantize(gguf.quantize(weight, kind), kind)
    return restored


def _gguf_name(name: str) -> str:
    for mlx_part, gguf_part in (
        ("model.layers", "blk"),
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("post_attention_layernorm", "ffn_norm"),
        ("input_layernorm", "attn_norm"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ):
        name = name.replace(mlx_part, gguf_part)
    return name
