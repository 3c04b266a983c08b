"""Draws with the emoji model: flow matching from noise to an image, guided by the prompt.

Flow matching: Lipman et al., 2023; the network states the clean image, as in Li and He, "Back to
Basics: Let Denoising Generative Models Denoise", 2025; classifier-free guidance: Ho and Salimans,
2022.

Each image passes through the network by itself, also within a batch, since the last bits of a
matrix product depend on how many rows it has; so the memory of one is enough for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from headrace.errors import ModelCorrupt
from headrace.types import ImageTraits
from headrace_runner.models.emoji.config import CONFIG, WEIGHTS, Config
from headrace_runner.models.emoji.network import Network
from headrace_runner.models.emoji.words import Vocabulary, words
from headrace_runner.models.pipeline import (
    Drawing,
    Dtype,
    Phase,
    Pixels,
    Watch,
)


@dataclass(slots=True)
class _Canvas:
    """One image while it is drawn."""

    noised: mx.array
    clean: mx.array
    """What the network takes it to become."""
    captions: tuple[mx.array, mx.array]
    """Of what is wanted, and of what is not."""
    guidance: float


class EmojiPipeline:
    """An `ImagePipeline`."""

    def __init__(self, network: Network, vocabulary: Vocabulary, traits: ImageTraits) -> None:
        self._network = network
        self._vocabulary = vocabulary
        self._traits = traits

    @property
    def traits(self) -> ImageTraits:
        return self._traits

    @property
    def weights(self) -> str:
        """See `ImagePipeline.weights`."""
        return str(self._network.first.weight.dtype).removeprefix("mlx.core.")

    @property
    def weights_bytes(self) -> int:
        """See `ImagePipeline.weights_bytes`."""
        return sum(array.nbytes for array in _parameters(self._network))

    def draw(self, drawings: Sequence[Drawing], watch: Watch) -> Sequence[Pixels]:
        """See `ImagePipeline.draw`.

        With an input image the first steps are skipped, the share of them that `strength` says, and
        it is noised as the next step has it: at 1 no step is left, and the image is given back.

        Raises ValueError for drawings that do not share what they must, and for other sizes than
        the model's own, of an input image too.
        """
        steps, skipped = self._plan(drawings)
        watch.phase(Phase.ENCODING, 1)
        canvases = [self._canvas(drawing, 1 - skipped / steps) for drawing in drawings]

        def preview() -> list[Pixels]:
            return [_to_pixels(canvas.clean) for canvas in canvases]

        watch.step(1, preview)
        watch.phase(Phase.DENOISING, steps - skipped)
        for done in range(skipped, steps):
            now, then = 1 - done / steps, 1 - (done + 1) / steps
            for place, canvas in enumerate(canvases):
                if not watch.wanted(place):
                    continue
                canvas.clean = self._clean(canvas, now)
                # By Euler's method: straight on towards the clean image.
                canvas.noised = canvas.clean + (canvas.noised - canvas.clean) * (then / now)
                mx.eval(canvas.clean, canvas.noised)
            watch.step(done + 1 - skipped, preview)
        watch.phase(Phase.DECODING, 1)
        drawn = preview()
        watch.step(1, lambda: drawn)
        return drawn

    def _plan(self, drawings: Sequence[Drawing]) -> tuple[int, int]:
        """Steps asked for, and how many of them are skipped."""
        if not 1 <= len(drawings) <= self._traits.max_batch:
            raise ValueError(f"{len(drawings)} drawings are not 1 to {self._traits.max_batch}")
        plans = {(d.width, d.height, d.steps, self._skipped(d)) for d in drawings}
        if len(plans) > 1:
            raise ValueError("the drawings differ in size, steps, strength or input images")
        width, height, steps, skipped = plans.pop()
        if (width, height) != (self._traits.width, self._traits.height):
            raise ValueError(f"{width}×{height} is not the size of this model's images")
        if any(image.shape[:2] != (height, width) for d in drawings for image in d.input_images):
            raise ValueError(f"an input image is not of {width}×{height}")
        return steps, skipped

    def _skipped(self, drawing: Drawing) -> int:
        if not drawing.input_images:
            return 0
        strength = self._traits.strength if drawing.strength is None else drawing.strength
        return round((strength or 0.0) * drawing.steps)

    def _canvas(self, drawing: Drawing, t: float) -> _Canvas:
        side = self._traits.width
        key = mx.random.key(drawing.seed)
        noised = clean = mx.random.normal((1, side, side, 3), key=key)
        if drawing.input_images:
            clean = _from_pixels(drawing.input_images[0])
            noised = clean * (1 - t) + noised * t
        captions = self._read(drawing.prompt), self._read(drawing.negative_prompt or "")
        mx.eval(noised, clean, captions)
        guidance = self._traits.guidance if drawing.guidance is None else drawing.guidance
        return _Canvas(noised, clean, captions, 1.0 if guidance is None else guidance)

    def _read(self, prompt: str) -> mx.array:
        read: mx.array = self._network.text(words(prompt), self._vocabulary)
        return read

    def _clean(self, canvas: _Canvas, t: float) -> mx.array:
        wanted = self._network(canvas.noised, t, canvas.captions[0])
        if canvas.guidance != 1.0:
            other = self._network(canvas.noised, t, canvas.captions[1])
            wanted = other + canvas.guidance * (wanted - other)
        return mx.clip(wanted, -1, 1)


def load(
    directory: Path, config: Config, listed: Sequence[str], traits: ImageTraits, dtype: Dtype
) -> EmojiPipeline:
    """Loads the model in `directory`, which has this config and the words `listed`.

    Raises ModelCorrupt where the weights do not fit.
    """
    network = Network(config.shape)
    try:
        network.load_weights(str(directory / WEIGHTS))
    except (ValueError, RuntimeError) as error:
        raise ModelCorrupt(f"the weights do not fit {CONFIG}", file=WEIGHTS) from error
    if dtype == "float32":
        network.set_dtype(mx.float32)
    mx.eval(_parameters(network))
    numbers = {word: number for number, word in enumerate(listed, start=1)}
    return EmojiPipeline(network, Vocabulary(numbers, config.shape.buckets), traits)


def _parameters(network: Network) -> list[mx.array]:
    leaves = tree_flatten(network.parameters())  # type: ignore[no-untyped-call]
    return [leaf[1] for leaf in leaves]  # type: ignore[misc]


def _to_pixels(image: mx.array) -> Pixels:
    return np.array(mx.clip(mx.round((image[0] + 1) * 127.5), 0, 255).astype(mx.uint8))


def _from_pixels(pixels: Pixels) -> mx.array:
    """What is transparent becomes white, on which the network has seen all images."""
    image = pixels[..., :3].astype(np.float32) / 127.5 - 1
    if pixels.shape[-1] == 4:
        alpha = pixels[..., 3:].astype(np.float32) / 255
        image = image * alpha + (1 - alpha)
    return mx.array(image[None])
