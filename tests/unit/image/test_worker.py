"""The worker for images: what is alike is drawn together, and each request ends once."""

from __future__ import annotations

from itertools import count
from typing import Any

import numpy as np
import pytest

from headrace.errors import (
    InsufficientMemory,
    InternalError,
    ModelCorrupt,
    UnsupportedParameter,
)
from headrace_runner.engine.image.batch import Batch
from headrace_runner.engine.image.pace import Pace
from headrace_runner.engine.image.request import (
    Drawn,
    Finished,
    Preview,
    Progress,
    Started,
)
from headrace_runner.engine.stream import Failed
from headrace_runner.models.pipeline import Drawing, Phase, Pixels, Unwatched
from tests.painter import BYTES_PER_PIXEL, Painter, painter
from tests.unit.image.workers import Desk, drawing, request

NO_MEMORY = "[malloc] Unable to allocate 123 bytes."


def alone(wanted: Drawing) -> Pixels:
    return painter().draw([wanted], Unwatched())[0]


def test_a_request_has_its_events_in_order() -> None:
    desk = Desk()
    desk.worker.take(1, request())
    desk.run()
    queued, started, *between, drawn, finished = desk.events[1]
    assert queued == Progress(None, position=0)
    assert isinstance(started, Started)
    assert isinstance(drawn, Drawn)
    assert isinstance(finished, Finished)
    steps = [(e.phase, e.step, e.total) for e in between if isinstance(e, Progress)]
    assert steps == [
        (Phase.ENCODING, 0, 1),
        (Phase.ENCODING, 1, 1),
        *((Phase.DENOISING, step, 4) for step in range(5)),
        (Phase.DECODING, 0, 1),
        (Phase.DECODING, 1, 1),
    ]
    assert (drawn.pixels == alone(drawing())).all()
    assert [part.phase for part in drawn.parts] == list(Phase)
    assert all(part.began <= part.ended for part in drawn.parts)
    assert not desk.worker.busy


def test_steps_that_follow_one_another_fast_are_not_all_told() -> None:
    desk = Desk(telling=3600.0)
    desk.worker.take(1, request(every=1))
    desk.run()
    told = [(event.phase, event.step) for event in desk.of(1, Progress) if event.phase]
    assert told == [
        (phase, step) for phase in Phase for step in (0, 4 if phase is Phase.DENOISING else 1)
    ]
    assert [event.step for event in desk.of(1, Preview)] == [1, 2, 3]


def test_a_step_is_told_once_it_is_time() -> None:
    batch = Batch(1, (), Pace())
    batch.begin(Phase.ENCODING, 5, now=0)
    told = []
    for done, milliseconds in enumerate((20, 50, 90, 101, 102), start=1):
        batch.advance(done, milliseconds * 1_000_000)
        told.append(batch.is_to_tell(0.05))
    assert told == [False, True, False, True, True]


def test_the_steps_that_an_input_image_saves_are_not_counted() -> None:
    desk = Desk()
    image = np.zeros((32, 32, 3), np.uint8)
    desk.worker.take(1, request(input_images=(image,), strength=0.75))
    desk.run()
    totals = {e.total for e in desk.of(1, Progress) if e.phase is Phase.DENOISING}
    assert totals == {1}


def test_images_of_several_requests_share_a_batch() -> None:
    desk = Desk()
    desk.worker.take(1, request(3, prompt="a"))
    desk.worker.take(2, request(1, prompt="other size", width=64))
    desk.worker.take(3, request(3, prompt="b", seed=7))
    desk.run()
    prompts = [[each.prompt for each in batch] for batch in desk.pipeline.batches]
    assert prompts == [["a", "a", "a", "b"], ["other size"], ["b", "b"]]
    for uid, prompt, seeds in ((1, "a", (1, 2, 3)), (3, "b", (7, 8, 9))):
        drawn = desk.of(uid, Drawn)
        assert [event.index for event in drawn] == [0, 1, 2]
        for event, seed in zip(drawn, seeds, strict=True):
            assert (event.pixels == alone(drawing(prompt, seed))).all()
    assert [event.together for event in desk.of(3, Drawn)] == [4, 2, 2]


@pytest.mark.parametrize(
    "other",
    [
        {"width": 48},
        {"height": 48},
        {"steps": 5},
        {"guidance": 3.0},
        {"negative_prompt": "thorns"},
        {"input_images": (np.zeros((32, 32, 3), np.uint8),), "strength": 0.5},
        {"loras": (("sepia", 0.5),)},
    ],
)
def test_what_is_not_alike_is_not_drawn_together(other: dict[str, Any]) -> None:
    desk = Desk()
    desk.worker.take(1, request())
    desk.worker.take(2, request(**other))
    desk.run()
    assert [len(batch) for batch in desk.pipeline.batches] == [1, 1]


def test_the_more_urgent_go_first_and_equals_in_their_order() -> None:
    desk = Desk(painter())
    for uid, priority in enumerate((0, 5, -5, 5, 0)):
        desk.worker.take(uid, request(priority=priority, prompt=str(uid), width=16 * (uid + 1)))
    desk.run()
    assert [batch[0].prompt for batch in desk.pipeline.batches] == ["1", "3", "0", "4", "2"]


def test_a_position_in_line_is_told_when_it_changes() -> None:
    desk = Desk()
    sizes = count(16, 16)
    for uid in (1, 2, 3):
        desk.worker.take(uid, request(width=next(sizes)))
    desk.worker.take(4, request(width=next(sizes), priority=1))
    desk.worker.drop({2})
    desk.run()
    positions = {
        uid: [e.position for e in desk.of(uid, Progress) if e.phase is None] for uid in (1, 3, 4)
    }
    assert positions == {1: [0, 1, 0], 3: [2, 3, 2, 1, 0], 4: [0]}


def test_the_time_that_is_left_is_learnt() -> None:
    desk = Desk()
    desk.worker.take(1, request(steps=8))
    desk.turn()
    assert desk.of(1, Progress)[0].due is None, "nothing was ever measured"
    for uid in (2, 3):
        desk.worker.take(uid, request(steps=8, width=64 * uid))
    first, second = (desk.of(uid, Progress)[0].due for uid in (2, 3))
    assert first is not None
    assert second is not None
    assert first < second
    # Twice and three times as large, one after the other.
    waits = desk.worker._waits()
    assert waits[2] is not None
    assert waits[3] is not None
    assert waits[3] / waits[2] == pytest.approx(2.5, rel=0.2)
    desk.turn()
    dues = [e.due for e in desk.of(2, Progress) if e.phase is Phase.DENOISING]
    assert all(due is not None for due in dues)


def test_previews_come_as_often_as_asked_and_not_of_the_last_step() -> None:
    desk = Desk()
    desk.worker.take(1, request(2, every=2, steps=6))
    desk.worker.take(2, request(1, every=3, steps=6))
    desk.worker.take(3, request(1, steps=6))
    desk.run()
    assert [(e.index, e.step) for e in desk.of(1, Preview)] == [(0, 2), (1, 2), (0, 4), (1, 4)]
    assert [(e.index, e.step) for e in desk.of(2, Preview)] == [(0, 3)]
    assert desk.of(3, Preview) == []
    first, *_, last = desk.of(1, Preview)
    final = desk.of(1, Drawn)[1].pixels.astype(int)
    far, near = (np.abs(e.pixels.astype(int) - final).mean() for e in (first, last))
    assert near < far


@pytest.mark.parametrize("phase", list(Phase))
def test_who_gives_up_is_rid_of_it_at_the_next_phase_or_step(phase: Phase) -> None:
    desk = Desk()

    def at(now: Phase, done: int) -> None:
        if now is phase and done == 1:
            desk.worker.drop({1})

    desk.pipeline.at = at
    desk.worker.take(1, request(steps=50))
    desk.turn()
    assert not desk.worker.busy
    assert desk.of(1, Drawn) == []
    last = desk.of(1, Progress)[-1]
    assert (last.phase, last.step) == (phase, 0)
    desk.pipeline.at = lambda phase, done: None
    desk.worker.take(2, request())
    desk.run()
    assert (desk.of(2, Drawn)[0].pixels == alone(drawing())).all()


def test_the_others_of_a_batch_get_theirs_when_one_gives_up() -> None:
    desk = Desk()
    desk.pipeline.at = lambda phase, done: desk.worker.drop({2}) if done == 2 else None
    desk.worker.take(1, request(2))
    desk.worker.take(2, request(2, every=1))
    desk.run()
    assert [event.index for event in desk.of(1, Drawn)] == [0, 1]
    assert desk.of(2, Drawn) == []
    assert max(event.step for event in desk.of(2, Preview)) == 1
    assert len(desk.pipeline.batches) == 1
    assert desk.pipeline.wanted == [True, True, False, False]


def test_it_stops_in_the_midst_of_a_batch() -> None:
    desk = Desk()

    def at(phase: Phase, done: int) -> None:
        desk.going = done < 2

    desk.pipeline.at = at
    desk.worker.take(1, request(steps=50))
    desk.turn()
    assert desk.of(1, Progress)[-1].step == 1


def test_what_comes_while_it_draws_is_in_the_next_batch() -> None:
    desk = Desk()

    def at(phase: Phase, done: int) -> None:
        if phase is Phase.ENCODING and done and not desk.events[2]:
            desk.worker.take(2, request())

    desk.pipeline.at = at
    desk.worker.take(1, request())
    desk.run()
    assert [len(batch) for batch in desk.pipeline.batches] == [1, 1]
    assert desk.ended(2)


def fails_for(pipeline: Painter, prompt: str, error: Exception) -> None:
    pipeline.fault = lambda batch: error if any(d.prompt == prompt for d in batch) else None


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ZeroDivisionError("a bug"), InternalError),
        (RuntimeError(NO_MEMORY), InsufficientMemory),
        (MemoryError(), InsufficientMemory),
        (UnsupportedParameter("unknown", field="loras[0].name"), UnsupportedParameter),
    ],
)
def test_a_fault_of_one_request_is_that_requests_alone(
    error: Exception, told: type[Exception]
) -> None:
    desk = Desk()
    fails_for(desk.pipeline, "bad", error)
    desk.worker.take(1, request(2, prompt="good"))
    desk.worker.take(2, request(2, prompt="bad"))
    desk.run()
    assert [event.index for event in desk.of(1, Drawn)] == [0, 1]
    assert len(desk.of(1, Started)) == 1
    (failed,) = desk.of(2, Failed)
    assert isinstance(failed.error, told)
    assert desk.of(2, Drawn) == []
    # Together, then each alone, and the second of those that failed not at all.
    assert [len(batch) for batch in desk.pipeline.batches] == [4, 1, 1, 1]
    for event, seed in zip(desk.of(1, Drawn), (1, 2), strict=True):
        assert (event.pixels == alone(drawing("good", seed))).all()


def test_a_size_of_which_nobody_can_tell_what_it_takes_is_that_requests_alone() -> None:
    desk, told = Desk(), Desk().working

    def working(width: int, height: int, images: int, inputs: int) -> int:
        if width == 48:
            raise ModelCorrupt(file="model.safetensors")
        return told(width, height, images, inputs)

    desk.working = working
    desk.worker.take(1, request(2, width=48))
    desk.worker.take(2, request())
    desk.run()
    assert isinstance(desk.of(1, Failed)[0].error, ModelCorrupt)
    assert desk.of(2, Drawn)


def test_an_error_that_waits_for_its_reader_holds_nothing_of_the_model() -> None:
    desk = Desk()
    error = UnsupportedParameter("unknown", field="loras[0].name")
    error.__cause__ = error.__context__ = ZeroDivisionError()
    fails_for(desk.pipeline, "bad", error)
    desk.worker.take(1, request(prompt="bad"))
    desk.run()
    held: list[object] = [error.__traceback__, error.__cause__, error.__context__]
    assert held == [None] * 3


def test_an_image_that_is_drawn_anew_does_not_go_back_for_its_reader() -> None:
    desk = Desk()
    fails_for(desk.pipeline, "bad", ZeroDivisionError("a bug"))
    desk.worker.take(1, request(prompt="good", every=1))
    desk.worker.take(2, request(prompt="bad"))
    desk.run()
    assert len(desk.pipeline.batches) == 3
    told = [(list(Phase).index(e.phase), e.step) for e in desk.of(1, Progress) if e.phase]
    assert told == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (1, 3), (1, 4), (2, 0), (2, 1)]
    assert [event.step for event in desk.of(1, Preview)] == [1, 2, 3]


@pytest.mark.parametrize("images", [[], [np.zeros((32, 16, 3), np.uint8)]])
def test_a_pipeline_that_gives_other_images_has_failed(
    images: list[Pixels], monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk()
    monkeypatch.setattr(desk.pipeline, "draw", lambda drawings, watch: images)
    desk.worker.take(1, request())
    desk.run()
    assert isinstance(desk.of(1, Failed)[0].error, InternalError)


def test_a_batch_is_only_as_large_as_there_is_memory_for() -> None:
    desk = Desk()
    desk.free = 2 * 32 * 32 * BYTES_PER_PIXEL + 5
    desk.worker.take(1, request(5))
    desk.run()
    assert [len(batch) for batch in desk.pipeline.batches] == [2, 2, 1]


def test_where_there_is_no_memory_for_one_it_is_said_what_there_is_memory_for() -> None:
    desk = Desk()
    desk.free = 64 * 64 * BYTES_PER_PIXEL
    desk.worker.take(1, request(width=256, height=128))
    desk.worker.take(2, request())
    desk.run()
    error = desk.of(1, Failed)[0].error
    assert isinstance(error, InsufficientMemory)
    assert error.metadata == {"needs": "3276800", "free": "409600"}
    # 80 x 40 would fit, but the height is in steps of 16 too: 80 x 32.
    assert "ask for 80x32 or smaller" in error.message
    assert desk.of(2, Drawn), "those behind it go on"


def test_no_more_are_drawn_together_than_the_operator_allows() -> None:
    desk = Desk(max_batch=3)
    desk.worker.take(1, request(7))
    desk.run()
    assert [len(batch) for batch in desk.pipeline.batches] == [3, 3, 1]


def test_what_it_has_done_is_counted() -> None:
    desk = Desk()
    desk.worker.take(1, request(2))
    desk.run()
    stats = desk.worker.stats
    assert sum(stats.step_seconds.counts) == 4
    assert (sum(stats.step_rows.counts), stats.step_rows.sum) == (4, 8)
    assert stats.weights_bytes == desk.pipeline.weights_bytes
