"""How each tensor will be kept: as it is, in half precision, or quantised. Decides only.

What MLX can hold as the file does stays so. Other quantised types would take four times their
size in half precision; at 8 bits in groups of 32 they lose next to nothing of what they have left.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeAlias

from headrace_runner.convert.blocks import EXACT_BITS, EXACT_GROUP
from headrace_runner.convert.gguf import TensorInfo


class Quantize(Enum):
    """What was asked for."""

    AS_STORED = "stored"
    """What MLX can hold stays; other quantised types get 8 bits."""
    NONE = "none"
    """Half precision, or float32 where all of the source is."""
    BITS_4 = "4"
    BITS_8 = "8"

    @property
    def bits(self) -> int | None:
        return {Quantize.BITS_4: 4, Quantize.BITS_8: 8}.get(self)


@dataclass(frozen=True)
class Packed:
    """MLX's affine quantisation."""

    bits: int
    group_size: int
    exact: bool = False
    """Whether the file's own blocks are taken over."""


EXPANDED = frozenset({"F32", "F16", "BF16"})
"""GGML's types that are not quantised."""
Layout: TypeAlias = Packed | None
"""None stands for floating point."""


def layout_of(tensor: TensorInfo, asked: Quantize, *, fine: bool = False) -> Layout:
    """How `tensor` will be kept; `fine` for one that needs 8 bits at least."""
    if len(tensor.shape) < 2 or not tensor.name.endswith(".weight"):
        return None
    bits = asked.bits
    if bits is not None and fine:
        bits = 8
    held = EXACT_BITS.get(tensor.type.name)
    if held is not None and asked is not Quantize.NONE and (bits is None or held <= bits):
        return Packed(held, EXACT_GROUP, exact=True)
    if asked is Quantize.AS_STORED:
        return Packed(8, 32) if tensor.type.block_size > 1 else None
    group = group_size(tensor.shape[-1])
    return Packed(bits, group) if bits is not None and group else None


def group_size(columns: int) -> int | None:
    """The largest group of MLX's kernels that rows of this length can have, None for none."""
    return next((size for size in (64, 32) if columns % size == 0), None)


def settings(modules: Iterable[tuple[str, Layout, int]]) -> dict[str, Any]:
    """`quantization` of config.json for modules with their layout and number of elements."""
    packed = {
        name: ({"group_size": layout.group_size, "bits": layout.bits}, elements)
        for name, layout, elements in modules
        if layout is not None
    }
    if not packed:
        return {}
    commonest = _commonest(packed.values())
    exceptions = {name: own for name, (own, _) in packed.items() if own != commonest}
    return {"quantization": commonest | exceptions}


def _commonest(found: Iterable[tuple[dict[str, int], int]]) -> dict[str, Any]:
    sizes: dict[tuple[int, int], int] = {}
    for own, elements in found:
        key = own["group_size"], own["bits"]
        sizes[key] = sizes.get(key, 0) + elements
    group, bits = max(sizes, key=lambda key: sizes[key])
    return {"group_size": group, "bits": bits}


def described(
    stored: Mapping[str, int], layouts: Iterable[tuple[str, Layout]], floating: str
) -> str:
    """How most of the weights are kept: "Q4_1", "8-bit g32 of Q4_K", or "float16 of Q4_K".

    `stored` has the elements of each GGML type, `layouts` a layout of each type; `floating` is the
    type of what is not quantised.
    """
    main = max(stored, key=lambda name: stored[name])
    layout = next(layout for name, layout in layouts if name == main)
    if layout is None and main not in EXPANDED:
        return f"{floating} of {main}"
    if layout is None or layout.exact:
        return main
    return f"{layout.bits}-bit g{layout.group_size} of {main}"
