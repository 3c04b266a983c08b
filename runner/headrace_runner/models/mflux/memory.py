"""Memory that a drawing takes beside the weights, from the shapes of the model's weights.

A drawing has three parts, and their peaks do not add up: each gives back what it took. The numbers
of values that are alive at once were measured with MLX 0.32.4 on a CPU, as the peaks of
`mx.get_peak_memory` over FLUX.2 klein and Z-Image of several widths, heads, depths and sizes
(`tests/unit/mflux/test_memory.py` measures some again), and fitted by the terms below. They do not
depend on the number of layers or steps. For the other models of the catalogue they are an estimate.

On a GPU attention keeps no table of scores and a convolution does not unfold its input, so that the
estimate is too high there, by how much was not measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from headrace_runner.models.mflux.layout import Layout, tensors
from headrace_runner.models.safetensors import StoredTensor

_FLOAT = 4
"""Bytes of a value: a CPU computes in float32, and keeps much in it where it does not."""
_PROMPT = 512
"""Tokens of a prompt: FLUX.2 and Z-Image pad and cut to so many."""

_STREAM, _WIDEST = 26, 2
"""Rows of a transformer's own width that are alive for each token, and rows of its widest layer."""
_TEXT_STREAM, _TEXT_WIDEST = 3.4, 3.1
"""The same of a text encoder."""
_TEXT_SCORES, _MASKS = 2, 2.6
"""Tables of tokens × tokens in a text encoder: for each head, and for all together."""

_STRIP = 128
"""Rows that mflux's `VAEBlockDecoder` decodes at once."""
_BLOCK_WHOLE, _BLOCK_STRIP = 3, 16.3
"""Values of each channel of the last block that are alive for each pixel of the image, and of the
strip: 9 of them are the input of a 3 × 3 convolution, unfolded."""
_UPSAMPLER_WHOLE, _UPSAMPLER_STRIP = 1.5, 13.1
"""The same of each channel that comes up to full size."""
_ENCODED = 47
"""Values of each channel of the first block for each pixel: input images are encoded whole."""


@dataclass(frozen=True, slots=True)
class _Widths:
    """Of a transformer or a text encoder."""

    hidden: int
    widest: int
    """Outputs of its widest layer, for each token."""
    heads: int


def working_bytes(layout: Layout, width: int, height: int, input_images: int = 0) -> int:
    """Memory in bytes beside the weights while one image of `width` × `height` pixels is drawn.

    Raises ModelCorrupt for damaged weight files.
    """
    components: dict[str, dict[str, StoredTensor]] = {}
    for path, stored in tensors(layout.directory).items():
        components.setdefault(path.rpartition("/")[0], {}).update(stored)
    texts = [_widths(found) for name, found in components.items() if name.startswith("text")]
    vae = components.get("vae", {})
    images = input_images if layout.references else 0
    parts = [
        max((_encoding(text) for text in texts), default=0),
        _denoising(
            _widths(components.get("transformer", {})),
            _PROMPT + (1 + images) * (width // 16) * (height // 16),
        ),
        _decoding(vae, width, height),
    ]
    if input_images:
        parts.append(_ENCODED * _channels(vae, "encoder.conv_in") * width * height * _FLOAT)
    return round(max(parts))


def _encoding(text: _Widths) -> float:
    rows = _TEXT_STREAM * text.hidden + _TEXT_WIDEST * text.widest
    tables = _TEXT_SCORES * text.heads + _MASKS
    return (rows + tables * _PROMPT) * _PROMPT * _FLOAT


def _denoising(transformer: _Widths, tokens: int) -> float:
    rows = _STREAM * transformer.hidden + _WIDEST * transformer.widest
    return (rows + transformer.heads * tokens) * tokens * _FLOAT


def _decoding(vae: Mapping[str, StoredTensor], width: int, height: int) -> float:
    whole, strip = width * height, width * min(height, _STRIP)
    last = _channels(vae, "decoder.conv_norm_out")
    upsampled = _channels(vae, "decoder.up_blocks.2.upsamplers.0") or 2 * last
    block = last * (_BLOCK_WHOLE * whole + _BLOCK_STRIP * strip)
    upsampler = upsampled * (_UPSAMPLER_WHOLE * whole + _UPSAMPLER_STRIP * strip)
    return max(block, upsampler) * _FLOAT


def _channels(vae: Mapping[str, StoredTensor], layer: str) -> int:
    """Outputs of a layer of the autoencoder; those of the models at hand where it has no such."""
    default = 0 if "upsamplers" in layer else 128
    for name, tensor in vae.items():
        if name.startswith(layer) and name.endswith("bias"):
            return tensor.shape[0]
    return default


def _widths(component: Mapping[str, StoredTensor]) -> _Widths:
    layers = list(_layers(component))
    hidden = _commonest([out for _, out in layers])
    queries = next(
        (out for name, out in layers if name.endswith(("to_q.weight", "q_proj.weight"))), 0
    )
    normed = next(
        (
            tensor.shape[0]
            for name, tensor in component.items()
            if name.endswith(("norm_q.weight", "q_norm.weight"))
        ),
        0,
    )
    heads = (queries or hidden) // (normed or 128) or 1
    return _Widths(hidden, max((out for _, out in layers), default=0), heads)


def _layers(component: Mapping[str, StoredTensor]) -> Iterator[tuple[str, int]]:
    """Names and outputs of the layers that see every token. A packed layer keeps its outputs."""
    for name, tensor in component.items():
        seldom = any(part in name.lower() for part in ("embed", "modulation", "adaln", "shared"))
        if len(tensor.shape) == 2 and name.endswith(".weight") and not seldom:
            yield name, tensor.shape[0]


def _commonest(sizes: list[int]) -> int:
    return max(set(sizes), key=lambda size: (sizes.count(size), size), default=0)
