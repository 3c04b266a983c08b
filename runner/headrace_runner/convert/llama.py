"""A llama-family GGUF file as mlx-lm's llama model: configuration, names and row order.

Decides only; `output` writes. GGUF files of this family hold the rows of q and k rotated for
interleaved rotary embeddings, which is undone here, on quantised rows as well as on plain ones.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import mlx.core as mx
import numpy as np

from headrace.errors import ModelCorrupt, UnsupportedModel
from headrace_runner.convert import blocks
from headrace_runner.convert.gguf import GgufFile, TensorInfo
from headrace_runner.models.safetensors import damaged

_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_ROPE_FREQS = "rope_freqs.weight"
# The one set of parameters that Llama 3.1 to 3.3 were released with; GGUF keeps only their result.
_LLAMA3_ROPE = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


class Llama:
    """A GGUF file read as a llama model.

    Raises, on construction, UnsupportedModel for another architecture or an unknown variant, and
    ModelCorrupt where metadata and tensors contradict each other.
    """

    def __init__(self, gguf: GgufFile) -> None:
        architecture = gguf.text("general.architecture")
        if architecture != "llama":
            raise UnsupportedModel(
                f"{gguf.path.name}: the GGUF architecture {architecture!r} is not supported, only"
                " 'llama' is; import the model's MLX or Hugging Face directory instead",
                architecture=architecture or "",
            )
        self._gguf = gguf
        self._hidden = self._required("embedding_length")
        self._heads = self._required("attention.head_count")
        self._kv_heads = self._integer("attention.head_count_kv") or self._heads
        self._head_dim = self._integer("attention.key_length") or self._hidden // self._heads
        self._refuse_variants()
        self._check_shapes()

    @property
    def tensors(self) -> list[TensorInfo]:
        """The tensors to convert, in the file's order."""
        return [t for t in self._gguf.tensors.values() if t.name != _ROPE_FREQS]

    def config(self) -> dict[str, Any]:
        """config.json without what depends on the tokenizer."""
        gguf = self._gguf
        embedding = gguf.tensors["token_embd.weight"]
        config: dict[str, Any] = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self._hidden,
            "intermediate_size": self._required("feed_forward_length"),
            "num_hidden_layers": self._required("block_count"),
            "num_attention_heads": self._heads,
            "num_key_value_heads": self._kv_heads,
            "head_dim": self._head_dim,
            "rms_norm_eps": self._number("attention.layer_norm_rms_epsilon") or 1e-5,
            "vocab_size": embedding.shape[0],
            "max_position_embeddings": self._required("context_length"),
            "rope_theta": self._number("rope.freq_base") or 10000.0,
            "rope_scaling": self._rope_scaling(),
            "attention_bias": "blk.0.attn_q.bias" in gguf.tensors,
            "mlp_bias": "blk.0.ffn_gate.bias" in gguf.tensors,
            "tie_word_embeddings": "output.weight" not in gguf.tensors,
            "torch_dtype": self._float_name,
        }
        return config | self._quantization()

    @property
    def quantization(self) -> str:
        """How most of the weights are stored, in GGML's spelling: "Q4_1"."""
        elements: dict[str, int] = {}
        for tensor in self.tensors:
            elements[tensor.type.name] = elements.get(tensor.type.name, 0) + tensor.elements
        return max(elements, key=lambda name: elements[name])

    def weights(self, tensor: TensorInfo) -> Iterator[tuple[str, mx.array]]:
        """`tensor` as the arrays of mlx-lm's model. Raises ModelCorrupt on impossible values."""
        name = self._module(tensor)
        kind = tensor.name.rpartition(".")[2]
        try:
            converted = blocks.to_mlx(tensor.type.name, self._gguf.read(tensor), tensor.shape)
        except ValueError as error:
            raise self._corrupt(f"tensor {tensor.name!r}: {error}") from error
        if isinstance(converted, blocks.Quantized):
            arrays = {
                "weight": converted.weight,
                "scales": converted.scales,
                "biases": converted.biases,
            }
        else:
            # Norms are stored as float32 even beside half-precision matrices; kept so, they would
            # promote every activation and the KV cache to float32.
            arrays = {kind: converted.weight.astype(self._float_type)}
        for part, array in arrays.items():
            yield f"{name}.{part}", self._restore_rows(tensor.name, array)

    def _restore_rows(self, name: str, array: mx.array) -> mx.array:
        if ".attn_q." in name:
            heads = self._heads
        elif ".attn_k." in name:
            heads = self._kv_heads
        else:
            return array
        halves = array.reshape(heads, self._head_dim // 2, 2, *array.shape[1:])
        return halves.swapaxes(1, 2).reshape(array.shape)

    def _module(self, tensor: TensorInfo) -> str:
        """mlx-lm's name of the module that `tensor` belongs to."""
        stem, _, kind = tensor.name.rpartition(".")
        layer = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
        if layer and layer[2] in _LAYER:
            module = f"model.layers.{layer[1]}.{_LAYER[layer[2]]}"
        elif stem in _TOP:
            module = _TOP[stem]
        else:
            module = ""
        if not module or kind not in ("weight", "bias"):
            raise UnsupportedModel(
                f"{self._gguf.path.name} has a tensor {tensor.name!r}, which the llama"
                " architecture does not know; import the model's Hugging Face directory instead"
            )
        return module

    def _quantization(self) -> dict[str, Any]:
        """mlx-lm's "quantization": the commonest width for all, exceptions by module."""
        bits: dict[str, int] = {}
        elements: dict[int, int] = {}
        for tensor in self.tensors:
            if tensor.type.block_size == blocks.GROUP_SIZE:
                width = 8 if tensor.type.name == "Q8_0" else 4
                bits[self._module(tensor)] = width
                elements[width] = elements.get(width, 0) + tensor.elements
        if not bits:
            return {}
        commonest = max(elements, key=lambda width: elements[width])
        group = {"group_size": blocks.GROUP_SIZE}
        exceptions = {
            module: group | {"bits": width} for module, width in bits.items() if width != commonest
        }
        return {"quantization": group | {"bits": commonest} | exceptions}

    @property
    def _float_name(self) -> str:
        """What unquantised parameters and activations are: as precise as the matrices stored."""
        stored = {tensor.type.name for tensor in self.tensors if len(tensor.shape) > 1}
        if "BF16" in stored:
            return "bfloat16"
        return "float32" if stored == {"F32"} else "float16"

    @property
    def _float_type(self) -> mx.Dtype:
        dtype: mx.Dtype = getattr(mx, self._float_name)
        return dtype

    def _rope_scaling(self) -> dict[str, Any] | None:
        kind = self._gguf.text("llama.rope.scaling.type")
        if kind == "linear":
            return {"type": "linear", "factor": self._number("rope.scaling.factor") or 1.0}
        if kind not in (None, "none"):
            raise self._unsupported(f"rope scaling {kind!r}")
        freqs = self._gguf.tensors.get(_ROPE_FREQS)
        if freqs is None:
            return None
        if freqs.type.name != "F32" or freqs.elements != self._head_dim // 2:
            raise self._corrupt(f"tensor {_ROPE_FREQS!r} is not {self._head_dim // 2} float32")
        factors = self._gguf.read(freqs).view("<f4")
        scaling: dict[str, Any] = {"rope_type": "llama3", "factor": float(factors.max())}
        scaling |= _LLAMA3_ROPE
        base = self._number("rope.freq_base") or 10000.0
        if not np.allclose(factors, llama3_factors(self._head_dim, base, scaling), rtol=1e-3):
            raise self._unsupported("rope frequency factors other than Llama 3's")
        return scaling

    def _refuse_variants(self) -> None:
        if self._integer("expert_count"):
            raise self._unsupported("a mixture of experts")
        if (self._integer("rope.dimension_count") or self._head_dim) != self._head_dim:
            raise self._unsupported("rotary embedding of a part of each head")

    def _check_shapes(self) -> None:
        tensors = self._gguf.tensors
        q_rows, k_rows = self._heads * self._head_dim, self._kv_heads * self._head_dim
        for layer in range(self._required("block_count")):
            for name, rows in (("attn_q", q_rows), ("attn_k", k_rows)):
                tensor = tensors.get(f"blk.{layer}.{name}.weight")
                if tensor is None or tensor.shape != (rows, self._hidden):
                    raise self._corrupt(f"tensor 'blk.{layer}.{name}.weight' is not {rows} rows")
        embedding = tensors.get("token_embd.weight")
        if embedding is None or embedding.shape[1:] != (self._hidden,):
            raise self._corrupt("tensor 'token_embd.weight' is not as the metadata says")

    def _required(self, key: str) -> int:
        value = self._integer(key)
        if value is None or value < 1:
            raise self._corrupt(f"llama.{key} is missing or not positive")
        return value

    def _integer(self, key: str) -> int | None:
        return self._gguf.integer(f"llama.{key}")

    def _number(self, key: str) -> float | None:
        return self._gguf.number(f"llama.{key}")

    def _corrupt(self, what: str) -> ModelCorrupt:
        return damaged(self._gguf.path, what)

    def _unsupported(self, what: str) -> UnsupportedModel:
        return UnsupportedModel(f"{self._gguf.path.name} uses {what}, which is not supported")


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
