"""Tiny models of mflux, built once, and pipelines that have loaded them."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from headrace_runner.models.mflux.family import MfluxFamily
from headrace_runner.models.mflux.pipeline import MfluxPipeline
from tests.mflux_models import build_flux2, build_z_image


def load(directory: Path, dtype: str = "float32") -> MfluxPipeline:
    """The pipeline of the model in `directory`."""
    assert dtype in ("float32", "stored")
    return MfluxFamily().load(
        directory, "float32" if dtype == "float32" else "stored", lambda _: None
    )


@pytest.fixture(scope="session")
def needs_mflux() -> None:
    if find_spec("mflux") is None:
        pytest.skip("mflux is not installed: make install-image")


@pytest.fixture(scope="session")
def z_image_dir(needs_mflux: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Z-Image-Turbo with two adapters. Read it, and write nowhere in it."""
    return build_z_image(tmp_path_factory.mktemp("z-image"), lora=True)


@pytest.fixture(scope="session")
def flux2_dir(needs_mflux: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FLUX.2 klein with two adapters. Read it, and write nowhere in it."""
    return build_flux2(tmp_path_factory.mktemp("flux2"), lora=True)


@pytest.fixture(scope="session")
def z_image(z_image_dir: Path) -> MfluxPipeline:
    return load(z_image_dir)


@pytest.fixture(scope="session")
def flux2(flux2_dir: Path) -> MfluxPipeline:
    return load(flux2_dir)
