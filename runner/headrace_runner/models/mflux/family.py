"""The family of models that mflux draws with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from headrace.types import ImageTraits
from headrace_runner.models.files import license_of
from headrace_runner.models.mflux import layout, memory
from headrace_runner.models.mflux.catalogue import BASES
from headrace_runner.models.pipeline import Dtype, ImageFamily, ImagePipeline
from headrace_runner.models.safetensors import main_type, parameters_in


class MfluxFamily:
    """See `ImageFamily`. Neither reading a directory nor its facts needs mflux."""

    def knows(self, directory: Path) -> bool:
        """Whether the directory is in a layout that mflux reads, with a model named in it."""
        return layout.knows(directory)

    def files(self, directory: Path) -> list[Path]:
        """The files that make up the model, its adapters included."""
        return layout.files(directory)

    def facts(self, directory: Path) -> dict[str, Any]:
        """See `ImageFamily.facts`."""
        found = layout.describe(directory)
        bits = layout.quantization(directory)
        stored = {
            f"{file}/{name}": tensor
            for file, tensors in layout.tensors(directory).items()
            for name, tensor in tensors.items()
        }
        return {
            "format": "mflux",
            "architecture": BASES[found.base].architecture.name,
            "parameters": parameters_in(stored, lambda _: bits or 32),
            "tensor_bytes": sum(tensor.nbytes for tensor in stored.values()),
            "quantization": f"{bits}-bit g64" if bits else main_type(stored.values()),
            "license": license_of(directory),
        }

    def traits(self, directory: Path) -> ImageTraits:
        """See `ImageFamily.traits`. Raises ModelCorrupt and UnsupportedModel as `facts` does."""
        found = layout.describe(directory)
        return BASES[found.base].traits(found.references)

    def working_bytes(
        self, directory: Path, width: int, height: int, count: int, input_images: int = 0
    ) -> int:
        """See `memory`. `count` changes nothing: images are drawn one after the other."""
        return memory.working_bytes(layout.describe(directory), width, height, input_images)

    def load(
        self, directory: Path, dtype: Dtype, on_progress: Callable[[float], None]
    ) -> ImagePipeline:
        """See `ImageFamily.load`."""
        # Here, so that who asks for something else does not wait for it.
        from headrace_runner.models.mflux.loading import load
        from headrace_runner.models.mflux.pipeline import MfluxPipeline

        found = layout.describe(directory)
        return MfluxPipeline(found, load(found, dtype, on_progress))


FAMILY: ImageFamily = MfluxFamily()
