"""What all contenders share: the model in the forms they load, and their environments."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping
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
_CONVERT_SECONDS = 120.0


@dataclass(frozen=True)
class Setting:
    """Where a bench runs."""

    home: Path
    """A HEADRACE_HOME that has the model."""
    stored: Path
    """The model's directory."""
    float32: Path
    """The same model with its weights expanded to float32."""
    quantized: Path
    """The same model, quantised as it is, its scales in float32: MLX's kernels for quantised
    weights take tens of times longer with half-precision scales on a CPU."""
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
    """Pulls the model where it is missing, and writes what the peers load into `work`, once."""
    store = Store(home())
    manifest = await store.pull(MODEL)
    stored = store.path(manifest)
    machine = describe()
    blas = find_blas(os.environ.get("HEADRACE_BLAS"), home())
    stock = runner_environment(os.environ, machine, None, has_cxx())
    mine = work / manifest.digest.removeprefix("sha256:")[:16]
    await _convert(stored, mine / "float32", stock, "--dequantize")
    await _convert(stored, mine / "quantized", stock)
    return Setting(
        home=home(),
        stored=stored,
        float32=mine / "float32",
        quantized=mine / "quantized",
        sockets=sockets,
        machine=machine,
        blas=blas,
        tuned=runner_environment(os.environ, machine, blas, has_cxx()),
        stock=stock,
    )


async def _convert(
    stored: Path, target: Path, environment: Mapping[str, str], *options: str
) -> None:
    """Writes the model to `target` with mlx-lm's own converter, unless it is there."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as unfinished:
        output = Path(unfinished, "model")
        command = [sys.executable, "-m", "mlx_lm", "convert", "--dtype", "float32", *options]
        command += ["--hf-path", str(stored), "--mlx-path", str(output)]
        async with running(command, environment, b"") as child:
            await child.ended(_CONVERT_SECONDS)
        output.rename(target)
