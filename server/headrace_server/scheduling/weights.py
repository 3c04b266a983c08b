"""The type in which a model's weights are loaded here, and what there is to say of it."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from headrace.host.dtype import Dtype, choose_dtype
from headrace.host.kernels import NOT_COVERED, cover
from headrace_server.config import ModelOptions
from headrace_server.hosting import Hosting
from headrace_server.store import Manifest

logger = logging.getLogger(__name__)


def by_budget(
    manifest: Manifest, options: ModelOptions, directory: Path, memory: int, *, has_kernels: bool
) -> Dtype | None:
    """What follows from the memory budget, which alone of all that decides changes while a
    controller runs, on a CPU with a fast BLAS. None: it has no say, since the options tell the type
    or the model is one for the kernels that there are.
    """
    if options.dtype in ("float32", "stored"):
        return None
    if has_kernels and not _why_not_for_kernels(manifest, directory):
        return None
    return choose_dtype("cpu", manifest.parameters, manifest.tensor_bytes, memory, has_blas=True)


def dtype_of(
    manifest: Manifest, options: ModelOptions, directory: Path, memory: int, hosting: Hosting
) -> Dtype:
    """The type for a model with these files in `directory`."""
    if options.dtype in ("float32", "stored"):
        return options.dtype
    return choose_dtype(
        hosting.machine.device,
        manifest.parameters,
        manifest.tensor_bytes,
        memory,
        hosting.has_blas,
        by_kernels=not _why_no_kernels(manifest, directory, hosting),
    )


def tell(
    manifest: Manifest,
    options: ModelOptions,
    directory: Path,
    memory: int,
    hosting: Hosting,
    dtype: Dtype,
) -> None:
    """Says where a model is loaded in another type than was asked for, or in a slow one."""
    if options.dtype == "int8" != dtype:
        logger.warning(
            "dtype int8: %s; the weights are loaded as by auto",
            _why_no_kernels(manifest, directory, hosting),
            extra={"model": manifest.full_name},
        )
    elif options.dtype == "auto" and dtype == "stored" and hosting.has_blas:
        logger.info(
            "the weights stay as they are stored, since float32 would take more than half of "
            "the memory budget; on a CPU that is much slower",
            extra={"model": manifest.full_name, "memory_bytes": memory},
        )


def _why_no_kernels(manifest: Manifest, directory: Path, hosting: Hosting) -> str:
    """Why a model cannot be computed by the kernels here; "" if it can."""
    return _why_not_for_kernels(manifest, directory) or (
        "" if hosting.kernels.path else hosting.kernels.reason
    )


def _why_not_for_kernels(manifest: Manifest, directory: Path) -> str:
    if manifest.kind != "text":
        return f"it is for text alone, and this is a model for {manifest.kind}"
    try:
        config = json.loads((directory / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return "config.json cannot be read"  # A runner says more of that.
    if not isinstance(config, dict) or not cover(config):
        return NOT_COVERED
    return ""
