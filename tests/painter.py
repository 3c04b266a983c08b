"""A family of image models for tests: real MLX arithmetic that draws from seed and prompt alone.

It is small and quick, and does all that a family can be asked for: batches, previews, input images
with a strength, guidance, a negative prompt, adapters. It can be held up and made to fail.
"""

from __future__ import annotations

import json
import threading
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from headrace.errors import ModelCorrupt
from headrace.types import ImageTraits
from headrace_runner.models.files import read_json
from headrace_runner.models.pipeline import (
    Drawing,
    Dtype,
    Phase,
    Pixels,
    Watch,
)
from headrace_runner.models.safetensors import read_tensors

MODEL_TYPE = "headrace-test-painter"
TRAITS = ImageTraits(
    width=32,
    height=32,
    size_step=16,
    min_size=16,
    max_size=256,
    steps=4,
    max_steps=100,
    guidance=2.0,
    negative_prompt=True,
    max_input_images=2,
    strength=0.5,
    max_batch=4,
)
PLAIN = replace(
    TRAITS, guidance=None, negative_prompt=False, max_input_images=0, strength=None, max_batch=1
)
"""Of a model that takes a prompt, a size and a number of steps."""
BYTES_PER_PIXEL = 100
SEPIA = [0.4, 0.26, 0.13]


@dataclass
class Painter:
    """A pipeline."""

    palette: mx.array
    traits: ImageTraits = TRAITS
    weights: str = "float32"

    def __post_init__(self) -> None:
        self.batches: list[list[Drawing]] = []
        """What was begun."""
        self.go_on = threading.Event()
        self.go_on.set()
        self.at: Callable[[Phase, int], None] = lambda phase, done: None
        """Told, on the engine's thread, before what a watch is told; may wait or raise."""
        self.fault: Callable[[Sequence[Drawing]], Exception | None] = lambda drawings: None
        """The error that a batch ends in, at its second step."""
        self.wanted: list[bool] = []
        """Of what is being drawn, after the last step: for which drawings somebody waited."""

    @property
    def weights_bytes(self) -> int:
        return self.palette.nbytes

    def draw(self, drawings: Sequence[Drawing], watch: Watch) -> Sequence[Pixels]:
        assert 1 <= len(drawings) <= self.traits.max_batch
        self.batches.append(list(drawings))
        state = [_noise(drawing) for drawing in drawings]
        self._tell(watch, Phase.ENCODING, 1)
        goals = [self._goal(drawing) for drawing in drawings]
        mx.eval(*state, *goals)
        self._tell_step(watch, Phase.ENCODING, 1, list)
        first = drawings[0]
        kept = (first.strength or 0.0) if first.input_images else 0.0
        total = first.steps - int(kept * first.steps)
        self._tell(watch, Phase.DENOISING, total)
        for done in range(1, total + 1):
            left = total + 2 - done
            state = [x + (goal - x) / left for x, goal in zip(state, goals, strict=True)]
            mx.eval(*state)
            if done == min(2, total) and (error := self.fault(drawings)) is not None:
                raise error
            self._tell_step(watch, Phase.DENOISING, done, partial(_all_pixels, state))
            self.wanted = [watch.wanted(place) for place in range(len(drawings))]
        self._tell(watch, Phase.DECODING, 1)
        images = _all_pixels(state)
        self._tell_step(watch, Phase.DECODING, 1, lambda: images)
        return images

    def _tell(self, watch: Watch, phase: Phase, total: int) -> None:
        assert self.go_on.wait(30)
        self.at(phase, 0)
        watch.phase(phase, total)

    def _tell_step(
        self, watch: Watch, phase: Phase, done: int, preview: Callable[[], Sequence[Pixels]]
    ) -> None:
        assert self.go_on.wait(30)
        self.at(phase, done)
        watch.step(done, preview)

    def _goal(self, drawing: Drawing) -> mx.array:
        """What the image comes to: a colour of the prompt's, or the input image."""
        colour = self.palette[zlib.crc32(drawing.prompt.encode()) % len(self.palette)]
        if drawing.negative_prompt:
            avoided = self.palette[zlib.crc32(drawing.negative_prompt.encode()) % len(self.palette)]
            colour = mx.clip(colour + (colour - avoided) * (drawing.guidance or 0.0) / 8, 0, 1)
        for name, scale in drawing.loras:
            assert name == "sepia"
            colour = colour * (1 - scale) + mx.array(SEPIA) * scale
        shape = (drawing.height, drawing.width, 3)
        if not drawing.input_images:
            return mx.broadcast_to(colour, shape)
        kept = 1.0 if drawing.strength is None else drawing.strength
        images = mx.stack([mx.array(np.array(i)) for i in drawing.input_images])
        assert images.shape[1:] == shape
        return images.mean(0) / 255 * kept + colour * (1 - kept)


def _noise(drawing: Drawing) -> mx.array:
    key = mx.random.key(drawing.seed)
    return mx.random.uniform(shape=(drawing.height, drawing.width, 3), key=key)


def _all_pixels(states: Sequence[mx.array]) -> list[Pixels]:
    return [_pixels(x) for x in states]


def _pixels(x: mx.array) -> Pixels:
    return np.array(mx.clip(mx.round(x * 255), 0, 255).astype(mx.uint8))


def painter(traits: ImageTraits = TRAITS) -> Painter:
    """One that was never saved."""
    palette = mx.random.uniform(shape=(16, 3), key=mx.random.key(7))
    mx.eval(palette)
    return Painter(palette, traits)


def save_painter(directory: Path, traits: ImageTraits = TRAITS) -> Path:
    """A model directory of this family, that is made if need be."""
    (directory / "loras").mkdir(parents=True, exist_ok=True)
    config = {"model_type": MODEL_TYPE, "traits": asdict(traits)}
    (directory / "config.json").write_text(json.dumps(config))
    mx.save_safetensors(str(directory / "model.safetensors"), {"palette": painter().palette})
    tone = {"tone": mx.array(SEPIA)}
    mx.save_safetensors(str(directory / "loras" / "sepia.safetensors"), tone)
    (directory / "notes.txt").write_text("not a part of the model")
    return directory


class PainterFamily:
    """Directories that `save_painter` has made."""

    def knows(self, directory: Path) -> bool:
        return read_json(directory, "config.json").get("model_type") == MODEL_TYPE

    def files(self, directory: Path) -> Sequence[Path]:
        names = ("config.json", "model.safetensors", "loras/sepia.safetensors")
        return [directory / name for name in names]

    def facts(self, directory: Path) -> dict[str, Any]:
        tensors = read_tensors(directory)
        if "palette" not in tensors:
            raise ModelCorrupt(file="model.safetensors")
        return {
            "architecture": MODEL_TYPE,
            "parameters": sum(tensor.elements for tensor in tensors.values()),
            "tensor_bytes": sum(tensor.nbytes for tensor in tensors.values()),
            "quantization": "float32",
            "license": "Apache-2.0",
        }

    def traits(self, directory: Path) -> ImageTraits:
        return ImageTraits(**read_json(directory, "config.json")["traits"])

    def working_bytes(
        self, directory: Path, width: int, height: int, count: int, input_images: int = 0
    ) -> int:
        return BYTES_PER_PIXEL * width * height * count

    def load(self, directory: Path, dtype: Dtype, on_progress: Callable[[float], None]) -> Painter:
        on_progress(0.0)
        weights: Any = mx.load(str(directory / "model.safetensors"))
        mx.eval(weights["palette"])
        on_progress(1.0)
        return Painter(weights["palette"], self.traits(directory))


FAMILY = PainterFamily()
