"""What a directory of the emoji model is taken for, whole and damaged."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from headrace.errors import ModelCorrupt, UnsupportedModel
from headrace_runner.models.emoji.family import FAMILY, SHIPPED


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SHIPPED, tmp_path / "emoji"))


def test_the_model_that_ships_is_known(tmp_path: Path) -> None:
    assert FAMILY.knows(SHIPPED)
    assert not FAMILY.knows(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert not FAMILY.knows(tmp_path)


def test_its_facts_are_those_of_its_files() -> None:
    facts = FAMILY.facts(SHIPPED)
    size = (SHIPPED / "model.safetensors").stat().st_size
    assert 0 < size - facts["tensor_bytes"] < 20_000, "all but the header"
    assert facts["tensor_bytes"] == 2 * facts["parameters"]
    assert size < 16_000_000
    assert facts["quantization"] == "float16"
    assert facts["license"] == "apache-2.0"
    traits = FAMILY.traits(SHIPPED)
    assert (traits.min_size, traits.max_size, traits.size_step) == (64, 64, 64)
    assert traits.steps <= traits.max_steps


def test_its_card_says_under_what_terms_it_may_be_used() -> None:
    card = (SHIPPED / "MODEL_CARD.md").read_text("utf-8")
    for named in ("Apache", "Noto Emoji", "emojilib", "MIT"):
        assert named in card


def test_its_facts_need_no_mlx() -> None:
    code = (
        "import sys; from headrace_runner.models.emoji.family import *; "
        "FAMILY.facts(SHIPPED); FAMILY.traits(SHIPPED); assert 'mlx.core' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "vocabulary.txt"])
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(ModelCorrupt) as raised:
        FAMILY.load(copy, "float32", lambda _: None)
    assert raised.value.metadata["file"] == name


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("config.json", lambda data: data[: len(data) // 2]),
        ("config.json", lambda data: data.replace(b'"patch": 4', b'"patch": "four"')),
        ("config.json", lambda data: data.replace(b'"patch": 4', b'"patch": 0')),
        ("config.json", lambda data: data.replace(b'"patch"', b'"match"')),
        ("vocabulary.txt", lambda data: data + b"another\n"),
        ("vocabulary.txt", lambda data: data + b"\xff"),
        ("model.safetensors", lambda data: data[:-1000]),
        ("model.safetensors", lambda data: data[1000:]),
        ("model.safetensors", lambda data: data.replace(b"spread.weight", b"spread.weighs", 1)),
    ],
)
def test_a_damaged_file_is_named(copy: Path, name: str, damage: object) -> None:
    assert callable(damage)
    path = copy / name
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert path.read_bytes() != whole
    with pytest.raises(ModelCorrupt) as raised:
        FAMILY.load(copy, "float32", lambda _: None)
    assert raised.value.metadata["file"] == name


def test_weights_of_another_shape_do_not_load(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text("utf-8"))
    config["shape"]["embedding"] += 2
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelCorrupt, match="do not fit"):
        FAMILY.load(copy, "float32", lambda _: None)


def test_another_model_is_none_of_its(copy: Path) -> None:
    (copy / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UnsupportedModel):
        FAMILY.facts(copy)


def test_loading_tells_when_it_is_done_and_in_what_type() -> None:
    told: list[float] = []
    pipeline = FAMILY.load(SHIPPED, "stored", told.append)
    assert told[-1] == 1.0
    assert pipeline.weights == "float16"
    assert pipeline.weights_bytes == FAMILY.facts(SHIPPED)["tensor_bytes"]
