"""Taking over a model directory: what is copied, and what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models import cache as mlx_cache
from mlx_lm.models import llama
from mlx_lm.utils import load_model

from headrace.errors import HeadraceError, InvalidRequest, ModelCorrupt, UnsupportedModel
from headrace_runner.convert.check import check_model, inventory
from headrace_runner.convert.directory import import_directory
from headrace_runner.convert.gguf_import import import_gguf
from headrace_runner.convert.plan import Quantize
from tests.unit.convert.tiny import write_gguf


def silent(phase: str, done: int, total: int) -> None:
    pass


@pytest.fixture(scope="module")
def pristine(tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    import_gguf(tiny_gguf, directory, silent)
    return directory


@pytest.fixture
def model(pristine: Path, tmp_path: Path) -> Path:
    return shutil.copytree(pristine, tmp_path / "model")


def take(model: Path) -> dict[str, Any]:
    output = model.parent / "out"
    output.mkdir()
    facts = import_directory(model, output, silent)
    check_model(output, facts)
    return facts


def test_copies_what_is_needed_and_no_more(model: Path) -> None:
    (model / "optimizer.pt").write_bytes(b"x")
    (model / "modeling_own.py").write_text("raise SystemExit")
    (model / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\nlicense: no\n")
    facts = take(model)
    assert facts["license"] == "apache-2.0"
    assert facts["quantization"] == "4-bit g32"
    assert facts["parameters"] == 81_408
    assert facts["chat_template"]
    copied = {path.name for path in (model.parent / "out").iterdir()}
    assert copied == {path.name for path in model.iterdir()} - {"optimizer.pt", "modeling_own.py"}


def test_links_are_followed(model: Path, tmp_path: Path) -> None:
    blob = tmp_path / "blob"
    (model / "model.safetensors").rename(blob)
    (model / "model.safetensors").symlink_to(blob)
    take(model)
    assert not (tmp_path / "out" / "model.safetensors").is_symlink()


def edit_config(**changes: Any) -> Callable[[Path], None]:
    def edit(model: Path) -> None:
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(config | changes))

    return edit


def cut(name: str, by: int) -> Callable[[Path], None]:
    def edit(model: Path) -> None:
        data = (model / name).read_bytes()
        (model / name).write_bytes(data[:-by])

    return edit


def only_pickles(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")


def lost_shard(model: Path) -> None:
    index = {"weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "error", "file"),
    [
        (lambda model: (model / "config.json").unlink(), InvalidRequest, None),
        (cut("config.json", 30), ModelCorrupt, "config.json"),
        (cut("tokenizer.json", 30), ModelCorrupt, "tokenizer.json"),
        (cut("model.safetensors", 1), ModelCorrupt, "model.safetensors"),
        (cut("model.safetensors", 40_000), ModelCorrupt, "model.safetensors"),
        (lambda model: (model / "model.safetensors").unlink(), ModelCorrupt, "model.safetensors"),
        (lost_shard, ModelCorrupt, "model.safetensors.index.json"),
        (edit_config(model_type="rwkv9"), UnsupportedModel, None),
        (edit_config(model_type="../evil"), UnsupportedModel, None),
        (edit_config(model_file="own.py"), UnsupportedModel, None),
        (edit_config(hidden_size=128), ModelCorrupt, "model.safetensors"),
        (edit_config(num_hidden_layers=3), ModelCorrupt, "model.safetensors"),
        (edit_config(num_attention_heads="many"), UnsupportedModel, None),
        (only_pickles, UnsupportedModel, None),
    ],
)
def test_refused(
    model: Path, damage: Callable[[Path], None], error: type[HeadraceError], file: str | None
) -> None:
    damage(model)
    with pytest.raises(error) as caught:
        take(model)
    assert caught.value.metadata.get("file") == file


def test_a_model_that_cannot_be_batched_is_refused(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache: Any = mlx_cache

    def make_cache(self: Any) -> list[Any]:
        return [cache.CacheList(cache.KVCache(), cache.CacheList(cache.ChunkedKVCache(8)))]

    # A list of caches would pass for one that merges, whatever it holds.
    monkeypatch.setattr(llama.Model, "make_cache", make_cache, raising=False)
    with pytest.raises(UnsupportedModel, match="ChunkedKVCache of mlx-lm, cannot be batched"):
        take(model)


def test_inventory_lists_every_file(model: Path) -> None:
    (model / "config.json").write_bytes(b"abc")
    files = {file["path"]: file for file in inventory(model, silent)}
    assert set(files) == {path.name for path in model.iterdir()}
    assert files["config.json"] == {
        "path": "config.json",
        "size": 3,
        "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    }


@pytest.fixture(scope="module")
def half_precision(
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A model in float16, as Hugging Face has them."""
    folder = tmp_path_factory.mktemp("half")
    write_gguf(folder / "m.gguf", matrices="F16", embedding="F16")
    (folder / "model").mkdir()
    import_gguf(folder / "m.gguf", folder / "model", silent)
    return folder / "model"


@pytest.mark.parametrize(("asked", "bits"), [(Quantize.BITS_4, 4), (Quantize.BITS_8, 8)])
def test_quantised_as_asked(
    half_precision: Path, tmp_path: Path, asked: Quantize, bits: int
) -> None:
    facts = import_directory(half_precision, tmp_path, silent, asked)
    check_model(tmp_path, facts)
    # Rows of 96 elements allow groups of 32 alone.
    assert facts["quantization"] == f"{bits}-bit g32"
    assert facts["parameters"] == 81_408
    model, config = load_model(tmp_path)
    assert config["quantization"]["bits"] == bits
    wanted, _ = load_model(half_precision)
    packed = model.layers[1].mlp.down_proj
    found = mx.dequantize(packed.weight, packed.scales, packed.biases, group_size=32, bits=bits)
    groups = np.array(wanted.layers[1].mlp.down_proj.weight.astype(mx.float32)).reshape(-1, 32)
    steps = (groups.max(axis=1) - groups.min(axis=1)) / (2**bits - 1)
    errors = np.abs(np.array(found.astype(mx.float32)).reshape(-1, 32) - groups)
    assert (errors.max(axis=1) <= steps * 1.1 + 2e-3).all()
    assert errors.max() > 0
    assert not (tmp_path / "model.safetensors.index.json").exists()
    assert (tmp_path / "tokenizer.json").exists()


def test_large_models_are_quantised_into_shards(
    half_precision: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace_runner.convert.shards.write_shards.__defaults__", (20_000,))
    facts = import_directory(half_precision, tmp_path, silent, Quantize.BITS_8)
    check_model(tmp_path, facts)
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 2


@pytest.mark.parametrize("asked", [Quantize.BITS_4, Quantize.NONE])
def test_what_is_quantised_already_is_not_quantised_again(
    pristine: Path, tmp_path: Path, asked: Quantize
) -> None:
    with pytest.raises(InvalidRequest, match="quantised already") as caught:
        import_directory(pristine, tmp_path, silent, asked)
    assert caught.value.violations[0].field == "quantization"


def test_weights_that_do_not_fit_are_not_quantised(half_precision: Path, tmp_path: Path) -> None:
    model = shutil.copytree(half_precision, tmp_path / "model")
    edit_config(num_hidden_layers=3)(model)
    (tmp_path / "out").mkdir()
    with pytest.raises(ModelCorrupt, match="do not fit"):
        import_directory(model, tmp_path / "out", silent, Quantize.BITS_4)
