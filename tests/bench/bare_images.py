"""The pipeline's own loop: what a machine draws without a server. A child of the bench, run by its
path.

Reads from stdin, line by line, `{"prompts": [text], "seed": number}`; draws all of them, as many at
once as the model does, and nothing else; answers with one line of JSON: the seconds that it took.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import mlx.core as mx

from headrace_runner.models import families
from headrace_runner.models.pipeline import Drawing, Unwatched


def main() -> None:
    """Answers until stdin ends."""
    directory = Path(sys.argv[1])
    family = families.find(directory)
    if family is None:
        sys.exit(f"{directory} is no image model")
    pipeline = family.load(directory, "float32", lambda _: None)
    traits = pipeline.traits
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        begin = time.perf_counter()
        drawings = [
            Drawing(
                prompt=prompt,
                seed=request["seed"] + number,
                width=traits.width,
                height=traits.height,
                steps=traits.steps,
                guidance=traits.guidance,
            )
            for number, prompt in enumerate(request["prompts"])
        ]
        for at in range(0, len(drawings), traits.max_batch):
            pipeline.draw(drawings[at : at + traits.max_batch], Unwatched())
        print(json.dumps({"seconds": time.perf_counter() - begin}), flush=True)
    mx.clear_streams()


if __name__ == "__main__":
    main()
