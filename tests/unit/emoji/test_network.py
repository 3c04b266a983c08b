"""The network computes what the one that was trained does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from headrace_runner.models.emoji.config import read_config, read_words
from headrace_runner.models.emoji.family import SHIPPED
from headrace_runner.models.emoji.network import Network, to_depth, to_space
from headrace_runner.models.emoji.words import Vocabulary, words

# Written by training/emoji/reference.py, which computes with PyTorch and the same weights.
EXPECTED = json.loads(Path(__file__).with_name("expected.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def network() -> Network:
    network = Network(read_config(SHIPPED).shape)
    network.load_weights(str(SHIPPED / "model.safetensors"))
    network.set_dtype(mx.float32)
    return network


@pytest.mark.parametrize("case", EXPECTED["cases"], ids=lambda case: case["prompt"] or "nothing")
def test_the_network_computes_what_pytorch_does(network: Network, case: dict[str, Any]) -> None:
    config = read_config(SHIPPED)
    listed = read_words(SHIPPED, config)
    vocabulary = Vocabulary({w: i + 1 for i, w in enumerate(listed)}, config.shape.buckets)
    side = config.shape.image
    wave = np.sin(np.arange(side * side * 3) * 0.37).astype(np.float32).reshape(1, side, side, 3)
    text = network.text(words(case["prompt"]), vocabulary)
    clean = network(mx.array(wave), case["t"], text)
    assert clean.shape == (1, side, side, 3)
    found = np.array(clean).flatten()[:: EXPECTED["every"]]
    np.testing.assert_allclose(found, case["values"], atol=1e-4)


def test_half_precision_is_close(network: Network) -> None:
    half = Network(read_config(SHIPPED).shape)
    half.load_weights(str(SHIPPED / "model.safetensors"))
    vocabulary = Vocabulary({}, read_config(SHIPPED).shape.buckets)
    z = mx.random.normal((1, 64, 64, 3), key=mx.random.key(1))
    ours, full = (n(z, 0.5, n.text(("rose",), vocabulary)) for n in (half, network))
    assert ours.dtype == mx.float32
    assert np.abs(np.array(ours - full)).mean() < 0.02


def test_squares_become_channels_in_pytorchs_order() -> None:
    x = mx.arange(2 * 4 * 4 * 3).reshape(2, 4, 4, 3)
    deep = to_depth(x, 2)
    assert deep.shape == (2, 2, 2, 12)
    # Channels first, then rows, then columns of the square.
    assert deep[0, 1, 0].tolist() == [
        x[0, 2 + i, j, c].item() for c in range(3) for i in range(2) for j in range(2)
    ]
    assert mx.array_equal(to_space(deep, 2), x)
