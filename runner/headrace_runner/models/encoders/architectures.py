"""The encoders that a runner can compute, and the tensors of each. The only place that lists them.

All are the encoder of Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for
Language Understanding" (2018, arXiv:1810.04805), as Hugging Face keeps it: post-norm layers, learnt
positions. RoBERTa (Liu et al. 2019, arXiv:1907.11692) and XLM-RoBERTa (Conneau et al. 2019,
arXiv:1911.02116) differ from it in where positions begin. Never imports MLX.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from headrace.errors import ModelCorrupt, UnsupportedModel
from headrace_runner.models.safetensors import StoredTensor

Activation: TypeAlias = Literal["gelu", "gelu_new", "gelu_pytorch_tanh", "relu"]

_POSITIONS_AFTER_PADDING = {"bert": False, "roberta": True, "xlm-roberta": True}
"""By model_type: whether a text's first position is the one after that of the padding token."""
_PREFIXES = ("bert.", "roberta.", "model.")
"""Put before every name where the encoder was saved as a part of a larger model."""
_UNUSED = ("pooler.", "cls.", "lm_head.", "classifier.")
"""Heads for other tasks."""


BATCH_TOKENS = 1024
"""Padded tokens that are computed at once. On a CPU more would not be faster, and others would wait
longer."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of an encoder."""

    architecture: str
    vocabulary: int
    hidden: int
    layers: int
    heads: int
    intermediate: int
    positions: int
    """Rows of the position table."""
    first_position: int
    """Row of a text's first token; those before it stand for no place."""
    token_types: int
    epsilon: float
    """Of the layer norms."""
    activation: Activation
    padding_id: int

    @property
    def longest(self) -> int:
        """Tokens of a text that there are positions for."""
        return self.positions - self.first_position


def is_known(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of one of these encoders."""
    return config.get("model_type") in _POSITIONS_AFTER_PADDING


def read_shape(config: Mapping[str, Any]) -> Shape:
    """The sizes that a config.json gives.

    Raises UnsupportedModel for what cannot be computed, ModelCorrupt for what makes no sense.
    """
    architecture = config.get("model_type")
    if not is_known(config):
        raise UnsupportedModel(
            f"no encoder of the architecture {architecture!r} can be computed; "
            f"there are {', '.join(_POSITIONS_AFTER_PADDING)}",
            architecture=str(architecture),
        )
    _refuse_variants(config)
    padding_id = config.get("pad_token_id")
    padding_id = padding_id if isinstance(padding_id, int) else 0
    shape = Shape(
        architecture=str(architecture),
        vocabulary=_size(config, "vocab_size"),
        hidden=_size(config, "hidden_size"),
        layers=_size(config, "num_hidden_layers"),
        heads=_size(config, "num_attention_heads"),
        intermediate=_size(config, "intermediate_size"),
        positions=_size(config, "max_position_embeddings"),
        first_position=padding_id + 1 if _POSITIONS_AFTER_PADDING[str(architecture)] else 0,
        token_types=_size(config, "type_vocab_size"),
        epsilon=float(config.get("layer_norm_eps", 1e-12)),
        activation=config.get("hidden_act", "gelu"),
        padding_id=padding_id,
    )
    if shape.hidden % shape.heads or shape.longest < 1 or not 0 <= padding_id < shape.vocabulary:
        raise ModelCorrupt("the sizes in config.json do not fit each other", file="config.json")
    return shape


def _refuse_variants(config: Mapping[str, Any]) -> None:
    activation = config.get("hidden_act", "gelu")
    if activation not in get_args(Activation):
        raise UnsupportedModel(
            f"the activation {activation!r} is not known; hidden_act of an "
            f"encoder must be one of {', '.join(get_args(Activation))}"
        )
    positions = config.get("position_embedding_type") or "absolute"
    if positions != "absolute":
        raise UnsupportedModel(f"positions of the type {positions!r} are not known, only absolute")
    if config.get("is_decoder"):
        raise UnsupportedModel("the encoder is configured as a decoder (is_decoder)")
    if "quantization" in config:
        raise UnsupportedModel(
            "quantised encoders cannot be computed; take the model's own weights"
        )


def _size(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or value < 1:
        raise ModelCorrupt(
            f"{key} in config.json must be a whole number of 1 or more", file="config.json"
        )
    return value


def tensors_of(shape: Shape) -> dict[str, tuple[int, ...]]:
    """The tensors that are computed with, by name, and their shapes."""
    hidden, inner = shape.hidden, shape.intermediate
    found: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (shape.vocabulary, hidden),
        "embeddings.position_embeddings.weight": (shape.positions, hidden),
        "embeddings.token_type_embeddings.weight": (shape.token_types, hidden),
        **_norm("embeddings.LayerNorm", hidden),
    }
    for number in range(shape.layers):
        layer = f"encoder.layer.{number}"
        for part in ("query", "key", "value"):
            found |= _linear(f"{layer}.attention.self.{part}", hidden, hidden)
        found |= _linear(f"{layer}.attention.output.dense", hidden, hidden)
        found |= _norm(f"{layer}.attention.output.LayerNorm", hidden)
        found |= _linear(f"{layer}.intermediate.dense", inner, hidden)
        found |= _linear(f"{layer}.output.dense", hidden, inner)
        found |= _norm(f"{layer}.output.LayerNorm", hidden)
    return found


def _linear(name: str, outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, size: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}


def stored_names(stored: Mapping[str, StoredTensor], shape: Shape) -> dict[str, str]:
    """By the name that each tensor is computed with, the name that it is stored by.

    What belongs to other tasks is left out. Raises ModelCorrupt where a tensor is missing, of
    another shape, or of no known use.
    """
    wanted = tensors_of(shape)
    found: dict[str, str] = {}
    for name, tensor in stored.items():
        prefix = next((each for each in _PREFIXES if name.startswith(each)), "")
        own = name.removeprefix(prefix)
        if own.startswith(_UNUSED) or own.endswith(".position_ids"):
            continue
        if own not in wanted:
            raise _misfit(f"{name} is of no known use")
        if tensor.shape != wanted[own]:
            raise _misfit(f"{name} has the shape {list(tensor.shape)}, not {list(wanted[own])}")
        if tensor.dtype not in ("F32", "F16", "BF16"):
            raise UnsupportedModel(f"{name} is of the type {tensor.dtype}, not of floating point")
        found[own] = name
    if missing := sorted(wanted.keys() - found.keys()):
        raise _misfit(f"{missing[0]} is missing")
    return found


def _misfit(what: str) -> ModelCorrupt:
    return ModelCorrupt(f"the tensors do not fit config.json: {what}", file="model.safetensors")


def working_bytes(shape: Shape, rows: int, length: int) -> int:
    """Memory beside the weights while so many rows, padded to `length` tokens, are computed.

    In float32: the layer's input and output with what lies between them, and the scores of one
    layer's attention with their exponentials.
    """
    token = 10 * shape.hidden + 4 * shape.intermediate + 3 * shape.heads * length
    return 4 * rows * length * token
