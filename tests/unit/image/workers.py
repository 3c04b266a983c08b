"""A worker without an engine: what it sends is kept, and a test has its say between its steps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from headrace_runner.engine.image.memory import WorkingBytes
from headrace_runner.engine.image.request import Event, Finished, ImageRequest
from headrace_runner.engine.image.worker import ImageWorker, Limits
from headrace_runner.engine.stream import Failed
from headrace_runner.models.pipeline import Drawing
from tests.painter import BYTES_PER_PIXEL, Painter, painter

PLENTY = 1 << 40


class Desk:
    """The worker's surroundings."""

    def __init__(
        self, pipeline: Painter | None = None, max_batch: int = 64, telling: float = 0.0
    ) -> None:
        self.events: dict[int, list[Event]] = defaultdict(list)
        self.pipeline = pipeline or painter()
        self.free = PLENTY
        self.going = True
        self.between: Callable[[], None] = lambda: None
        """What comes about while the worker looks up."""
        self.working: WorkingBytes = lambda w, h, n, _: BYTES_PER_PIXEL * w * h * n
        limits = Limits(max_batch, self._working, lambda: self.free, telling)
        self.worker = ImageWorker(self.pipeline, limits, self._deliver, self._look_up, lambda: None)
        self.pipeline.batches.clear()

    def _working(self, width: int, height: int, images: int, inputs: int) -> int:
        return self.working(width, height, images, inputs)

    def _deliver(self, batch: list[tuple[int, list[Event]]]) -> None:
        for uid, events in batch:
            assert events
            for event in events:
                assert not self.ended(uid), "nothing comes after the end"
                self.events[uid].append(event)

    def _look_up(self, worker: ImageWorker) -> bool:
        self.between()
        return self.going

    def ended(self, uid: int) -> bool:
        seen = self.events[uid]
        return bool(seen) and isinstance(seen[-1], Finished | Failed)

    def of(self, uid: int, kind: type[Any]) -> list[Any]:
        return [event for event in self.events[uid] if isinstance(event, kind)]

    def turn(self) -> None:
        """One batch, if there is one."""
        self.worker.admit()
        self.worker.step()

    def run(self) -> None:
        while self.worker.busy:
            self.turn()


def drawing(prompt: str = "a rose", seed: int = 1, **fields: Any) -> Drawing:
    given = {"width": 32, "height": 32, "steps": 4, "guidance": 2.0} | fields
    return Drawing(prompt, seed, **given)


def request(
    count: int = 1, priority: int = 0, every: int | None = None, **fields: Any
) -> ImageRequest:
    seed = fields.pop("seed", 1)
    drawings = tuple(drawing(seed=seed + i, **fields) for i in range(count))
    return ImageRequest(fields.get("prompt", "r"), drawings, priority, every)
