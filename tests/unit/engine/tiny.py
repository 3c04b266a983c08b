"""Small random models and a byte tokenizer: quick, and sharp enough that every token counts."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import mlx.core as mx
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as RustTokenizer

from headrace_runner.engine.text.batch import TextBatch
from headrace_runner.engine.text.layouts import choose_layout
from headrace_runner.engine.text.rows import NewRow
from headrace_runner.engine.text.sampling import SamplingParams
from headrace_runner.models.load import LoadedModel
from headrace_runner.models.tokenizer import Tokenizer

VOCABULARY = 260
EOS = 256
GREEDY = SamplingParams(temperature=0.0)

_SHAPE = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "vocab_size": VOCABULARY,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "max_position_embeddings": 4096,
}
_OWN: dict[str, dict[str, Any]] = {
    "llama": {},
    # Every second layer sees the last eight tokens only: a rotating cache.
    "gemma3_text": {"sliding_window": 8, "sliding_window_pattern": 2, "query_pre_attn_scalar": 16},
    # A convolution with a state, then attention.
    "lfm2": {
        "norm_eps": 1e-5,
        "conv_bias": False,
        "conv_L_cache": 3,
        "block_dim": 64,
        "block_ff_dim": 96,
        "block_multiple_of": 32,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": False,
        "full_attn_idxs": [1],
    },
    # Its router sees the tokens of all rows in one line.
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    # Its second layer alone is a mixture.
    "qwen3_moe": {
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "decoder_sparse_step": 2,
        "mlp_only_layers": [],
        "moe_intermediate_size": 32,
        "norm_topk_prob": True,
    },
    # A linear layer for each head, and a mixture beside what all tokens go through.
    "deepseek_v3": {
        "num_key_value_heads": 4,
        "kv_lora_rank": 32,
        "q_lora_rank": 32,
        "qk_rope_head_dim": 16,
        "qk_nope_head_dim": 32,
        "v_head_dim": 32,
        "moe_intermediate_size": 32,
        "n_shared_experts": 1,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "first_k_dense_replace": 1,
    },
    # A head that multiplies with the embedding's matrix itself.
    "seed_oss": {"attention_bias": False, "attention_out_bias": False, "mlp_bias": False},
    # GELU instead of SwiGLU.
    "gemma": {},
    # Its steps see one token of each row.
    "mamba": {
        "intermediate_size": 96,
        "state_size": 4,
        "conv_kernel": 3,
        "use_bias": False,
        "use_conv_bias": True,
        "time_step_rank": 8,
    },
}


def tiny_model(architecture: str = "llama", **options: Any) -> Any:
    """A model of two layers with the same random weights every time."""
    module: Any = importlib.import_module(f"mlx_lm.models.{architecture}")
    config = {"model_type": architecture} | _SHAPE | _OWN[architecture] | options
    mx.random.seed(7)  # Biases stay as their layers make them.
    model = module.Model(module.ModelArgs.from_dict(config))
    keys = iter(mx.random.split(mx.random.key(7), 200))

    def matrix(array: mx.array) -> mx.array:
        # Wide enough that two logits are hardly ever as good as equal.
        return mx.random.normal(array.shape, key=next(keys)) * 0.3 if array.ndim > 1 else array

    model.apply(matrix)
    mx.eval(model.parameters())
    return model


def byte_tokenizer() -> Tokenizer:
    """Ids 0 to 255 are the bytes of UTF-8, 256 ends a text, and what follows has no text."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    # The alphabet's letters stand for the bytes; find out which is whose.
    letters = {bytes_of(letter): letter for letter in alphabet}
    vocab = {letters[bytes([byte])]: byte for byte in range(256)}
    backend = RustTokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<eos>", normalized=False)])
    return Tokenizer(
        backend,
        config={"eos_token_id": EOS, "vocab_size": VOCABULARY},
        tokenizer_config={"eos_token": "<eos>"},
    )


def bytes_of(letter: str) -> bytes:
    """The byte that a letter of the byte-level alphabet stands for."""
    code = ord(letter)
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    if code in printable:
        return bytes([code])
    others = [byte for byte in range(256) if byte not in printable]
    return bytes([others[code - 256]])


def loader(model: Callable[[], Any] = tiny_model, prefill_chunk: int = 16) -> Any:
    """What an Engine calls on its own thread to get its model."""
    return lambda: LoadedModel(
        model(), "float32", 0, prefill_chunk, on_cpu=True, memory_available=1 << 40
    )


def new_batch(
    model: Any, chunk: int = 16, *, ahead: bool = False, prefix_bytes: int = 0
) -> TextBatch:
    """An empty batch. What needs a GPU's ways is computed as on a CPU too, but for `ahead`."""
    layout = choose_layout(model, on_cpu=True, prefix_bytes=prefix_bytes)
    return TextBatch(layout, prefill_chunk=chunk, ahead=ahead)


def alone(
    model: Any, prompt: list[int], sampling: SamplingParams, count: int, chunk: int = 16
) -> list[int]:
    """The first `count` tokens of a request that has the model to itself."""
    batch = new_batch(model, chunk)
    batch.add(prompt, [NewRow(1, sampling)])
    tokens: list[int] = []
    while len(tokens) < count:
        tokens += [draw.token for draw in batch.step()[1]]
    return tokens
