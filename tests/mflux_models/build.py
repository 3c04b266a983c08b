"""Builds checkpoints in the layout that mflux saves, with its own saver."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx.nn.layers.quantized import quantize
from mlx.utils import tree_flatten, tree_unflatten

from tests.mflux_models.tokenizer import VOCABULARY, write_tokenizer

_FLUX2_TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 27,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "intermediate_size": 64,
    "head_dim": 64,
}
_FLUX2_TRANSFORMER = {
    "num_layers": 1,
    "num_single_layers": 2,
    "attention_head_dim": 64,
    "num_attention_heads": 2,
    "joint_attention_dim": 3 * 64,
    "axes_dims_rope": [16, 16, 16, 16],
}
_Z_IMAGE_TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "intermediate_size": 64,
    "head_dim": 64,
}
_Z_IMAGE_TRANSFORMER = {
    "dim": 192,
    "n_layers": 2,
    "n_refiner_layers": 1,
    "n_heads": 3,
    "cap_feat_dim": 64,
    "axes_dims": [16, 24, 24],
}


def build_flux2(
    directory: Path,
    bits: int | None = None,
    lora: bool = False,
    transformer: Mapping[str, Any] | None = None,
    **described: Any,
) -> Path:
    """A FLUX.2 klein, quantised where `bits` says so, with the adapter "style" where asked for.

    `transformer` adds to its shape, and `described` to its headrace.json.
    """
    from mflux.models.flux2.model.flux2_text_encoder.qwen3_text_encoder import Qwen3TextEncoder
    from mflux.models.flux2.model.flux2_transformer.transformer import Flux2Transformer
    from mflux.models.flux2.model.flux2_vae.vae import Flux2VAE
    from mflux.models.flux2.weights.flux2_weight_definition import Flux2KleinWeightDefinition

    shape = {**_FLUX2_TRANSFORMER, **(transformer or {})}
    _save(
        directory,
        {
            "vae": _thinner(Flux2VAE()),
            "transformer": Flux2Transformer(**shape),
            "text_encoder": Qwen3TextEncoder(**_FLUX2_TEXT),
        },
        bits,
        Flux2KleinWeightDefinition,
        {
            "base": "flux2-klein-4b",
            "shapes": {"transformer": shape, "text_encoder": _FLUX2_TEXT},
            **described,
        },
    )
    if lora:
        width = shape["attention_head_dim"] * shape["num_attention_heads"]
        _adapter(directory, "style", "transformer_blocks.0.attn.to_q", width)
        _adapter(directory, "other", "transformer_blocks.0.attn.to_k", width)
    return directory


def build_z_image(
    directory: Path,
    bits: int | None = None,
    lora: bool = False,
    transformer: Mapping[str, Any] | None = None,
    **described: Any,
) -> Path:
    """A Z-Image-Turbo, as `build_flux2` builds its own."""
    from mflux.models.z_image.model.z_image_text_encoder.text_encoder import TextEncoder
    from mflux.models.z_image.model.z_image_transformer.transformer import ZImageTransformer
    from mflux.models.z_image.model.z_image_vae.vae import VAE
    from mflux.models.z_image.weights.z_image_weight_definition import ZImageWeightDefinition

    shape = {**_Z_IMAGE_TRANSFORMER, **(transformer or {})}
    _save(
        directory,
        {
            "vae": _thinner(VAE()),
            "transformer": ZImageTransformer(**shape),
            "text_encoder": TextEncoder(**_Z_IMAGE_TEXT),
        },
        bits,
        ZImageWeightDefinition,
        {
            "base": "z-image-turbo",
            "shapes": {"transformer": shape, "text_encoder": _Z_IMAGE_TEXT},
            **described,
        },
    )
    if lora:
        _adapter(directory, "style", "layers.0.attention.to_q", shape["dim"])
        _adapter(directory, "other", "layers.0.attention.to_k", shape["dim"])
    return directory


def _save(
    directory: Path,
    components: Mapping[str, Module],
    bits: int | None,
    definition: Any,
    description: Mapping[str, Any],
) -> None:
    from mflux.models.common.weights.saving.model_saver import ModelSaver

    for number, component in enumerate(components.values()):
        _randomise(component, seed=number)
        if bits is not None:
            quantize(component, group_size=64, bits=bits)
    model = SimpleNamespace(**components)
    ModelSaver.save_model(model, bits, str(directory), definition)
    write_tokenizer(directory / "tokenizer")
    (directory / "headrace.json").write_text(
        json.dumps({"mflux": description}, indent=2), encoding="utf-8"
    )


def _randomise(component: Any, seed: int) -> None:
    """Fresh weights in bfloat16: matrices that keep the scale of what passes, and plain norms."""
    key = mx.random.key(seed)

    def fresh(name: str, value: mx.array) -> mx.array:
        nonlocal key
        if name.endswith("inv_freq"):
            return value
        if value.ndim < 2:
            filled = mx.zeros if name.endswith(("bias", "mean")) else mx.ones
            return filled(value.shape, dtype=mx.bfloat16)
        key, own = mx.random.split(key)
        fan_in = value.size // value.shape[0]
        scaled: mx.array = mx.random.normal(value.shape, key=own) * fan_in**-0.5
        return scaled.astype(mx.bfloat16)

    named: Any = tree_flatten(component.parameters())
    component.update(tree_unflatten([(name, fresh(name, value)) for name, value in named]))


def _thinner(vae: Any) -> Any:
    """The autoencoder with its layers, and as few channels as groups of 32 and of 64 allow.

    MLX's layers take their width from their weights, and loading replaces those.
    """
    widths = {512: 64, 256: 32, 128: 32}

    def thin(name: str, value: mx.array) -> mx.array:
        if name.startswith("bn."):
            return value
        return mx.zeros([widths.get(size, size) for size in value.shape])

    named: Any = tree_flatten(vae.parameters())
    vae.update(tree_unflatten([(name, thin(name, value)) for name, value in named]))
    return vae


def _adapter(directory: Path, name: str, layer: str, width: int) -> None:
    """A LoRA of rank 4 on one square layer, strong enough to show."""
    down, up = mx.random.split(mx.random.key(len(name)))
    (directory / "loras").mkdir(exist_ok=True)
    mx.save_safetensors(
        str(directory / "loras" / f"{name}.safetensors"),
        {
            f"transformer.{layer}.lora_A.weight": mx.random.normal((4, width), key=down),
            f"transformer.{layer}.lora_B.weight": mx.random.normal((width, 4), key=up),
        },
    )
