"""The record of images: whatever runners die at, the client gets the undisturbed files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.v1.image_pb2 import (
    IMAGE_PHASE_DECODING,
    IMAGE_PHASE_DENOISING,
    IMAGE_PHASE_ENCODING,
    IMAGE_PHASE_LOADING,
    IMAGE_PHASE_QUEUED,
    ImageChunk,
    ImageStarted,
    PreviewOptions,
    StreamImageRequest,
    StreamImageResponse,
)
from headrace_server.relay.images import ImageRecord
from headrace_server.relay.record import MAX_DEATHS, DivergedError, End, OutOfStepError, duration
from headrace_server.scheduling.ticket import Wait
from tests.unit.relay.painter import CHOSEN, STEPS, drawn, png


@dataclass
class View:
    """What a client has."""

    kinds: list[str] = field(default_factory=list)
    started: ImageStarted = field(default_factory=ImageStarted)
    last: StreamImageResponse = field(default_factory=StreamImageResponse)
    files: dict[int, bytes] = field(default_factory=lambda: defaultdict(bytes))
    places: dict[int, tuple[int, int]] = field(default_factory=dict)
    previews: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))

    def take(self, data: bytes) -> None:
        message = self.last = StreamImageResponse.FromString(data)
        kind = message.WhichOneof("event") or ""
        self.kinds.append(kind)
        match kind:
            case "started":
                self.started = message.started
            case "progress":
                told = message.progress
                place = (told.phase, told.step)
                assert place >= self.places.get(told.index, (0, 0)), "it goes back"
                self.places[told.index] = place
            case "preview":
                self.previews[message.preview.index].append(message.preview.step)
            case "chunk":
                chunk = message.chunk
                assert chunk.offset == len(self.files[chunk.index])
                assert chunk.data
                self.files[chunk.index] += chunk.data


class Play:
    """A stream whose runners are lost wherever it may happen."""

    def __init__(self, data: st.DataObject) -> None:
        self._data = data
        self.count = data.draw(st.integers(1, 4))
        self.request = StreamImageRequest(model="m", prompt="p", count=self.count)
        self.seed = CHOSEN
        if data.draw(st.booleans()):
            self.request.seed = self.seed = 7
        if data.draw(st.booleans()):
            self.request.preview.CopyFrom(PreviewOptions(every_steps=1))
        self.now = 0.0
        self.record = ImageRecord(self.request.SerializeToString(), self.now)
        self.view = View()
        self.asked: list[StreamImageRequest] = []

    def pass_time(self) -> float:
        took = self._data.draw(st.sampled_from((0.0, 0.5, 2.0)))
        self.now += took
        return took

    def attempt(self, *, whole: bool) -> bool:
        """One runner, up to some message of its; gives whether the stream has advanced."""
        record, draw = self.record, self._data.draw
        record.waited(self.pass_time(), self.pass_time())
        asked = StreamImageRequest.FromString(record.ask(self.now))
        self.asked.append(asked)
        piece, batch = draw(st.sampled_from((97, 200, 4096))), draw(st.integers(1, 4))
        messages = [*drawn(asked, piece=piece, batch=batch)]
        reached = len(messages) if whole else draw(st.integers(0, len(messages) - 1))
        self.pass_time()
        advanced = False
        for message in messages[:reached]:
            places = dict(self.view.places)
            passed = record.take(message.SerializeToString(), self.now)
            if passed is not None:
                self.view.take(passed)
                last = self.view.last
                stepped = last.progress.step > 0 and self.view.places != places
                advanced |= stepped or last.HasField("chunk")
            assert record.advanced is advanced
        self.pass_time()
        return advanced

    def check(self, moves: int) -> None:
        """Holds what the client has against the undisturbed files."""
        view = self.view
        assert [k for k in view.kinds if k in ("started", "completed")] == ["started", "completed"]
        assert view.kinds[-1] == "completed"
        assert view.started.seed == self.seed
        seeds = [(self.seed + index) % 2**63 for index in range(self.count)]
        assert dict(view.files) == {index: png(seed) for index, seed in enumerate(seeds)}
        completed = view.last.completed
        assert [(r.index, r.seed) for r in completed.images] == [*enumerate(seeds)]
        (undisturbed,) = [m.completed for m in drawn(self.request) if m.HasField("completed")]
        assert list(completed.images) == list(undisturbed.images)
        assert completed.resumed == moves
        assert self.record.output().charge == self.count * STEPS  # Of 16 by 16 pixels: once.
        for steps in view.previews.values():
            assert steps == [*range(1, STEPS + 1)]
        times = completed.timings
        parts = (times.queue, times.load, times.prefill, times.decode)
        assert sum(part.ToNanoseconds() for part in parts) <= times.total.ToNanoseconds() + 10


@given(st.data())
def test_the_client_gets_the_undisturbed_files(data: st.DataObject) -> None:
    play = Play(data)
    moves = data.draw(st.integers(0, 4))
    in_place = 0
    for _ in range(moves):
        if play.attempt(whole=False):
            in_place = 0
        end = data.draw(st.sampled_from(End))
        in_place += end is End.DIED
        another = play.record.lost(play.now, end)
        assert another is (in_place < MAX_DEATHS)
        if not another:
            sent = sum(map(len, play.view.files.values()))
            crashed = play.record.crashed("it died", "SIGNAL")
            assert crashed.metadata.get("bytes_sent") == (str(sent) if sent else None)
            return
    play.attempt(whole=True)
    assert play.record.images_sent == play.count
    play.check(moves)


def died_at(record: ImageRecord, messages: list[StreamImageResponse]) -> None:
    """A runner says so much and is gone."""
    record.ask(0.0)
    assert len([*taken(record, messages)]) == len(messages)
    assert record.lost(1.0, End.DIED)


def taken(record: ImageRecord, messages: Iterable[StreamImageResponse]) -> Iterator[bytes | None]:
    """What passes of a runner's messages."""
    for message in messages:
        yield record.take(message.SerializeToString(), 2.0)


REQUEST = StreamImageRequest(model="m", prompt="p", count=3, seed=40)


def test_only_what_is_left_is_asked_for() -> None:
    record = ImageRecord(REQUEST.SerializeToString(), 0.0)
    messages = [*drawn(REQUEST)]
    second = next(i for i, m in enumerate(messages) if m.chunk.index == 1)
    died_at(record, messages[: second + 1])
    assert record.counts == {"images": 1, "image_bytes": len(png(40)) + 200}
    again = StreamImageRequest.FromString(record.ask(2.0))
    assert (again.count, again.seed, again.request_id) == (2, 41, "made")
    assert (again.width, again.height, again.steps) == (16, 16, STEPS)
    told = StreamImageResponse.FromString(record.waiting(Wait(3, None))).progress
    assert (told.phase, told.index, told.queue_position) == (IMAGE_PHASE_QUEUED, 1, 3)
    told = StreamImageResponse.FromString(record.waiting(Wait(0, 0.5))).progress
    assert (told.phase, told.load_fraction) == (IMAGE_PHASE_LOADING, 0.5)


@pytest.mark.parametrize(
    ("phase", "step", "steps"),
    [
        (IMAGE_PHASE_ENCODING, 1, 0),
        (IMAGE_PHASE_DENOISING, 2, 2),
        (IMAGE_PHASE_DECODING, 0, STEPS),
    ],
)
def test_what_was_drawn_is_charged_for_whole_or_not(phase: int, step: int, steps: int) -> None:
    record = ImageRecord(REQUEST.SerializeToString(), 0.0)
    record.ask(0.0)
    assert record.output().charge == 0
    messages = [*drawn(REQUEST)]
    places: list[tuple[int, int, int]] = [
        (m.progress.index, m.progress.phase, m.progress.step) for m in messages
    ]
    reached = messages[: places.index((1, phase, step)) + 1]
    assert len([*taken(record, reached)]) == len(reached)
    assert record.images_sent == 1
    assert record.output().charge == STEPS + steps


def test_what_was_not_started_is_asked_for_as_it_came() -> None:
    data = REQUEST.SerializeToString()
    record = ImageRecord(data, 0.0)
    assert record.ask(0.0) == data
    assert record.lost(1.0, End.DIED)
    assert record.ask(1.0) == data
    assert record.crashed("it died", "SIGNAL").metadata == {"cause": "SIGNAL"}


def test_one_that_draws_otherwise_is_not_glued_on() -> None:
    request = StreamImageRequest(model="m", prompt="p", seed=1)
    other = [*drawn(StreamImageRequest(model="m", prompt="p", seed=2))]
    messages = [*drawn(request)]
    chunk = next(i for i, m in enumerate(messages) if m.HasField("chunk"))
    for sent in (chunk + 1, len(messages) - 1):
        record = ImageRecord(request.SerializeToString(), 0.0)
        died_at(record, messages[:sent])
        record.ask(2.0)
        passed: list[bytes | None] = []
        with pytest.raises(DivergedError, match="image 0 otherwise"):
            passed.extend(taken(record, [messages[0], *other[1:]]))
        events = {
            StreamImageResponse.FromString(data).WhichOneof("event") for data in passed if data
        }
        assert events <= {"progress"}


def test_a_file_that_is_shorter_the_second_time_is_another() -> None:
    request = StreamImageRequest(model="m", prompt="p", seed=1)
    record, messages = ImageRecord(request.SerializeToString(), 0.0), [*drawn(request)]
    died_at(record, messages[:-1])
    record.ask(2.0)
    with pytest.raises(DivergedError, match="shorter"):
        [*taken(record, [*messages[:-2], messages[-1]])]


def test_a_runner_is_not_believed_that_leaves_bytes_out_or_images_or_says_another_sum() -> None:
    request = StreamImageRequest(model="m", prompt="p", count=2, seed=1)
    messages = [*drawn(request)]
    chunks = [i for i, m in enumerate(messages) if m.HasField("chunk")]
    wrong = StreamImageResponse.FromString(messages[-1].SerializeToString())
    wrong.completed.images[1].sha256 = 64 * "0"
    beyond = StreamImageResponse(chunk=ImageChunk(index=2, data=b"x"))
    without = [m for m in messages if m.chunk.index != 1]
    for script in (
        [*messages[: chunks[1]], *messages[chunks[2] :]],
        without,
        [*messages[:-1], wrong],
        [*messages[:-1], beyond],
    ):
        record = ImageRecord(request.SerializeToString(), 0.0)
        record.ask(0.0)
        with pytest.raises(OutOfStepError):
            [*taken(record, script)]
        assert not record.completed


def test_a_runner_that_begins_with_other_settings_is_not_believed() -> None:
    record, messages = ImageRecord(REQUEST.SerializeToString(), 0.0), [*drawn(REQUEST)]
    died_at(record, messages[:5])
    record.ask(2.0)
    other = StreamImageResponse(started=ImageStarted(seed=40, width=32, height=32, steps=STEPS))
    with pytest.raises(OutOfStepError, match="other settings"):
        record.take(other.SerializeToString(), 2.0)


def test_a_stream_is_timed_over_all_its_runners() -> None:
    request = StreamImageRequest(model="m", prompt="p", seed=1)
    record, messages = ImageRecord(request.SerializeToString(), 10.0), [*drawn(request)]
    record.waited(queue=0.0, load=0.0)
    record.ask(10.0)

    def take(message: StreamImageResponse, now: float) -> bytes | None:
        return record.take(message.SerializeToString(), now)

    take(messages[0], 11.0)
    steps = [m for m in messages if m.progress.phase == IMAGE_PHASE_DENOISING]
    take(steps[0], 13.0)
    take(steps[3], 17.0)
    assert record.lost(18.0, End.WENT)
    record.ask(20.0)
    for message in messages[:-1]:
        take(message, 21.0)
    messages[-1].completed.timings.decode.CopyFrom(duration(5.0))
    data = take(messages[-1], 30.0)
    assert data is not None
    timings = StreamImageResponse.FromString(data).completed.timings
    seconds = [part.ToNanoseconds() / 1e9 for part in (timings.queue, timings.prefill)]
    assert seconds == [1.0, 2.0]
    assert timings.decode.ToNanoseconds() == 9e9
    assert timings.total.ToNanoseconds() == 20e9
