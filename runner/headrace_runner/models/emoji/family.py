"""The family of the emoji model: what is in its directory. Only `load` imports MLX."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from headrace.errors import ModelCorrupt
from headrace.types import ImageTraits
from headrace_runner.models.emoji.config import (
    CARD,
    CONFIG,
    MODEL_TYPE,
    VOCABULARY,
    WEIGHTS,
    Config,
    is_emoji,
    read_config,
    read_words,
)
from headrace_runner.models.pipeline import Dtype, ImageFamily, ImagePipeline
from headrace_runner.models.safetensors import StoredTensor, main_type, read_header

SHIPPED = Path(__file__).with_name("weights")
"""The directory of the model that comes with the runner."""

MAX_STEPS = 100
MAX_BATCH = 16
STRENGTH = 0.4
"""Of an input image, where nothing is said."""

WORKING_BYTES = 18 << 20
"""While one image passes through the network in float32: on a CPU MLX counts 4.3 MB in use at once,
and keeps 8.3 MB of buffers to use again; other devices are left half as much again."""
BYTES_PER_IMAGE = 256 << 10
"""An image, its noise and the vectors of its words."""


class EmojiFamily:
    """An `ImageFamily`."""

    def knows(self, directory: Path) -> bool:
        """See `ImageFamily.knows`. Raises ModelCorrupt for a config.json that cannot be read."""
        return is_emoji(directory)

    def files(self, directory: Path) -> list[Path]:
        """The files that make up the model, its card among them if it is there."""
        named = (directory / name for name in (CONFIG, WEIGHTS, VOCABULARY, CARD))
        return [path for path in named if path.name != CARD or path.is_file()]

    def facts(self, directory: Path) -> dict[str, Any]:
        """See `ImageFamily.facts`."""
        config = read_config(directory)
        read_words(directory, config)
        tensors = _tensors(directory)
        return {
            "format": "mlx",
            "architecture": MODEL_TYPE,
            "parameters": sum(tensor.elements for tensor in tensors.values()),
            "tensor_bytes": sum(tensor.nbytes for tensor in tensors.values()),
            "quantization": main_type(tensors.values()),
            "license": config.license,
        }

    def traits(self, directory: Path) -> ImageTraits:
        """See `ImageFamily.traits`. Raises as `facts` does."""
        return traits(read_config(directory))

    def working_bytes(
        self, directory: Path, width: int, height: int, count: int, input_images: int = 0
    ) -> int:
        """See `ImageFamily.working_bytes`."""
        return WORKING_BYTES + count * BYTES_PER_IMAGE

    def load(
        self, directory: Path, dtype: Dtype, on_progress: Callable[[float], None]
    ) -> ImagePipeline:
        """See `ImageFamily.load`. "float32" is the faster choice on a CPU."""
        # Here, so that who asks for something else does not wait for it.
        from headrace_runner.models.emoji.pipeline import load

        config = read_config(directory)
        _tensors(directory)
        pipeline = load(directory, config, read_words(directory, config), traits(config), dtype)
        on_progress(1.0)
        return pipeline


FAMILY: ImageFamily = EmojiFamily()


def traits(config: Config) -> ImageTraits:
    """What a model of this config takes."""
    side = config.shape.image
    return ImageTraits(
        width=side,
        height=side,
        size_step=side,
        min_size=side,
        max_size=side,
        steps=config.steps,
        max_steps=MAX_STEPS,
        guidance=config.guidance,
        negative_prompt=True,
        max_input_images=1,
        strength=STRENGTH,
        max_batch=MAX_BATCH,
    )


def _tensors(directory: Path) -> dict[str, StoredTensor]:
    weights = directory / WEIGHTS
    tensors = read_header(weights) if weights.is_file() else {}
    if not tensors:
        raise ModelCorrupt("The model has no weights.", file=WEIGHTS)
    return tensors
