"""Models as they lie on the disk: whole, quantised, damaged, and said to be another."""

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from headrace.errors import HeadraceError, ModelCorrupt, UnsupportedModel
from headrace_runner.models.mflux import insides
from headrace_runner.models.mflux.family import MfluxFamily
from headrace_runner.models.safetensors import INDEX
from tests.mflux_models import build_flux2, build_z_image
from tests.unit.mflux.conftest import load
from tests.unit.mflux.watching import draw, same


@pytest.fixture
def copy(z_image_dir: Path, tmp_path: Path) -> Path:
    """Z-Image, to be damaged."""
    return shutil.copytree(z_image_dir, tmp_path / "model")


def test_progress_and_no_network(z_image_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*_: object) -> None:
        raise AssertionError("it reached for the network")

    monkeypatch.setattr(socket.socket, "connect", connect)
    heard: list[float] = []
    pipeline = MfluxFamily().load(z_image_dir, "float32", heard.append)
    assert heard == sorted(heard)
    assert heard[-1] == 1.0
    assert pipeline.weights == "float32"
    facts = MfluxFamily().facts(z_image_dir)
    assert pipeline.weights_bytes == pytest.approx(2 * facts["tensor_bytes"], rel=0.01)


def test_a_lack_of_memory_is_not_the_files_fault(
    z_image_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(**_: object) -> None:
        raise RuntimeError("[malloc] Unable to allocate 123 bytes.")

    resolve = insides.resolve
    monkeypatch.setattr(
        insides, "resolve", lambda name: made if name.endswith(":ZImage") else resolve(name)
    )
    with pytest.raises(RuntimeError, match="Unable to allocate"):
        load(z_image_dir)


def test_loading_can_be_ended(z_image_dir: Path) -> None:
    def stop(_: float) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        MfluxFamily().load(z_image_dir, "float32", stop)


def test_stored_weights_stay_as_they_are(z_image_dir: Path) -> None:
    pipeline = load(z_image_dir, "stored")
    assert pipeline.weights == "bfloat16"
    assert pipeline.weights_bytes == MfluxFamily().facts(z_image_dir)["tensor_bytes"]
    assert draw(pipeline, steps=1).std() > 10


@pytest.mark.parametrize("bits", [4, pytest.param(8, marks=pytest.mark.slow)])
def test_quantised(needs_mflux: None, tmp_path: Path, bits: int) -> None:
    build_z_image(tmp_path, bits=bits, lora=True)
    facts = MfluxFamily().facts(tmp_path)
    assert facts["quantization"] == f"{bits}-bit g64"
    stored, wide = load(tmp_path, "stored"), load(tmp_path)
    assert stored.weights == f"{bits}-bit"
    assert wide.weights == "float32"
    assert stored.weights_bytes < 0.6 * wide.weights_bytes
    image = draw(stored, steps=1)
    assert same(draw(load(tmp_path, "stored"), steps=1), image)
    # The same numbers, multiplied in another order.
    assert abs(draw(wide, steps=1).astype(int) - image).max() <= 2
    assert not same(draw(stored, steps=1, loras=(("style", 1.0),)), image)
    assert same(draw(stored, steps=1), image)


@pytest.mark.slow
def test_quantised_flux2(needs_mflux: None, tmp_path: Path) -> None:
    build_flux2(tmp_path, bits=4)
    image = draw(load(tmp_path, "stored"))
    assert abs(draw(load(tmp_path)).astype(int) - image).max() <= 2
    assert same(draw(load(tmp_path, "stored")), image)


def truncate(model: Path) -> str:
    path = model / "transformer" / "0.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    return "transformer/0.safetensors"


def remove_shard(model: Path) -> str:
    (model / "vae" / "0.safetensors").unlink()
    return "vae/0.safetensors"


def remove_component(model: Path) -> str:
    shutil.rmtree(model / "text_encoder")
    return "text_encoder"


def scribble_on_index(model: Path) -> str:
    (model / "vae" / INDEX).write_text('{"weight_map": 3}')
    return f"vae/{INDEX}"


def scribble_on_description(model: Path) -> str:
    (model / "headrace.json").write_text("{")
    return "headrace.json"


def remove_tokenizer(model: Path) -> str:
    shutil.rmtree(model / "tokenizer")
    return "tokenizer"


def scribble_on_tokenizer(model: Path) -> str:
    (model / "tokenizer" / "tokenizer.json").write_text("{}")
    return "tokenizer"


def drop_a_weight(model: Path) -> str:
    _change_weights(model, lambda weights: weights.pop("layers.1.feed_forward.w2.weight"))
    return "transformer"


def widen_a_weight(model: Path) -> str:
    name = "layers.1.feed_forward.w2.weight"
    _change_weights(model, lambda weights: weights.update({name: mx.zeros((192, 64))}))
    return "transformer"


def _change_weights(model: Path, change: Callable[[dict[str, mx.array]], object]) -> None:
    path = str(model / "transformer" / "0.safetensors")
    loaded: Any = mx.load(path, return_metadata=True)
    weights, metadata = loaded
    mx.eval(weights)
    change(weights)
    mx.save_safetensors(path, weights, metadata)


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        remove_shard,
        remove_component,
        scribble_on_index,
        scribble_on_description,
        remove_tokenizer,
        scribble_on_tokenizer,
        drop_a_weight,
        widen_a_weight,
    ],
)
def test_what_is_damaged_is_named(copy: Path, damage: Callable[[Path], str]) -> None:
    file = damage(copy)
    with pytest.raises(ModelCorrupt) as caught:
        load(copy)
    assert caught.value.metadata["file"] == file


def described(model: Path, **changed: Any) -> None:
    path = model / "headrace.json"
    said = json.loads(path.read_text())["mflux"] | changed
    path.write_text(json.dumps({"mflux": said}))


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"base": "flux2-klein-4b", "shapes": {}}, ModelCorrupt),
        ({"shapes": {}}, ModelCorrupt),
        ({"shapes": {"transformer": {"no_such": 1}}}, ModelCorrupt),
        ({"shapes": {"vae": {}}}, ModelCorrupt),
        ({"shape": {}}, ModelCorrupt),
        ({"references": 1}, ModelCorrupt),
        ({"references": True}, UnsupportedModel),
        ({"base": "dev-fill"}, UnsupportedModel),
        ({"base": None}, UnsupportedModel),
    ],
)
def test_a_description_of_another_model(
    copy: Path, changed: dict[str, Any], error: type[HeadraceError]
) -> None:
    described(copy, **changed)
    with pytest.raises(error):
        load(copy)


def test_pickles_are_not_opened(copy: Path) -> None:
    for path in (copy / "vae").iterdir():
        path.unlink()
    (copy / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"not opened")
    with pytest.raises(UnsupportedModel, match="pickles"):
        load(copy)


def test_after_a_failed_load_the_next_is_whole(copy: Path, z_image_dir: Path) -> None:
    """What was put into mflux for the one is not there for the other."""
    described(copy, shapes={"transformer": {"no_such": 1}})
    with pytest.raises(ModelCorrupt):
        load(copy)
    assert draw(load(z_image_dir), steps=1).shape == (32, 32, 3)
