"""The prefix bench, with a server that remembers, or forgets, and answers on the spot."""

import pytest

from tests.bench.prefix import FEWEST_CACHED, PREFIX_TOKENS, Row, observe, outcome
from tests.bench.servers import OURS
from tests.bench.stats import Arrival, Spread, Trace
from tests.bench.streams import Recorder

PREFIXES = ("one two three", "four five six")


class Remembering:
    """Takes 8 s for a prefix that it has not seen, and the given times for those it has."""

    def __init__(self, *warm: float) -> None:
        self._warm = list(warm)
        self.prompts: list[str] = []

    async def __call__(self, prompt: str, tokens: int, recorder: Recorder | None = None) -> Trace:
        known = any(
            prompt.startswith(prefix) and earlier.startswith(prefix)
            for prefix in PREFIXES
            for earlier in self.prompts
        )
        self.prompts.append(prompt)
        wait = self._warm.pop(0) if known else 8.0
        cached = PREFIX_TOKENS if known else 0
        return Trace(3.0, (Arrival(3.0 + wait, tokens),), 2010, "text", cached)


async def test_cold_and_warm_are_kept_apart_round_by_round() -> None:
    server = Remembering(1.0, 2.0, 4.0, 0.5, 1.0, 2.0)
    row = await observe("it", server, PREFIXES)
    assert row.cold == Spread(8.0, 8.0, 8.0)
    assert row.warm == Spread(1.5, 1.0, 2.0)
    assert row.ratio == Spread(6.0, 4.0, 8.0)
    assert row.cached == PREFIX_TOKENS


async def test_no_two_prompts_are_alike() -> None:
    server = Remembering(*[1.0] * 6)
    await observe("it", server, PREFIXES)
    assert len(set(server.prompts)) == len(server.prompts) == 1 + 2 * 4


@pytest.mark.parametrize(
    ("title", "cached", "fails"),
    [
        (OURS, FEWEST_CACHED, False),
        (OURS, FEWEST_CACHED - 1, True),
        (OURS, 0, True),
        ("a peer", 0, False),
    ],
)
def test_a_cache_of_ours_that_finds_too_little_is_a_failure(
    title: str, cached: int, *, fails: bool
) -> None:
    one = Spread(1.0, 1.0, 1.0)
    failures = outcome([Row(title, one, one, one, cached)], []).failures
    assert bool(failures) == fails
    assert all(f"found {cached} tokens" in failure for failure in failures)
