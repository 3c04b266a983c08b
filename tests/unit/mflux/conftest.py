"""Tiny models of mflux, built once, and pipelines that have loaded them."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from headrace_runner.models.mflux.family import FAMILY
from headrace_runner.models.mflux.pipeline import MfluxPipeline
from headrace_runner.models.pipeline import Dtype
from tests.mflux_models import build_flux2, build_z_image


def load(directory: Path, dtype: Dtype = "float32") -> MfluxPipeline:
    """The pipeline of the model in `directory`."""
    pipeline = FAMILY.load(directory, dtype, lambda _: None)
    assert isinstance(pipeline, MfluxPipeline)
    return pipeline


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
