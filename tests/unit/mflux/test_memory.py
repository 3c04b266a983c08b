"""The estimate of memory against what MLX says was used."""

import gc
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from headrace_runner.models.mflux.family import MfluxFamily
from headrace_runner.models.mflux.pipeline import MfluxPipeline
from headrace_runner.models.pipeline import Dtype
from tests.mflux_models import build_flux2, build_z_image
from tests.unit.mflux.conftest import load
from tests.unit.mflux.watching import draw, photo

FAMILY = MfluxFamily()


def peak(pipeline: MfluxPipeline, width: int, height: int, **changed: Any) -> int:
    """Bytes beside what is there already, with a prompt as long as the models take one."""
    gc.collect()
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    draw(pipeline, prompt="cat " * 200, steps=1, width=width, height=height, **changed)
    return mx.get_peak_memory() - before


def close(measured: int, estimate: int) -> bool:
    return 0.8 * estimate <= measured <= 1.3 * estimate


@pytest.mark.parametrize("height", [64, 128])
def test_text_to_image(z_image: MfluxPipeline, z_image_dir: Path, height: int) -> None:
    assert close(peak(z_image, 64, height), FAMILY.working_bytes(z_image_dir, 64, height, 1))


@pytest.mark.slow
def test_flux2(flux2: MfluxPipeline, flux2_dir: Path) -> None:
    assert close(peak(flux2, 64, 64), FAMILY.working_bytes(flux2_dir, 64, 64, 1))


def test_with_an_input_image(z_image: MfluxPipeline, z_image_dir: Path) -> None:
    estimate = FAMILY.working_bytes(z_image_dir, 64, 64, 1, input_images=1)
    assert close(peak(z_image, 64, 64, input_images=(photo(64, 64),), strength=1.0), estimate)


def test_it_grows_with_the_image_and_not_with_their_number(z_image_dir: Path) -> None:
    small = FAMILY.working_bytes(z_image_dir, 512, 512, 1)
    assert FAMILY.working_bytes(z_image_dir, 512, 512, 4) == small
    assert 2 * small < FAMILY.working_bytes(z_image_dir, 1024, 1024, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "width", "height", "dtype"),
    [
        (build_z_image, 64, 320, "float32"),
        (build_z_image, 256, 256, "stored"),
        (build_flux2, 320, 128, "float32"),
        (build_flux2, 256, 256, "stored"),
    ],
)
def test_larger_images(
    needs_mflux: None, tmp_path: Path, build: Any, width: int, height: int, dtype: Dtype
) -> None:
    build(tmp_path)
    assert close(
        peak(load(tmp_path, dtype), width, height),
        FAMILY.working_bytes(tmp_path, width, height, 1),
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "transformer"),
    [
        (build_flux2, {"num_attention_heads": 4}),
        (build_flux2, {"num_attention_heads": 8}),
        (build_flux2, {"num_layers": 2, "num_single_layers": 4}),
        (build_z_image, {"dim": 768, "n_heads": 12, "n_layers": 1}),
    ],
)
def test_wider_and_deeper_transformers(
    needs_mflux: None, tmp_path: Path, build: Any, transformer: dict[str, int]
) -> None:
    """Wide enough that it is they who take the most."""
    build(tmp_path, transformer=transformer)
    assert close(peak(load(tmp_path), 64, 64), FAMILY.working_bytes(tmp_path, 64, 64, 1))
