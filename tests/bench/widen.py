"""Writes a model directory with float32 weights, for the peers that load what is stored.

A child of the bench, run by its path: MODEL_DIR OUTPUT_DIR. The weights are those that a Headrace
runner makes of the same directory.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from mlx_lm.utils import load_tokenizer, save

from headrace_runner.models.load import load


def main() -> None:
    """Writes the directory."""
    source, output = map(Path, sys.argv[1:])
    config = json.loads((source / "config.json").read_text())
    for name in ("quantization", "quantization_config"):
        config.pop(name, None)
    model = load(source, "float32", lambda _: None).model
    tokenizer = load_tokenizer(source)  # type: ignore[no-untyped-call]
    save(output, source, model, tokenizer, {**config, "torch_dtype": "float32"})


if __name__ == "__main__":
    main()
