"""A GGUF file as a model of mlx-lm: configuration, names, row order, and how weights are kept.

Decides by the table of `families`; `gguf_import` writes. One tensor is in memory at a time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import mlx.core as mx

from headrace.errors import UnsupportedModel
from headrace_runner.convert import blocks, plan, rope
from headrace_runner.convert.families import FAMILIES, Family
from headrace_runner.convert.gguf import GgufFile, TensorInfo
from headrace_runner.convert.metadata import Metadata
from headrace_runner.convert.plan import Layout, Packed, Quantize

_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_EMBEDDING, _HEAD = "token_embd.weight", "output.weight"


class GgufModel:
    """A GGUF file read as a model of the family that it names.

    Raises, on construction, UnsupportedModel for another architecture or an unknown variant, and
    ModelCorrupt where metadata and tensors contradict each other.
    """

    def __init__(self, gguf: GgufFile, asked: Quantize = Quantize.AS_STORED) -> None:
        architecture = gguf.text("general.architecture") or ""
        family = FAMILIES.get(architecture)
        if family is None:
            raise UnsupportedModel(
                f"{gguf.path.name}: the GGUF architecture {architecture!r} is not supported, only"
                f" {', '.join(sorted(FAMILIES))} are; import the model's MLX or Hugging Face"
                " directory instead",
                architecture=architecture,
            )
        self._gguf = gguf
        self._family: Family = family
        self._metadata = Metadata(gguf, architecture)
        self._metadata.refuse_variants(family.obeys, partial_rope=family.partial_rope)
        self.tensors = [t for t in gguf.tensors.values() if t.name not in rope.TENSORS]
        """The tensors to convert, in the file's order."""
        self._modules = {tensor.name: self._module(tensor) for tensor in self.tensors}
        self._check_shapes()
        self._layouts = {tensor.name: self._layout(tensor, asked) for tensor in self.tensors}

    def config(self) -> dict[str, Any]:
        """config.json without what depends on the tokenizer."""
        family, metadata, tensors = self._family, self._metadata, self._gguf.tensors
        epsilon, epsilon_name = family.norm_epsilon
        config: dict[str, Any] = {
            "architectures": [family.class_name],
            "model_type": family.model_type,
            "hidden_size": metadata.hidden,
            "intermediate_size": metadata.required("feed_forward_length"),
            "num_hidden_layers": metadata.layers,
            "num_attention_heads": metadata.heads,
            "num_key_value_heads": metadata.kv_heads,
            "head_dim": metadata.head_dim,
            epsilon_name: metadata.number(epsilon) or 1e-5,
            "vocab_size": tensors[_EMBEDDING].shape[0],
            "max_position_embeddings": metadata.required("context_length"),
            "rope_theta": rope.theta(metadata),
            "rope_scaling": rope.scaling(metadata, family.ropes),
            "attention_bias": metadata.has("blk.0.attn_q.bias"),
            "mlp_bias": metadata.has("blk.0.ffn_up.bias"),
            "tie_word_embeddings": not metadata.has(_HEAD),
            "torch_dtype": self._float_name,
        }
        modules = ((self._modules[t.name], self._layouts[t.name], t.elements) for t in self.tensors)
        return config | family.settings(metadata) | plan.settings(modules)

    @property
    def quantization(self) -> str:
        """How most of the weights are kept: "Q4_1", or "8-bit g32 of Q4_K"."""
        elements: dict[str, int] = {}
        for tensor in self.tensors:
            elements[tensor.type.name] = elements.get(tensor.type.name, 0) + tensor.elements
        by_size = sorted(self.tensors, key=lambda tensor: tensor.elements, reverse=True)
        layouts = ((tensor.type.name, self._layouts[tensor.name]) for tensor in by_size)
        return plan.described(elements, layouts, self._float_name)

    def weights(self, tensor: TensorInfo) -> Iterator[tuple[str, mx.array]]:
        """`tensor` as the arrays of mlx-lm's model. Raises ModelCorrupt on impossible values."""
        try:
            arrays = self._arrays(tensor, self._layouts[tensor.name])
        except ValueError as error:
            raise self._metadata.corrupt(f"tensor {tensor.name!r}: {error}") from error
        for part, array in arrays.items():
            yield f"{self._modules[tensor.name]}.{part}", self._restore_rows(tensor.name, array)

    def _arrays(self, tensor: TensorInfo, layout: Layout) -> Mapping[str, mx.array]:
        data, dtype = self._gguf.read(tensor), self._float_type
        if layout is None:
            part = tensor.name.rpartition(".")[2]
            if self._family.norm_offset and "norm" in tensor.name:
                # Before it is rounded: what is near 1 here is near 0 there.
                whole = blocks.expanded(tensor.type, data, tensor.shape, mx.float32).weight
                return {part: (whole - 1).astype(dtype)}
            # Norms are stored as float32 even beside half-precision matrices; kept so, they would
            # promote every activation and the KV cache to float32.
            return {part: blocks.expanded(tensor.type, data, tensor.shape, dtype).weight}
        if layout.exact:
            packed = blocks.taken_over(tensor.type.name, data, tensor.shape)
        else:
            packed = blocks.requantized(
                tensor.type, data, tensor.shape, dtype, layout.bits, layout.group_size
            )
        scale_type = mx.bfloat16 if self._family.wide else packed.scales.dtype
        return {
            "weight": packed.weight,
            "scales": packed.scales.astype(scale_type),
            "biases": packed.biases.astype(scale_type),
        }

    @property
    def _float_name(self) -> str:
        """What unquantised parameters and activations are: as precise as the matrices stored."""
        stored = {tensor.type.name for tensor in self.tensors if len(tensor.shape) > 1}
        packed = any(isinstance(layout, Packed) for layout in self._layouts.values())
        if stored == {"F32"} and not packed:
            return "float32"
        return "bfloat16" if "BF16" in stored or self._family.wide else "float16"

    @property
    def _float_type(self) -> mx.Dtype:
        dtype: mx.Dtype = getattr(mx, self._float_name)
        return dtype

    def _layout(self, tensor: TensorInfo, asked: Quantize) -> Layout:
        fine = (
            self._modules[tensor.name].endswith(self._family.fine) if self._family.fine else False
        )
        return plan.layout_of(tensor, asked, fine=fine)

    def _restore_rows(self, name: str, array: mx.array) -> mx.array:
        if not self._family.rotated:
            return array
        if ".attn_q." in name:
            heads = self._metadata.heads
        elif ".attn_k." in name:
            heads = self._metadata.kv_heads
        else:
            return array
        halves = array.reshape(heads, self._metadata.head_dim // 2, 2, *array.shape[1:])
        return halves.swapaxes(1, 2).reshape(array.shape)

    def _module(self, tensor: TensorInfo) -> str:
        """mlx-lm's name of the module that `tensor` belongs to."""
        stem, _, kind = tensor.name.rpartition(".")
        layer = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
        if layer and layer[2] in self._family.layer:
            module = f"model.layers.{layer[1]}.{self._family.layer[layer[2]]}"
        else:
            module = _TOP.get(stem, "")
        if not module or kind not in ("weight", "bias"):
            raise UnsupportedModel(
                f"{self._gguf.path.name} has a tensor {tensor.name!r}, which the architecture"
                f" {self._family.model_type} does not know here; import the model's Hugging Face"
                " directory instead"
            )
        return module

    def _check_shapes(self) -> None:
        """That all layers are there, and the shapes of their matrices are what the sizes say.

        mlx-lm builds its model from the sizes alone, and MLX does not survive all of them.
        """
        metadata, tensors = self._metadata, self._gguf.tensors
        shapes = self._layer_shapes()
        for layer in range(metadata.layers):
            for name, wanted in shapes.items():
                tensor = tensors.get(f"blk.{layer}.{name}.weight")
                if tensor is None or tensor.shape != wanted:
                    raise metadata.corrupt(f"tensor 'blk.{layer}.{name}.weight' is not {wanted}")
                bias = tensors.get(f"blk.{layer}.{name}.bias")
                if bias is not None and bias.shape != wanted[:1]:
                    raise metadata.corrupt(f"tensor 'blk.{layer}.{name}.bias' is not {wanted[:1]}")
        embedding = tensors.get(_EMBEDDING)
        if embedding is None or embedding.shape[1:] != (metadata.hidden,):
            raise metadata.corrupt(f"tensor {_EMBEDDING!r} is not as the metadata says")
        if self._family.always_tied and metadata.has(_HEAD):
            raise metadata.unsupported("a head beside its embeddings")
        if not self._family.own_head_dim and metadata.head_dim * metadata.heads != metadata.hidden:
            raise metadata.unsupported("heads of another size than hidden / heads")
        if metadata.head_dim % 2 or metadata.heads % metadata.kv_heads:
            raise metadata.corrupt("the sizes of its heads make no sense")

    def _layer_shapes(self) -> dict[str, tuple[int, ...]]:
        """The matrices of a layer, by GGUF's names of those that the family has."""
        metadata = self._metadata
        hidden, q_rows = metadata.hidden, metadata.heads * metadata.head_dim
        k_rows = metadata.kv_heads * metadata.head_dim
        shapes: dict[str, tuple[int, ...]] = {
            "attn_q": (q_rows, hidden),
            "attn_k": (k_rows, hidden),
            "attn_v": (k_rows, hidden),
            "attn_qkv": (q_rows + 2 * k_rows, hidden),
            "attn_output": (hidden, q_rows),
            "ffn_down": (hidden, metadata.required("feed_forward_length")),
        }
        if "ffn_down_exps" in self._family.layer:
            experts = metadata.required("expert_count")
            inner = metadata.required("expert_feed_forward_length")
            if metadata.required("expert_used_count") > experts:
                raise metadata.corrupt("it uses more experts than there are")
            shapes["ffn_gate_inp"] = (experts, hidden)
            shapes["ffn_down_exps"] = (experts, hidden, inner)
        return {name: shape for name, shape in shapes.items() if name in self._family.layer}
