"""Drawing with the real classes of mflux and random weights."""

from pathlib import Path

import numpy as np
import pytest

from headrace.errors import UnsupportedParameter
from headrace_runner.models.mflux.pipeline import MfluxPipeline
from headrace_runner.models.pipeline import Phase, Pixels
from tests.mflux_models import build_flux2, build_z_image
from tests.unit.mflux.conftest import load
from tests.unit.mflux.watching import Ended, Event, Watcher, draw, photo, same


@pytest.fixture(scope="module")
def cat(z_image: MfluxPipeline) -> Pixels:
    return draw(z_image)


def test_an_image_and_how_it_goes(z_image: MfluxPipeline, cat: Pixels) -> None:
    watcher = Watcher(previews=True)
    pixels = draw(z_image, watcher)
    assert pixels.shape == (32, 32, 3)
    assert pixels.dtype == np.uint8
    assert pixels.std() > 10
    encoded, denoised = [(Phase.ENCODING, 1), 1], [(Phase.DENOISING, 2), 1, 2]
    assert watcher.events == [*encoded, *denoised, (Phase.DECODING, 1), 1]
    # A preview is the image as it is now, so that of the last step is the image.
    assert not same(watcher.previews[1], pixels)
    assert same(watcher.previews[2], pixels)
    assert same(watcher.previews[3], pixels)
    assert same(pixels, cat)


def test_the_seed_makes_the_image_and_nothing_before_it_does(
    z_image: MfluxPipeline, z_image_dir: Path, cat: Pixels
) -> None:
    other = draw(z_image, seed=2**63 - 1, prompt="a dog", width=48, steps=1)
    assert other.shape == (32, 48, 3)
    assert not same(draw(z_image, seed=8), cat)
    assert not same(draw(z_image, prompt="a dog"), cat)
    assert same(draw(z_image), cat)
    assert same(draw(load(z_image_dir)), cat)


@pytest.mark.parametrize(
    "event",
    [(Phase.ENCODING, 1), (Phase.DENOISING, 2), 1, (Phase.DECODING, 1)],
    ids=["encoding", "denoising", "step", "decoding"],
)
def test_ended_anywhere_it_draws_the_next(
    z_image: MfluxPipeline, cat: Pixels, event: Event
) -> None:
    watcher = Watcher(end_at=event)
    with pytest.raises(Ended):
        draw(z_image, watcher)
    assert watcher.events[-1] == event
    assert same(draw(z_image), cat)


@pytest.mark.parametrize(
    ("strength", "steps"), [(0.0, 4), (0.1, 3), (0.5, 2), (0.99, 1), (1.0, 0), (None, 3)]
)
def test_an_input_image_takes_the_place_of_the_first_steps(
    z_image: MfluxPipeline, strength: float | None, steps: int
) -> None:
    watcher = Watcher()
    draw(z_image, watcher, steps=4, input_images=(photo(),), strength=strength)
    done = list(range(1, steps + 1))
    assert watcher.events == [
        *((Phase.ENCODING, 1), 1),
        *((Phase.DENOISING, steps), *done),
        *((Phase.DECODING, 1), 1),
    ]


def test_no_strength_is_no_input_image(z_image: MfluxPipeline, cat: Pixels) -> None:
    assert same(draw(z_image, input_images=(photo(),), strength=0.0), cat)


def test_the_input_image_counts_and_so_does_what_shines_through_it(
    z_image: MfluxPipeline, cat: Pixels
) -> None:
    seen = draw(z_image, input_images=(photo(),), strength=0.5)
    assert not same(seen, cat)
    clear = photo(channels=4)
    clear[..., 3] = 0
    white = np.full((32, 32, 3), 255, np.uint8)
    through = draw(z_image, input_images=(clear,), strength=0.5)
    assert same(through, draw(z_image, input_images=(white,), strength=0.5))


def test_flux2(flux2: MfluxPipeline) -> None:
    alone = draw(flux2, steps=1)
    watcher = Watcher(previews=True)
    over = draw(flux2, watcher, input_images=(photo(),), strength=0.5)
    assert watcher.events[2:4] == [(Phase.DENOISING, 1), 1]
    assert same(watcher.previews[1], over)
    style = draw(flux2, steps=1, loras=(("style", 1.0),))
    assert not same(over, alone)
    assert not same(style, alone)
    assert same(draw(flux2, steps=1), alone)


@pytest.mark.slow
def test_flux2_looks_at_several_images(needs_mflux: None, tmp_path: Path) -> None:
    pipeline = load(build_flux2(tmp_path, references=True))
    assert pipeline.traits.max_input_images == 4
    assert pipeline.traits.strength is None
    none = draw(pipeline, steps=1)
    one = draw(pipeline, steps=1, input_images=(photo(),))
    both = draw(pipeline, steps=1, input_images=(photo(), photo(48, 32)))
    assert not same(none, one)
    assert not same(one, both)


def test_a_negative_prompt_counts_where_guidance_makes_it(
    needs_mflux: None, tmp_path: Path
) -> None:
    pipeline = load(build_z_image(tmp_path, base="z-image"))
    assert pipeline.traits.negative_prompt
    assert pipeline.traits.guidance == 4.0
    plain = draw(pipeline, steps=1)
    assert same(plain, draw(pipeline, steps=1, guidance=4.0))
    assert not same(plain, draw(pipeline, steps=1, guidance=2.0))
    assert not same(plain, draw(pipeline, steps=1, negative_prompt="blue"))
    with pytest.raises(UnsupportedParameter, match="guidance is greater than 1") as caught:
        draw(pipeline, steps=1, negative_prompt="blue", guidance=1.0)
    assert caught.value.metadata["field"] == "negative_prompt"
    assert same(draw(pipeline, steps=1, guidance=0.0), draw(pipeline, steps=1, guidance=1.0))
    with pytest.raises(UnsupportedParameter, match="takes all up to 1 for none") as caught:
        draw(pipeline, steps=1, guidance=0.5)
    assert caught.value.metadata["field"] == "guidance"


def test_nothing_is_kept_of_a_drawing(z_image: MfluxPipeline) -> None:
    """Neither who watched nor what was encoded, which mflux would keep for ever."""
    draw(z_image)
    callbacks = z_image._model.callbacks
    assert not callbacks.before_loop
    assert not callbacks.in_loop
    assert not callbacks.after_loop
    assert not getattr(z_image._model, "prompt_cache", {})
