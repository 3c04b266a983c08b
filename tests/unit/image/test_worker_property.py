"""Whatever comes and goes, each request ends once, and what is drawn together is alike."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import InsufficientMemory, InternalError
from headrace_runner.engine.image.request import Drawn, Finished, Progress, Started
from headrace_runner.engine.stream import Failed
from headrace_runner.models.pipeline import Drawing
from tests.examples import examples
from tests.painter import BYTES_PER_PIXEL
from tests.unit.image.workers import PLENTY, Desk, request

FAULTY = "faulty"
ONE = 16 * 16 * BYTES_PER_PIXEL


@dataclass(frozen=True)
class Submit:
    count: int
    priority: int
    width: int
    steps: int
    prompt: str
    every: int | None


@dataclass(frozen=True)
class Cancel:
    which: int


@dataclass(frozen=True)
class Memory:
    free: int


submits = st.builds(
    Submit,
    count=st.integers(1, 6),
    priority=st.integers(-1, 1),
    width=st.sampled_from([16, 32]),
    steps=st.sampled_from([1, 2]),
    prompt=st.sampled_from(["a", "b", FAULTY]),
    every=st.sampled_from([None, 1]),
)
cancels = st.builds(Cancel, which=st.integers(0, 20))
memory = st.builds(Memory, free=st.sampled_from([ONE, 3 * ONE, PLENTY]))
happenings = st.lists(st.one_of(submits, submits, cancels, memory), max_size=14)


@dataclass
class World:
    """A desk, and what comes about at it: one thing each time that the worker looks up."""

    to_come: list[Submit | Cancel | Memory]
    desk: Desk = field(default_factory=Desk)
    asked: dict[int, Submit] = field(default_factory=dict)
    cancelled: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.desk.between = self.happen
        self.desk.pipeline.fault = _fault

    def happen(self) -> None:
        if not self.to_come:
            return
        match self.to_come.pop(0):
            case Submit() as wanted:
                uid = len(self.asked)
                self.asked[uid] = wanted
                self.desk.worker.take(
                    uid,
                    request(
                        wanted.count,
                        wanted.priority,
                        wanted.every,
                        prompt=wanted.prompt,
                        seed=100 * uid,
                        width=wanted.width,
                        height=16,
                        steps=wanted.steps,
                    ),
                )
            case Cancel(which) if self.asked:
                uid = which % len(self.asked)
                if not self.desk.ended(uid):
                    self.cancelled.add(uid)
                self.desk.worker.drop({uid})
            case Memory(free):
                self.desk.free = free

    def turn(self) -> None:
        worker, pipeline = self.desk.worker, self.desk.pipeline
        before = len(pipeline.batches)
        worker.admit()
        # Whose turn it is does not depend on what comes while it draws.
        waiting = [uid for uid, _, _ in worker._line.waiting()]
        worker.step()
        for batch in pipeline.batches[before:]:
            leader = batch[0].seed // 100
            rank = (-self.asked[leader].priority, leader)
            assert all(rank <= (-self.asked[uid].priority, uid) for uid in waiting)


def _fault(batch: list[Drawing] | tuple[Drawing, ...] | object) -> Exception | None:
    assert isinstance(batch, list)
    bad = any(drawing.prompt == FAULTY for drawing in batch)
    return ZeroDivisionError("a bug") if bad else None


@settings(max_examples=examples(60), deadline=None)
@given(happenings)
def test_each_request_ends_once_and_batches_never_mix(
    to_come: list[Submit | Cancel | Memory],
) -> None:
    world = World(to_come)
    desk = world.desk
    while world.to_come or desk.worker.busy:
        if not desk.worker.busy:
            world.happen()
        world.turn()
    for batch in desk.pipeline.batches:
        assert 1 <= len(batch) <= 4
        assert len({(d.width, d.height, d.steps) for d in batch}) == 1
    for uid, wanted in world.asked.items():
        drawn = [event.index for event in desk.of(uid, Drawn)]
        assert len(set(drawn)) == len(drawn)
        assert len(desk.of(uid, Started)) <= 1
        if uid in world.cancelled:
            assert not desk.ended(uid)
        elif failed := desk.of(uid, Failed):
            # One message at most follows from each, and none where the fault is another's.
            (only,) = failed
            short = isinstance(only.error, InsufficientMemory)
            assert short or (isinstance(only.error, InternalError) and wanted.prompt == FAULTY)
        else:
            assert wanted.prompt != FAULTY
            assert sorted(drawn) == list(range(wanted.count))
            assert len(desk.of(uid, Finished)) == len(desk.of(uid, Started)) == 1
        _never_backwards(desk, uid, drawn)
    assert desk.worker.rows == 0
    assert desk.worker._tasks == {}
    assert list(desk.worker._line.waiting()) == []


def _never_backwards(desk: Desk, uid: int, drawn: list[int]) -> None:
    """An image that is ready is not drawn again."""
    ready: set[int] = set()
    for event in desk.events[uid]:
        if isinstance(event, Drawn):
            ready.add(event.index)
        elif isinstance(event, Progress) and event.phase is not None:
            assert event.index not in ready
    assert ready == set(drawn)
