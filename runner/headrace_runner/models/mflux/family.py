"""The family of models that mflux draws with."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from headrace.types import ImageTraits
from headrace_runner.models.files import read_text
from headrace_runner.models.mflux import layout, memory
from headrace_runner.models.mflux.catalogue import BASES
from headrace_runner.models.pipeline import Dtype, ImageFamily, ImagePipeline
from headrace_runner.models.safetensors import StoredTensor

_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}


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
        stored = layout.tensors(directory)
        bits = layout.quantization(directory)
        named = list(stored.values())
        return {
            "format": "mflux",
            "architecture": BASES[found.base].architecture.name,
            "parameters": sum(_parameters(tensors, bits) for tensors in named),
            "tensor_bytes": sum(t.nbytes for tensors in named for t in tensors.values()),
            "quantization": f"{bits}-bit g64" if bits else _widest_share(named),
            "license": _license(directory),
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


def _parameters(tensors: Mapping[str, StoredTensor], bits: int | None) -> int:
    """Weights as the architecture counts them: a packed word holds 32 / bits of them."""
    count = 0
    for name, tensor in tensors.items():
        stem, _, part = name.rpartition(".")
        packed = f"{stem}.scales" in tensors
        if packed and part in ("scales", "biases"):
            continue
        whole = packed and tensor.dtype == "U32" and bits
        count += tensor.elements * 32 // bits if whole and bits else tensor.elements
    return count


def _widest_share(named: Sequence[Mapping[str, StoredTensor]]) -> str:
    """The type of most of the bytes."""
    sizes: dict[str, int] = {}
    for tensors in named:
        for tensor in tensors.values():
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.nbytes
    dtype = max(sizes, key=lambda name: sizes[name])
    return _DTYPES.get(dtype, dtype)


def _license(directory: Path) -> str | None:
    """The model card's "license:", in the block between the first two lines of three dashes."""
    card = read_text(directory, "README.md") or ""
    block = card.split("\n---", 1)[0] if card.startswith("---\n") else ""
    found = re.search(r"^license:[ \t]*(\S.*)$", block, re.MULTILINE)
    return found.group(1).strip().strip("\"'") if found else None
