"""An encoder against the same arithmetic in NumPy and float64, and a row against its company."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from headrace_runner.models.encoders.architectures import working_bytes
from headrace_runner.models.encoders.encoder import Vectors, load_encoder
from tests.encoders import CONFIG, HIDDEN, reference, save_encoder

ROWS = [[2, 5, 6, 3], [2, 3], [2, *range(4, 20), 3], [9], [2, 7, 7, 7, 8, 3]]


def scaled(vectors: Vectors) -> Vectors:
    found: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return found


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
@pytest.mark.parametrize("model_type", ["bert", "roberta", "xlm-roberta"])
def test_it_gives_what_the_architecture_says(tmp_path: Path, model_type: str, pooling: str) -> None:
    directory = save_encoder(tmp_path, pooling, model_type=model_type, pad_token_id=1)
    seen: list[float] = []
    encoder = load_encoder(directory, "float32", seen.append)
    assert seen[-1] == 1
    found = encoder.embed(ROWS)
    assert found.shape == (len(ROWS), HIDDEN)
    assert found.dtype == np.float32
    for row, vector in zip(ROWS, found, strict=True):
        assert np.abs(vector - reference(directory, row, pooling)).max() < 1e-5


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_a_row_does_not_depend_on_its_company(tmp_path: Path, pooling: str) -> None:
    encoder = load_encoder(save_encoder(tmp_path, pooling), "float32")
    together = scaled(encoder.embed(ROWS))
    for row, vector in zip(ROWS, together, strict=True):
        assert np.abs(scaled(encoder.embed([row]))[0] - vector).max() < 1e-6


def test_a_part_of_a_larger_model_is_known_by_its_names(tmp_path: Path) -> None:
    directory = save_encoder(tmp_path)
    plain = load_encoder(directory, "stored").embed(ROWS)
    stored = mx.load(str(directory / "model.safetensors"))
    assert isinstance(stored, dict)
    named = {f"bert.{name}": tensor for name, tensor in stored.items()}
    mx.save_safetensors(str(directory / "model.safetensors"), named)
    assert (load_encoder(directory, "stored").embed(ROWS) == plain).all()


def test_half_precision_stays_as_it_is_stored_or_becomes_float32(tmp_path: Path) -> None:
    directory = save_encoder(tmp_path)
    stored = mx.load(str(directory / "model.safetensors"))
    assert isinstance(stored, dict)
    halves = {name: tensor.astype(mx.float16) for name, tensor in stored.items()}
    mx.save_safetensors(str(directory / "model.safetensors"), halves)
    kept = load_encoder(directory, "stored")
    wide = load_encoder(directory, "float32")
    assert (kept.weights, wide.weights) == ("float16", "float32")
    assert wide.weights_bytes == 2 * kept.weights_bytes
    assert np.abs(scaled(kept.embed(ROWS)) - scaled(wide.embed(ROWS))).max() < 0.02


def test_a_batch_takes_no_more_memory_than_it_is_said_to(tmp_path: Path) -> None:
    sizes = CONFIG | {"hidden_size": 96, "intermediate_size": 384, "max_position_embeddings": 256}
    encoder = load_encoder(save_encoder(tmp_path, **sizes), "float32")
    for rows, length in ((4, 256), (32, 32), (1, 128)):
        batch = [[2, *[5] * (length - 1)], *[[2, *[5] * (length - 2)]] * (rows - 1)]
        mx.clear_cache()
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        encoder.embed(batch)
        assert mx.get_peak_memory() - before <= working_bytes(encoder.shape, rows, length)
