"""Draws with a model of mflux, one image at a time, and tells how it goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from PIL import Image

from headrace.errors import UnsupportedParameter
from headrace.types import ImageTraits
from headrace_runner.models.mflux import insides
from headrace_runner.models.mflux.adapters import Adapters
from headrace_runner.models.mflux.catalogue import BASES
from headrace_runner.models.mflux.layout import Layout
from headrace_runner.models.mflux.loading import Loaded
from headrace_runner.models.pipeline import (
    Drawing,
    Phase,
    Pixels,
    Watch,
)


class MfluxPipeline:
    """A loaded model. Used on the thread that has loaded it, and on no other."""

    def __init__(self, layout: Layout, loaded: Loaded) -> None:
        self._base = BASES[layout.base]
        self._loaded = loaded
        self._traits = self._base.traits(layout.references)
        self._adapters = Adapters(
            layout.directory, loaded.model.transformer, loaded.architecture.adapters
        )
        self._model = loaded.model
        self._from_text = loaded.model
        if layout.references:
            # The class that looks at images cannot do without.
            self._from_text = insides.seen_as(loaded.model, self._base.architecture.model)
        for model in (self._model, self._from_text):
            _evaluated_at_once(model, loaded.architecture.encoder)

    @property
    def traits(self) -> ImageTraits:
        return self._traits

    @property
    def weights(self) -> str:
        """Type of the weights in memory, such as "float32" or "4-bit"."""
        return self._loaded.weights

    @property
    def weights_bytes(self) -> int:
        """Memory that the weights take."""
        return self._loaded.weights_bytes

    def draw(self, drawings: Sequence[Drawing], watch: Watch) -> Sequence[Pixels]:
        """See `ImagePipeline.draw`.

        Raises UnsupportedParameter for an adapter that the model does not have, a guidance that it
        would take for another, and a negative prompt that the guidance leaves without effect.
        """
        (drawing,) = drawings
        self._check(drawing)
        model = self._model if drawing.input_images else self._from_text
        # What some models keep of their prompts, without a bound.
        prompts: dict[Any, Any] = getattr(model, "prompt_cache", {})
        loop = _Loop(watch, self._preview, prompts)
        with insides.computing(self._loaded.computes), insides.quiet():
            self._adapters.put_on(drawing.loras)
            watch.phase(Phase.ENCODING, 1)
            loop.register(model.callbacks)
            try:
                drawn = model.generate_image(**self._arguments(drawing))
            finally:
                loop.unregister(model.callbacks)
                prompts.clear()
                mx.clear_cache()  # The next image may have another size, and other buffers.
        images = [_pixels(drawn.image)]
        watch.step(1, lambda: images)
        return images

    def _check(self, drawing: Drawing) -> None:
        """What a model's traits do not say, and so `check_image_request` does not either."""
        guidance = self._guidance(drawing)
        if guidance is None or guidance > 1 or not self._loaded.architecture.guided_above_one:
            return
        if 0 < guidance < 1:
            raise UnsupportedParameter(
                "the model takes all up to 1 for none; ask for 0 or for more than 1",
                field="guidance",
            )
        if drawing.negative_prompt is not None:
            raise UnsupportedParameter(
                "it has no effect unless guidance is greater than 1", field="negative_prompt"
            )

    def _guidance(self, drawing: Drawing) -> float | None:
        return self._traits.guidance if drawing.guidance is None else drawing.guidance

    def _arguments(self, drawing: Drawing) -> dict[str, Any]:
        """Of mflux's `generate_image`: what the model ignores is not in it."""
        arguments: dict[str, Any] = {
            "seed": drawing.seed,
            "prompt": drawing.prompt,
            "num_inference_steps": drawing.steps,
            "height": drawing.height,
            "width": drawing.width,
        }
        guidance = self._guidance(drawing)
        if guidance is not None:
            arguments["guidance"] = guidance
        if self._traits.negative_prompt:
            arguments["negative_prompt"] = drawing.negative_prompt or self._base.blank
        images = [Image.fromarray(pixels) for pixels in drawing.input_images]
        if images and self._traits.strength is None:
            arguments["image_paths"] = images
        elif images:
            # mflux takes an image where it asks for a path.
            strength = self._traits.strength if drawing.strength is None else drawing.strength
            if strength:
                arguments |= {"image_path": images[0], "image_strength": strength}
        return arguments

    def _preview(self, latents: mx.array, config: Any) -> Pixels:
        architecture = self._loaded.architecture
        image = insides.decoded(
            self._loaded.model, architecture.latents, latents, config.width, config.height
        )
        return _pixels(image)


class _Loop:
    """mflux's callbacks around its loop, for one drawing."""

    def __init__(
        self, watch: Watch, decode: Callable[[mx.array, Any], Pixels], prompts: dict[Any, Any]
    ) -> None:
        self._watch = watch
        self._decode = decode
        self._prompts = prompts
        self._done = 0

    def register(self, callbacks: Any) -> None:
        callbacks.register(self)

    def unregister(self, callbacks: Any) -> None:
        for kind in (callbacks.before_loop, callbacks.in_loop, callbacks.after_loop):
            kind.remove(self)

    def call_before_loop(self, latents: mx.array, config: Any, **_: Any) -> None:
        # What has been encoded is computed now, and not within the first step.
        mx.eval(latents, insides.arrays(list(self._prompts.values())))
        self._watch.step(1, lambda: [self._decode(latents, config)])
        # With an input image the loop begins late.
        steps = config.num_inference_steps - config.init_time_step
        self._watch.phase(Phase.DENOISING, steps)

    def call_in_loop(self, latents: mx.array, config: Any, **_: Any) -> None:
        mx.eval(latents)  # Called before mflux evaluates the step.
        self._done += 1
        self._watch.step(self._done, lambda: [self._decode(latents, config)])

    def call_after_loop(self, **_: Any) -> None:
        self._watch.phase(Phase.DECODING, 1)


def _evaluated_at_once(model: Any, encoder: str) -> None:
    """Encoded prompts are computed when they are asked for, and not within the first step."""
    if not encoder:
        return
    encode = getattr(model, encoder)

    def encoded(*args: Any, **kwargs: Any) -> Any:
        found = encode(*args, **kwargs)
        mx.eval(insides.arrays(found))
        return found

    setattr(model, encoder, encoded)


def _pixels(image: Image.Image) -> Pixels:
    return np.asarray(image.convert("RGB"), dtype=np.uint8)
