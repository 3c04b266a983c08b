"""Adapters lie around the model's layers, and leave no trace when they are taken off."""

from pathlib import Path

import mlx.core as mx
import pytest

from headrace.errors import ModelCorrupt, UnsupportedParameter
from headrace_runner.models.mflux import insides
from headrace_runner.models.mflux.pipeline import MfluxPipeline
from headrace_runner.models.pipeline import Pixels
from tests.mflux_models import build_z_image
from tests.unit.mflux.conftest import load
from tests.unit.mflux.watching import draw, same


@pytest.fixture(scope="module")
def plain(z_image: MfluxPipeline) -> Pixels:
    return draw(z_image, steps=1)


def test_on_and_off_again(z_image: MfluxPipeline, plain: Pixels) -> None:
    style = draw(z_image, steps=1, loras=(("style", 1.0),))
    half = draw(z_image, steps=1, loras=(("style", 0.5),))
    both = draw(z_image, steps=1, loras=(("style", 1.0), ("other", 1.0)))
    twice = draw(z_image, steps=1, loras=(("style", 0.5), ("style", 0.5)))
    images = [plain, style, half, both]
    assert not any(same(a, b) for i, a in enumerate(images) for b in images[:i])
    assert not same(twice, half)
    assert same(draw(z_image, steps=1), plain)
    assert same(draw(z_image, steps=1, loras=(("style", 1.0),)), style)
    assert same(draw(z_image, steps=1), plain)


@pytest.mark.parametrize("name", ["nope", "../loras/style", "style.safetensors", ""])
def test_a_name_that_is_not_there(z_image: MfluxPipeline, plain: Pixels, name: str) -> None:
    with pytest.raises(UnsupportedParameter, match="it has: other, style") as caught:
        draw(z_image, steps=1, loras=(("style", 1.0), (name, 1.0)))
    assert caught.value.metadata["field"] == "loras[1].name"
    assert same(draw(z_image, steps=1), plain)


def test_a_lack_of_memory_is_not_the_adapter_s_fault(
    z_image: MfluxPipeline, plain: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    def attach(*_: object) -> None:
        raise RuntimeError("[malloc] Unable to allocate 123 bytes.")

    with monkeypatch.context() as patched:
        patched.setattr(insides, "attach", attach)
        with pytest.raises(RuntimeError, match="Unable to allocate"):
            draw(z_image, steps=1, loras=(("style", 1.0),))
    assert same(draw(z_image, steps=1), plain)


def test_files_that_do_not_fit(needs_mflux: None, tmp_path: Path) -> None:
    build_z_image(tmp_path, lora=True)
    whole = tmp_path / "loras" / "style.safetensors"
    (tmp_path / "loras" / "short.safetensors").write_bytes(whole.read_bytes()[:-1])
    layer = "transformer.layers.0.attention.to_q"
    mx.save_safetensors(
        str(tmp_path / "loras" / "alien.safetensors"), {"encoder.lora_A.weight": mx.zeros((4, 4))}
    )
    mx.save_safetensors(
        str(tmp_path / "loras" / "beyond.safetensors"),
        {
            f"{layer}.lora_A.weight": mx.zeros((4, 192)),
            f"{layer}.lora_B.weight": mx.zeros((192, 4)),
            "transformer.layers.9.attention.to_q.lora_A.weight": mx.zeros((4, 192)),
            "transformer.layers.9.attention.to_q.lora_B.weight": mx.zeros((192, 4)),
        },
    )
    pipeline = load(tmp_path)
    plain = draw(pipeline, steps=1)
    with pytest.raises(ModelCorrupt) as corrupt:
        draw(pipeline, steps=1, loras=(("short", 1.0),))
    assert corrupt.value.metadata["file"] == "loras/short.safetensors"
    for name in ("alien", "beyond"):
        with pytest.raises(UnsupportedParameter, match="does not fit") as caught:
            draw(pipeline, steps=1, loras=(("style", 1.0), (name, 1.0)))
        assert caught.value.metadata["field"] == "loras[1].name"
    assert same(draw(pipeline, steps=1), plain)
