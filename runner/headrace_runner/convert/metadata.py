"""What a GGUF file's metadata says of its model, under the prefix of its architecture.

Knows the sizes that all architectures have in common. What a model may not have is refused here,
so that nothing is silently computed another way.
"""

from __future__ import annotations

from collections.abc import Mapping

from headrace.errors import ModelCorrupt, UnsupportedModel
from headrace_runner.convert.gguf import GgufFile
from headrace_runner.models.safetensors import damaged

# What would change the computation, in words. An architecture that obeys one names its key.
_VARIANTS: Mapping[str, str] = {
    "attention.clamp_kqv": "clamped keys and values",
    "attention.max_alibi_bias": "ALiBi",
    "attention.scale": "an attention scale of its own",
    "attn_logit_softcapping": "a soft cap of attention",
    "embedding_scale": "scaled embeddings",
    "expert_count": "a mixture of experts",
    "expert_shared_count": "shared experts",
    "final_logit_softcapping": "a soft cap of logits",
    "logit_scale": "scaled logits",
    "residual_scale": "scaled residuals",
}


class Metadata:
    """The values under `architecture` and the sizes of the model.

    Raises, on construction, ModelCorrupt where a size is missing or makes no sense.
    """

    def __init__(self, gguf: GgufFile, architecture: str) -> None:
        self.gguf = gguf
        self._architecture = architecture
        self.layers = self.required("block_count")
        self.hidden = self.required("embedding_length")
        self.heads = self.required("attention.head_count")
        self.kv_heads = self.integer("attention.head_count_kv") or self.heads
        self.head_dim = self.integer("attention.key_length") or self.hidden // self.heads
        self.rope_dim = self.integer("rope.dimension_count") or self.head_dim
        if self.head_dim < 1 or self.kv_heads < 1 or self.rope_dim < 1:
            raise self.corrupt("the sizes of its heads make no sense")

    def has(self, tensor: str) -> bool:
        return tensor in self.gguf.tensors

    def required(self, key: str) -> int:
        """The positive integer at `key`. Raises ModelCorrupt where there is none."""
        value = self.integer(key)
        if value is None or value < 1:
            raise self.corrupt(f"{self._architecture}.{key} is missing or not positive")
        return value

    def integer(self, key: str) -> int | None:
        """The integer at `key`, None where absent; one that all layers share may be a list.

        Raises ModelCorrupt for what is no integer, UnsupportedModel where layers differ.
        """
        name = f"{self._architecture}.{key}"
        value = self.gguf.metadata.get(name)
        if isinstance(value, list) and value:
            if any(item != value[0] for item in value):
                raise self.unsupported(f"layers that differ in {key}")
            value = value[0]
            if isinstance(value, int):
                return value
        return self.gguf.integer(name)

    def number(self, key: str) -> float | None:
        """The number at `key`, None where absent. Raises ModelCorrupt for what is none."""
        return self.gguf.number(f"{self._architecture}.{key}")

    def text(self, key: str) -> str | None:
        """The string at `key`, None where absent. Raises ModelCorrupt for what is none."""
        return self.gguf.text(f"{self._architecture}.{key}")

    def refuse_variants(self, obeyed: frozenset[str], *, partial_rope: bool) -> None:
        """Raise UnsupportedModel for what changes the computation and is not in `obeyed`."""
        for key, what in _VARIANTS.items():
            if key not in obeyed and self.number(key):
                raise self.unsupported(what)
        if (self.integer("attention.value_length") or self.head_dim) != self.head_dim:
            raise self.unsupported("values of another size than keys")
        if self.rope_dim != self.head_dim and not partial_rope:
            raise self.unsupported("rotary embedding of a part of each head")

    def corrupt(self, what: str) -> ModelCorrupt:
        return damaged(self.gguf.path, what)

    def unsupported(self, what: str) -> UnsupportedModel:
        return UnsupportedModel(
            f"{self.gguf.path.name} uses {what}, which is not supported for the architecture"
            f" {self._architecture!r}; import the model's MLX or Hugging Face directory instead"
        )
