"""The kernels for a CPU (the package headrace-kernels): which are there, and what they cover."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

PACKAGE = "headrace-kernels"
SWITCH = "HEADRACE_KERNELS"
"""The variable that names the path to use: a name of the package's, or `OFF`."""
OFF = "off"
NOT_COVERED = "the model is not quantised to 4 or 8 bits in groups of 32, 64 or 128"
_TIMEOUT = 60.0  # seconds
_BITS = (4, 8)
_GROUPS = (32, 64, 128)


@dataclass(frozen=True)
class Kernels:
    """What was found out."""

    path: str = ""
    """The one in use; empty: none."""
    others: tuple[str, ...] = ()
    """Those that would work as well."""
    reason: str = ""
    """Why there is none."""


def cover(config: Mapping[str, Any]) -> bool:
    """Whether they know how a model of this config.json is quantised, in all of its layers."""
    quantization = config.get("quantization")
    if not isinstance(quantization, dict) or not cover_layer(quantization):
        return False
    # Layers with a way of their own are named beside it; False: not quantised.
    return all(cover_layer(each) for each in quantization.values() if isinstance(each, dict))


def cover_layer(quantization: Mapping[str, Any]) -> bool:
    """The same for one layer, of its `bits`, `group_size` and `mode`."""
    return (
        quantization.get("mode", "affine") == "affine"
        and quantization.get("bits") in _BITS
        and quantization.get("group_size") in _GROUPS
    )


def why_none(environ: Mapping[str, str] = os.environ) -> str:
    """Why there are none to be loaded; "" where there are, whether they load or not. Takes no
    time."""
    if environ.get(SWITCH) == OFF:
        return f"{SWITCH} is {OFF}"
    try:
        metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        return f"{PACKAGE} is not installed"
    return ""


def find_kernels(environ: Mapping[str, str] = os.environ) -> Kernels:
    """Loads the package in a process of its own, which takes a third of a second.

    It is built for one release of MLX and may fail to load; that shall disturb nobody.
    """
    if reason := why_none(environ):
        return Kernels(reason=reason)
    # Not from the folder that this runs in, which may be that of their sources.
    command = [sys.executable, "-P", "-m", PACKAGE.replace("-", "_")]
    try:
        said = subprocess.run(
            command, env=dict(environ), capture_output=True, text=True, timeout=_TIMEOUT, check=True
        )
        path, *others = said.stdout.split()
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines() or [f"it ended with {error.returncode}"]
        return Kernels(reason=f"{PACKAGE} does not load: {lines[-1]}")
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        return Kernels(reason=f"{PACKAGE} does not load: {error}")
    return Kernels(path, tuple(others))
