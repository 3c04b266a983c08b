"""The emoji model that ships draws what it is asked for, the same whatever else is drawn."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from headrace_runner.models.emoji.family import FAMILY, SHIPPED
from headrace_runner.models.emoji.pipeline import EmojiPipeline
from headrace_runner.models.pipeline import Drawing, Phase, Pixels, Unwatched

STEPS = 2
"""Enough for an image to depend on all that it should."""


class Heard:
    """Keeps what it hears: (phase, total), then (done, previews)."""

    def __init__(self, until: int | None = None, unwanted: int | None = None) -> None:
        self.told: list[tuple[Phase, int]] = []
        self.steps: list[int] = []
        self.previews: list[Sequence[Pixels]] = []
        self._until = until
        self._unwanted = unwanted

    def phase(self, phase: Phase, total: int) -> None:
        self.told.append((phase, total))

    def step(self, done: int, preview: Callable[[], Sequence[Pixels]]) -> None:
        if self.told[-1][0] is Phase.DENOISING:
            self.steps.append(done)
            self.previews.append(preview())
            if done == self._until:
                raise Stopped

    def wanted(self, place: int) -> bool:
        """Nobody wants the one named after the first step."""
        return place != self._unwanted or not self.steps


@dataclass
class Counting:
    """A network that counts how often it is asked."""

    network: Any
    asked: int = 0

    def __call__(self, *arguments: Any) -> Any:
        self.asked += 1
        return self.network(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.network, name)


class Stopped(Exception):
    """Nobody wants it any more."""


def drawing(prompt: str, seed: int = 1, **more: object) -> Drawing:
    """Without guidance, which takes twice as long."""
    one = Drawing(prompt, seed, 64, 64, STEPS, guidance=1.0)
    return replace(one, **more)  # type: ignore[arg-type]


def picture() -> Pixels:
    """Something to begin with, of all values."""
    return np.arange(64 * 64 * 3, dtype=np.uint32).reshape(64, 64, 3).astype(np.uint8)


def test_an_image_is_the_same_alone_and_in_any_company(pipeline: EmojiPipeline) -> None:
    guided = drawing("a red rose", 1, guidance=None, negative_prompt="green")
    plain = drawing("penguin with a long caption", 2)
    empty = drawing("", 3)
    (alone,) = pipeline.draw([guided], Unwatched())
    first, second, third = pipeline.draw([plain, guided, empty], Unwatched())
    other, same = pipeline.draw([empty, plain], Unwatched())
    assert alone.shape == (64, 64, 3)
    assert alone.dtype == np.uint8
    assert second.tobytes() == alone.tobytes()
    assert first.tobytes() == same.tobytes()
    assert third.tobytes() == other.tobytes()
    assert len({one.tobytes() for one in (first, second, third)}) == 3


def test_all_of_a_seed_counts(pipeline: EmojiPipeline) -> None:
    seeds = [0, 1, 2**32 + 1, 2**63 - 1]
    drawn = pipeline.draw([drawing("cat", seed, steps=1) for seed in seeds], Unwatched())
    assert len({one.tobytes() for one in drawn}) == len(seeds)


def test_any_prompt_draws_something(pipeline: EmojiPipeline) -> None:
    prompts = ["\ud800\0 🏳️‍🌈 עברית", "薔薇" * 5000, "🌹" * 500]
    drawn = pipeline.draw([drawing(prompt, steps=1) for prompt in prompts], Unwatched())
    assert len({one.tobytes() for one in drawn}) == len(prompts)


def test_what_nobody_wants_any_more_is_not_gone_on_with(
    pipeline: EmojiPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Counting(pipeline._network)
    monkeypatch.setattr(pipeline, "_network", network)
    pair = [drawing("a red rose"), drawing("cat")]
    heard = Heard(unwanted=1)
    images = pipeline.draw(pair, heard)
    assert network.asked == 2 + (STEPS - 1)
    assert heard.steps == [1, 2]
    monkeypatch.undo()
    assert (images[0] == pipeline.draw(pair[:1], Unwatched())[0]).all()


def test_guidance_leads_from_the_negative_prompt_to_the_prompt(pipeline: EmojiPipeline) -> None:
    cat, dog, guided, negated, unwanted = pipeline.draw(
        [
            drawing("cat", steps=1),
            drawing("dog", steps=1),
            drawing("cat", steps=1, guidance=None),
            drawing("cat", steps=1, guidance=None, negative_prompt="dog"),
            drawing("cat", steps=1, guidance=0.0, negative_prompt="dog"),
        ],
        Unwatched(),
    )
    assert len({one.tobytes() for one in (cat, dog, guided, negated)}) == 4
    assert np.abs(unwanted.astype(int) - dog).max() <= 1


def test_an_image_of_full_strength_is_kept_and_of_none_is_forgotten(
    pipeline: EmojiPipeline,
) -> None:
    whole = drawing("cat", input_images=(picture(),), strength=1.0)
    heard = Heard()
    (kept,) = pipeline.draw([whole], heard)
    assert kept.tobytes() == picture().tobytes()
    assert heard.told == [(Phase.ENCODING, 1), (Phase.DENOISING, 0), (Phase.DECODING, 1)]
    forgotten, plain = pipeline.draw([replace(whole, strength=0.0), drawing("cat")], Unwatched())
    assert forgotten.tobytes() == plain.tobytes()


def test_steps_that_strength_skips_are_not_counted(pipeline: EmojiPipeline) -> None:
    heard = Heard()
    halfway = drawing("cat", input_images=(picture(),), strength=0.5, steps=4)
    (drawn,) = pipeline.draw([halfway], heard)
    assert heard.told[1] == (Phase.DENOISING, 2)
    assert heard.steps == [1, 2]
    assert drawn.tobytes() != picture().tobytes()


def test_what_is_transparent_is_white(pipeline: EmojiPipeline) -> None:
    clear = np.dstack([picture(), np.zeros((64, 64), dtype=np.uint8)])
    opaque = np.dstack([picture(), np.full((64, 64), 255, dtype=np.uint8)])
    asked = [drawing("cat", input_images=(pixels,), strength=1.0) for pixels in (clear, opaque)]
    white, same = pipeline.draw(asked, Unwatched())
    assert white.min() == 255
    assert same.tobytes() == picture().tobytes()


def test_previews_come_to_what_is_drawn(pipeline: EmojiPipeline) -> None:
    heard = Heard()
    drawn = pipeline.draw([drawing("sun", 1), drawing("moon", 2)], heard)
    assert heard.told == [(Phase.ENCODING, 1), (Phase.DENOISING, STEPS), (Phase.DECODING, 1)]
    assert heard.steps == [1, 2]
    assert [len(previews) for previews in heard.previews] == [2, 2]
    for last, one in zip(heard.previews[-1], drawn, strict=True):
        assert last.tobytes() == one.tobytes()
    assert heard.previews[0][0].tobytes() != drawn[0].tobytes()


def test_a_watch_that_raises_ends_it_and_the_next_draws_as_ever(pipeline: EmojiPipeline) -> None:
    asked = drawing("cat")
    (before,) = pipeline.draw([asked], Unwatched())
    heard = Heard(until=1)
    with pytest.raises(Stopped):
        pipeline.draw([asked], heard)
    assert heard.steps == [1]
    (after,) = pipeline.draw([asked], Unwatched())
    assert after.tobytes() == before.tobytes()


def test_drawings_that_cannot_be_drawn_together_are_refused(pipeline: EmojiPipeline) -> None:
    one = drawing("cat")
    small = np.zeros((32, 64, 3), dtype=np.uint8)
    for wrong in (
        [],
        [one] * 17,
        [one, replace(one, steps=STEPS + 1)],
        [one, replace(one, input_images=(picture(),), strength=0.7)],
        [replace(one, width=128, height=128)],
        [replace(one, input_images=(small,), strength=0.5)],
    ):
        with pytest.raises(ValueError, match=r"drawings|size|input image"):
            pipeline.draw(wrong, Unwatched())


def test_memory_stays_within_what_is_said(pipeline: EmojiPipeline) -> None:
    gc.collect()  # What other tests have left would be freed into the cache meanwhile.
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    pipeline.draw([drawing("cat", seed, steps=1) for seed in range(2)], Unwatched())
    used = mx.get_peak_memory() - before + mx.get_cache_memory()
    stated = FAMILY.working_bytes(SHIPPED, 64, 64, 2)
    assert 0.4 * stated < used <= stated


@pytest.mark.parametrize(
    ("prompt", "channel"), [("a red rose", 0), ("green apple", 1), ("blue heart", 2)]
)
def test_what_is_drawn_has_the_colour_that_was_asked_for(
    pipeline: EmojiPipeline, prompt: str, channel: int
) -> None:
    (drawn,) = pipeline.draw([drawing(prompt, 7, steps=4)], Unwatched())
    pixels = drawn.reshape(-1, 3).astype(int)
    inked = pixels[pixels.min(axis=1) < 200]
    assert 0.1 < len(inked) / len(pixels) < 0.95, "a thing on white"
    mean = inked.mean(axis=0)
    assert mean[channel] - np.delete(mean, channel).max() > 30
    corners = drawn[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners.min() > 225, "the background is white"
