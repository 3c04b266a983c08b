"""The bench of prompts, with a server that takes a known time."""

import pytest

from tests.bench.prefill import LENGTHS, Row, observe, outcome, texts
from tests.bench.servers import LLAMA, OURS
from tests.bench.stats import Arrival, Spread, Trace
from tests.bench.streams import Recorder


class Steady:
    """Computes so many tokens, which are words to it, a second."""

    def __init__(self, pace: float) -> None:
        self._pace = pace
        self.prompts: list[str] = []

    async def __call__(self, prompt: str, tokens: int, recorder: Recorder | None = None) -> Trace:
        self.prompts.append(prompt)
        count = len(prompt.split())
        return Trace(5.0, (Arrival(5.0 + count / self._pace, tokens),), count, "text")


async def test_speed_is_that_of_the_prompt() -> None:
    prompts = texts(2, lambda text: len(text.split()))
    server = Steady(400.0)
    row = await observe("it", server, prompts)
    assert {n: round(one.median) for n, one in row.speed.items()} == dict.fromkeys(LENGTHS, 400)
    sent = server.prompts[1:]
    assert [len(text.split()) // 100 for text in sent] == [5, 5, 20, 20]
    assert len({text.split()[0] for text in sent}) == 4


def row(title: str, short: float, long: float, memory: int) -> Row:
    speeds = zip(LENGTHS, (short, long), strict=True)
    return Row(title, {n: Spread(value, value, value) for n, value in speeds}, memory, 0)


@pytest.mark.parametrize(
    ("ours", "missed"),
    [
        ((80, 800, 130), ()),
        ((79, 800, 130), ("a prompt of 512",)),
        ((80, 790, 130), ("a prompt of 2000",)),
        ((200, 2000, 131), ("memory",)),
    ],
)
def test_each_aim_can_be_missed(ours: tuple[float, float, int], missed: tuple[str, ...]) -> None:
    failures = outcome([row(OURS, *ours), row(LLAMA, 100, 1000, 100)], []).failures
    assert len(failures) == len(missed)
    assert all(part in line for part, line in zip(missed, failures, strict=True))
    assert not outcome([row(OURS, *ours)], []).failures
