"""Adapters of a loaded model: which there are, putting them on and taking them off again.

Adapters lie around the layers that they change and are never baked into them, so that the model
without them is the very one that was loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlx.utils import tree_unflatten

from headrace.errors import ModelCorrupt, UnsupportedParameter
from headrace_runner.models.architectures import first_line
from headrace_runner.models.device import is_allocation_failure
from headrace_runner.models.mflux import insides
from headrace_runner.models.mflux.layout import LORAS
from headrace_runner.models.safetensors import read_header

Wanted = Sequence[tuple[str, float]]


class Adapters:
    """The adapters of one model, from the files `loras/NAME.safetensors` beside it."""

    def __init__(self, directory: Path, transformer: Any, mapping: str) -> None:
        self._directory = directory / LORAS
        self._transformer = transformer
        self._mapping = mapping
        self._on: Wanted = ()

    def names(self) -> list[str]:
        """Names that a drawing may ask for."""
        return sorted(path.stem for path in self._directory.glob("*.safetensors"))

    def put_on(self, wanted: Wanted) -> None:
        """The model has these adapters from now on, and no others.

        Raises UnsupportedParameter naming the adapter that is not there or does not fit the model,
        ModelCorrupt where its file is damaged. The model has none then.
        """
        if tuple(wanted) == tuple(self._on):
            return
        paths = [self._path(index, name) for index, (name, _) in enumerate(wanted)]
        self._take_off()
        try:
            for index, (path, (_, scale)) in enumerate(zip(paths, wanted, strict=True)):
                self._attach(index, path, scale)
        except BaseException:
            self._take_off()
            raise
        self._on = tuple(wanted)

    def _path(self, index: int, name: str) -> Path:
        # A name is looked up, never made a path: it comes from a request.
        if name not in self.names():
            there = ", ".join(self.names()) or "none"
            raise UnsupportedParameter(
                f"the model has no adapter {name!r}; it has: {there}", field=f"loras[{index}].name"
            )
        if not self._mapping:
            raise UnsupportedParameter(
                "mflux applies no adapters to this model", field=f"loras[{index}]"
            )
        return self._directory / f"{name}.safetensors"

    def _attach(self, index: int, path: Path, scale: float) -> None:
        try:
            read_header(path)
        except ModelCorrupt as error:
            raise ModelCorrupt(str(error), file=f"{LORAS}/{path.name}") from error
        try:
            insides.attach(self._transformer, self._mapping, str(path), scale)
        except (ValueError, KeyError, IndexError, RuntimeError) as error:
            if is_allocation_failure(error):
                raise
            raise UnsupportedParameter(
                f"the adapter {path.stem!r} does not fit the model: {first_line(error)}",
                field=f"loras[{index}].name",
            ) from error

    def _take_off(self) -> None:
        self._on = ()
        layers = insides.adapted(self._transformer)
        if layers:
            self._transformer.update_modules(tree_unflatten(list(layers.items())))
