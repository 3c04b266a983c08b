"""What all contenders share: the model, its float32 copy, and the environments they run in."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from headrace.host.blas import Blas, find_blas
from headrace.host.compiler import has_cxx
from headrace.host.environment import runner_environment
from headrace.host.machine import Machine, describe
from headrace_server.store import Store
from tests.bench.children import running

MODEL = "smollm2:135m"
_ROOT = Path(__file__).parents[2]
_PACKAGES = ("mlx", "mlx-lm", "grpcio", "protobuf")
_WIDEN_SECONDS = 120.0


@dataclass(frozen=True)
class Setting:
    """Where a bench runs."""

    home: Path
    """A HEADRACE_HOME that has the model."""
    stored: Path
    """The model's directory."""
    float32: Path
    """The same model with float32 weights."""
    sockets: Path
    """A private folder with a short path."""
    machine: Machine
    blas: Blas | None
    tuned: dict[str, str]
    """The environment that Headrace gives a runner."""
    stock: dict[str, str]
    """The same without the BLAS."""

    def facts(self) -> dict[str, str]:
        """What a reader of the figures wants to know about the machine."""
        versions = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
        return {
            "machine": f"{self.machine.system} {self.machine.arch}, {self.machine.cpus} cores",
            "device": self.machine.device,
            "blas": f"{self.blas.path.name} ({self.blas.origin})" if self.blas else "MLX's own",
            "model": MODEL,
            "python": sys.version.split()[0],
            "versions": versions,
        }


def home() -> Path:
    """The store that tests and benches share."""
    return Path(os.environ.get("HEADRACE_TEST_HOME") or _ROOT / ".cache" / "home")


async def prepare(work: Path, sockets: Path) -> Setting:
    """Pulls the model where it is missing, and writes its float32 copy into `work` once."""
    store = Store(home())
    manifest = await store.pull(MODEL)
    stored = store.path(manifest)
    machine = describe()
    blas = find_blas(os.environ.get("HEADRACE_BLAS"), home())
    stock = runner_environment(os.environ, machine, None, has_cxx())
    float32 = work / f"{manifest.digest.removeprefix('sha256:')[:16]}-float32"
    if not float32.exists():
        await _widen(stored, float32, stock)
    return Setting(
        home=home(),
        stored=stored,
        float32=float32,
        sockets=sockets,
        machine=machine,
        blas=blas,
        tuned=runner_environment(os.environ, machine, blas, has_cxx()),
        stock=stock,
    )


async def _widen(stored: Path, target: Path, environment: dict[str, str]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=target.parent))
    try:
        script = Path(__file__).with_name("widen.py")
        command = (sys.executable, script, stored, unfinished)
        async with running(command, environment, b"") as child:
            await child.ended(_WIDEN_SECONDS)
        unfinished.rename(target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
