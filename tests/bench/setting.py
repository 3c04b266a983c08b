"""What all contenders share: the model in the forms they load, and their environments."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from tokenizers import Tokenizer

from headrace.host.blas import Blas, find_blas
from headrace.host.compiler import has_cxx
from headrace.host.environment import runner_environment
from headrace.host.machine import Machine, describe
from headrace_server.store import Store
from tests.bench import llama
from tests.bench.children import running
from tests.bench.llama import Llama

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
    llama: Llama | None = None
    """llama.cpp's server, where it has been built."""

    def facts(self) -> dict[str, str]:
        """What a reader of the figures wants to know about the machine."""
        versions = [f"{name} {version(name)}" for name in _PACKAGES]
        if self.llama:
            versions.append(llama.REQUIREMENT.replace("==", " "))
        return {
            "machine": f"{self.machine.system} {self.machine.arch}, {self.machine.cpus} cores",
            "device": self.machine.device,
            "blas": f"{self.blas.path.name} ({self.blas.origin})" if self.blas else "MLX's own",
            "model": MODEL,
            "python": sys.version.split()[0],
            "versions": ", ".join(versions),
        }


def token_counter(setting: Setting) -> Callable[[str], int]:
    """Counts the model's tokens in a text."""
    tokenizer = Tokenizer.from_file(str(setting.stored / "tokenizer.json"))
    return lambda text: len(tokenizer.encode(text).ids)


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
        llama=llama.find(work, MODEL),
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
