"""What an image model is to the engine, whichever family it is of.

A pipeline owns its weights and draws on the engine's thread. It tells how it goes through the
`Watch` that it is given; whoever watches may end the work there, by an exception that the pipeline
lets through and after which it draws the next image as if nothing had been.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from headrace.types import ImageTraits

Pixels: TypeAlias = NDArray[np.uint8]
"""An image: [height, width, 3], RGB, or [height, width, 4] with straight alpha."""


Dtype: TypeAlias = Literal["float32", "stored"]


class Phase(enum.Enum):
    """A part of the work on images."""

    ENCODING = "encoding"
    DENOISING = "denoising"
    DECODING = "decoding"


@dataclass(frozen=True, slots=True)
class Drawing:
    """One image to be drawn. All that the model does not take is absent."""

    prompt: str
    seed: int
    width: int
    height: int
    steps: int
    guidance: float | None = None
    negative_prompt: str | None = None
    input_images: tuple[Pixels, ...] = ()
    strength: float | None = None
    loras: tuple[tuple[str, float], ...] = ()
    """Name and scale of each adapter. They lie beside the model as `loras/NAME.safetensors`; see
    `families.adapters`."""


def smallest_drawing(traits: ImageTraits) -> Drawing:
    """The quickest drawing there is, by which it is found out whether a model can draw."""
    side = -(-traits.min_size // traits.size_step) * traits.size_step
    return Drawing("a", 0, side, side, steps=1, guidance=traits.guidance)


class Watch(Protocol):
    """Hears how the work goes. Either call may raise, to end it."""

    def phase(self, phase: Phase, total: int) -> None:
        """A phase begins, of `total` steps. With an input image a model may skip some of the
        steps asked for: `total` is what is done."""

    def step(self, done: int, preview: Callable[[], Sequence[Pixels]]) -> None:
        """So many steps of the phase are done, and evaluated. `preview` decodes the images as they
        are now, one for each drawing, at the caller's cost."""

    def wanted(self, place: int) -> bool:
        """Whether somebody still waits for the drawing at this place. Where nobody does, it need
        not be gone on with, and what is given for it is not looked at."""


class Unwatched:
    """A `Watch` for whoever wants nothing but the images."""

    def phase(self, phase: Phase, total: int) -> None:
        """Nobody hears it."""

    def step(self, done: int, preview: Callable[[], Sequence[Pixels]]) -> None:
        """Nobody hears it."""

    def wanted(self, place: int) -> bool:
        """All are."""
        return True


class ImagePipeline(Protocol):
    """A loaded model. Used on one thread only, which has also loaded it."""

    @property
    def traits(self) -> ImageTraits: ...

    @property
    def weights(self) -> str:
        """Type of the weights in memory, such as "float32" or "4-bit"."""

    @property
    def weights_bytes(self) -> int:
        """Memory that the weights take."""

    def draw(self, drawings: Sequence[Drawing], watch: Watch) -> Sequence[Pixels]:
        """Draws 1 to `traits.max_batch` images that share size, steps, strength and number of
        input images. What comes out for one of them depends on nothing but itself."""


class ImageFamily(Protocol):
    """Models for images of one kind: how they lie on the disk, and how they are loaded."""

    def knows(self, directory: Path) -> bool:
        """Whether the model in `directory` is of this family. Cheap: reads a file or two."""

    def files(self, directory: Path) -> Sequence[Path]:
        """The files in `directory` that the model is made of, its adapters and its card included:
        what an import copies."""

    def facts(self, directory: Path) -> dict[str, Any]:
        """What a manifest says about the model, but for its traits and memory. Raises ModelCorrupt
        for damaged files, UnsupportedModel for what this family cannot draw with."""

    def traits(self, directory: Path) -> ImageTraits: ...

    def working_bytes(
        self, directory: Path, width: int, height: int, count: int, input_images: int = 0
    ) -> int:
        """Memory beside the weights while `count` images of so many pixels are drawn together, each
        from `input_images` of the same size."""

    def load(
        self, directory: Path, dtype: Dtype, on_progress: Callable[[float], None]
    ) -> ImagePipeline:
        """Loads the model, on the thread that will draw. `dtype` "float32" expands quantised and
        half-precision weights. `on_progress` gets the fraction that is done, and may raise.

        Raises ModelCorrupt naming the file, and UnsupportedModel.
        """
