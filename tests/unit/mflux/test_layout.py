"""Which model a directory holds, from its small files and headers. None of it needs mflux."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from headrace.errors import ModelCorrupt, UnsupportedModel
from headrace_runner.models.mflux import layout
from headrace_runner.models.mflux.catalogue import BASES
from headrace_runner.models.mflux.family import MfluxFamily

FAMILY = MfluxFamily()


def write(directory: Path, name: str, value: Any) -> None:
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def weights(directory: Path, name: str, **tensors: np.ndarray[Any, Any]) -> None:
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)


def klein(directory: Path, blocks: int, distilled: bool | None) -> None:
    index = {"_class_name": "Flux2KleinPipeline"}
    write(
        directory,
        "model_index.json",
        index | ({} if distilled is None else {"is_distilled": distilled}),
    )
    write(directory, "transformer/config.json", {"num_layers": blocks})


@pytest.mark.parametrize(
    ("blocks", "distilled", "base"),
    [
        (5, True, "flux2-klein-4b"),
        (8, True, "flux2-klein-9b"),
        (5, False, "flux2-klein-base-4b"),
        (8, None, "flux2-klein-base-9b"),
    ],
)
def test_flux2_klein_as_diffusers_lays_it_out(
    tmp_path: Path, blocks: int, distilled: bool | None, base: str
) -> None:
    klein(tmp_path, blocks, distilled)
    assert FAMILY.knows(tmp_path)
    assert layout.describe(tmp_path).base == base


def test_a_size_that_is_not_known(tmp_path: Path) -> None:
    klein(tmp_path, 7, True)
    with pytest.raises(UnsupportedModel, match="Flux2KleinPipeline"):
        layout.describe(tmp_path)


def test_what_the_files_leave_open_is_asked_for(tmp_path: Path) -> None:
    write(tmp_path, "model_index.json", {"_class_name": "ZImagePipeline"})
    with pytest.raises(UnsupportedModel, match="z-image-turbo or z-image; say so"):
        layout.describe(tmp_path)
    write(tmp_path, "headrace.json", {"mflux": {"base": "z-image"}})
    assert layout.describe(tmp_path).base == "z-image"
    assert FAMILY.traits(tmp_path).negative_prompt


def test_flux1_by_its_guidance(tmp_path: Path) -> None:
    write(tmp_path, "model_index.json", {"_class_name": "FluxPipeline"})
    write(tmp_path, "transformer/config.json", {"guidance_embeds": False})
    assert layout.describe(tmp_path).base == "schnell"
    write(tmp_path, "transformer/config.json", {"guidance_embeds": True})
    with pytest.raises(UnsupportedModel, match="dev or krea-dev"):
        layout.describe(tmp_path)


@pytest.mark.parametrize(
    "said",
    [
        {"model_name": "qwen-image", "base_model": None},
        {"model_name": "someone/their-finetune", "base_model": "qwen-image"},
    ],
)
def test_what_mflux_save_writes(tmp_path: Path, said: dict[str, Any]) -> None:
    write(tmp_path, "mflux_model.json", said)
    assert FAMILY.knows(tmp_path)
    assert layout.describe(tmp_path).base == "qwen-image"


def test_models_that_are_not_served(tmp_path: Path) -> None:
    write(tmp_path, "mflux_model.json", {"model_name": "seedvr2-3b"})
    assert FAMILY.knows(tmp_path)
    with pytest.raises(UnsupportedModel, match="seedvr2-3b") as caught:
        FAMILY.traits(tmp_path)
    assert caught.value.metadata["architecture"] == "seedvr2-3b"


def test_other_directories_are_not_known(tmp_path: Path) -> None:
    assert not FAMILY.knows(tmp_path)
    assert not FAMILY.knows(tmp_path / "nowhere")
    write(tmp_path, "config.json", {"model_type": "llama"})
    write(tmp_path, "headrace.json", {"other": {}})
    write(tmp_path, "model_index.json", {"_class_name": ["StableDiffusionPipeline"]})
    assert not FAMILY.knows(tmp_path)
    (tmp_path / "model_index.json").write_text("[")
    assert not FAMILY.knows(tmp_path)


def test_facts(tmp_path: Path) -> None:
    write(tmp_path, "headrace.json", {"mflux": {"base": "flux2-klein-4b"}})
    (tmp_path / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# A model\n")
    weights(tmp_path, "transformer/0.safetensors", a=np.zeros((4, 64), np.float16))
    weights(tmp_path, "vae/0.safetensors", b=np.zeros(8, np.float32))
    weights(tmp_path, "loras/style.safetensors", c=np.zeros(99, np.float32))
    assert FAMILY.facts(tmp_path) == {
        "format": "mflux",
        "architecture": "flux2-klein",
        "parameters": 4 * 64 + 8,
        "tensor_bytes": 4 * 64 * 2 + 8 * 4,
        "quantization": "float16",
        "license": "apache-2.0",
    }


def test_facts_of_packed_weights(tmp_path: Path) -> None:
    write(tmp_path, "headrace.json", {"mflux": {"base": "flux2-klein-4b"}})
    packed: dict[str, np.ndarray[Any, Any]] = {
        "q.weight": np.zeros((64, 8), np.uint32),
        "q.scales": np.zeros((64, 1), np.float16),
        "q.biases": np.zeros((64, 1), np.float16),
    }
    weights(tmp_path, "transformer/0.safetensors", **packed)
    index = {
        "metadata": {"quantization_level": "4"},
        "weight_map": dict.fromkeys(packed, "0.safetensors"),
    }
    write(tmp_path, "transformer/model.safetensors.index.json", index)
    facts = FAMILY.facts(tmp_path)
    assert facts["parameters"] == 64 * 64
    assert facts["quantization"] == "4-bit g64"
    assert facts["license"] is None


def test_the_files_that_belong_to_a_model(tmp_path: Path) -> None:
    write(tmp_path, "headrace.json", {"mflux": {"base": "flux2-klein-4b"}})
    for name in ("LICENSE.md", "run.py", "teaser.png", "flux2.bin"):
        (tmp_path / name).write_bytes(b"x")
    weights(tmp_path, "transformer/0.safetensors", a=np.zeros(1, np.float16))
    weights(tmp_path, "loras/style.safetensors", a=np.zeros(1, np.float16))
    write(tmp_path, "tokenizer/tokenizer.json", {})
    (tmp_path / "tokenizer" / "tokenizer.py").write_bytes(b"x")
    assert [path.relative_to(tmp_path).as_posix() for path in FAMILY.files(tmp_path)] == [
        "LICENSE.md",
        "headrace.json",
        "loras/style.safetensors",
        "tokenizer/tokenizer.json",
        "transformer/0.safetensors",
    ]


def test_no_weights_at_all(tmp_path: Path) -> None:
    write(tmp_path, "headrace.json", {"mflux": {"base": "flux2-klein-4b"}})
    with pytest.raises(ModelCorrupt, match="no weights"):
        FAMILY.facts(tmp_path)


def test_every_base_has_sound_traits() -> None:
    for base in BASES.values():
        traits = base.traits()
        assert traits.min_size % traits.size_step == traits.max_size % traits.size_step == 0
        assert 1 <= traits.steps <= traits.max_steps
        assert (traits.strength is None) == (traits.max_input_images == 0)
        # A negative prompt is guidance away from it.
        assert traits.guidance is not None or not traits.negative_prompt
        assert traits.max_batch == 1
