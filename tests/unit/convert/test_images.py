"""Taking over an image model: what is copied, what a manifest says, and what is refused."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from headrace_runner.convert.__main__ import main
from headrace_runner.models import families
from headrace_server.store.manifest import new_manifest, parse_manifest
from tests.painter import BYTES_PER_PIXEL, MODEL_TYPE, TRAITS, Painter, save_painter


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(families, "FAMILIES", ("tests.painter:FAMILY",))
    return save_painter(tmp_path / "source")


def convert(source: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[dict[str, Any]]]:
    output = source.parent / "output"
    output.mkdir()
    status = main(["--source", str(source), "--output", str(output)])
    return status, [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_manifest_has_all_that_the_model_takes(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, lines = convert(source, capsys)
    assert status == 0
    done = lines[-1]
    manifest = new_manifest(
        "painter", "1", done["facts"], done["files"], source="here", created_at="now"
    )
    assert (manifest.kind, manifest.format, manifest.architecture) == ("image", "mlx", MODEL_TYPE)
    assert (manifest.parameters, manifest.tensor_bytes) == (48, 192)
    assert (manifest.context_length, manifest.layers, manifest.chat_template) == (0, 0, None)
    assert manifest.image is not None
    assert asdict(manifest.image) == {
        **asdict(TRAITS),
        "working_bytes": 32 * 32 * BYTES_PER_PIXEL,
    }
    assert parse_manifest(manifest.to_json()) == manifest
    progress = [line for line in lines if line["event"] == "progress"]
    assert {line["phase"] for line in progress} == {"store", "verify"}


def test_what_the_family_lists_is_copied_and_no_more(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (source / "model.safetensors").rename(source.parent / "blob")
    (source / "model.safetensors").symlink_to(source.parent / "blob")  # As in a hub's cache.
    _, lines = convert(source, capsys)
    names = [file["path"] for file in lines[-1]["files"]]
    assert names == ["config.json", "loras/sepia.safetensors", "model.safetensors"]
    output = source.parent / "output"
    assert not (output / "model.safetensors").is_symlink()
    assert families.adapters(output) == {"sepia"}


def test_a_damaged_file_is_named_before_anything_is_copied(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = source / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    status, lines = convert(source, capsys)
    assert status == 1
    assert (lines[-1]["reason"], lines[-1]["file"]) == ("MODEL_CORRUPT", "model.safetensors")
    assert list((source.parent / "output").iterdir()) == []


def test_one_that_cannot_draw_is_not_published(
    source: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw(self: Painter, drawings: object, watch: object) -> None:
        raise ZeroDivisionError("no picture")

    monkeypatch.setattr(Painter, "draw", draw)
    with pytest.raises(ZeroDivisionError):
        convert(source, capsys)
    assert '"event": "done"' not in capsys.readouterr().out
