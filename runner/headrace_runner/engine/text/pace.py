"""How much of the waiting prompts to compute beside the rows that decode. Pure.

The rule: a step takes at most 1 + `SHARE` times as long as one without prompts, so that streams
that run keep that much of their pace, however long the prompts are. What was not used is saved up
to `BURST`, so that a few prompts that arrive together start at once: that is also the longest that
a running stream ever waits, but for what a misjudged chunk takes longer.

Where nothing ran before, prompts that came together are computed first, if that is over within
`START`: the first rows that are ready have a step for each `BURST` of it. At their own pace their
steps would lengthen the wait of all others, and be those of batches that are hardly filled.
"""

from __future__ import annotations

from collections.abc import Sequence

SHARE = 1.3
BURST = 1.0
"""Seconds."""
START = 4.0
"""Seconds."""
_PER_ROW = 0.04
"""What a row adds to a step, as part of it, as long as nothing better is known."""
_MEMORY = 0.3
"""Weight of the newest measurement of a step in the average."""
_FEW = 128
"""Prompt tokens whose measurement has half of the weight: of fewer, the time tells less of each."""


class Pace:
    """Turns measured times into tokens."""

    def __init__(self, most: int) -> None:
        """`most`: tokens to compute at once at most, whatever they take."""
        self._most = most
        self._per_token = 0.0
        self._saved = BURST
        self._alone: dict[int, float] = {}
        """Seconds of a step without prompts, by the rows that decode."""

    def tokens(self, *, decoding: bool) -> int:
        """How many prompt tokens may be computed now, over all prompts; 1 at least.

        `decoding`: whether rows that decode wait for it. As many times the tokens of the last chunk
        as there is now more time than it took: which finds the right number also where a chunk of
        few tokens takes hardly less than one of some more.
        """
        seconds = self._saved if decoding else BURST
        if self._per_token:
            return max(1, min(self._most, int(seconds / self._per_token)))
        return self._most

    def gathers(self, tokens: int, waited: float) -> bool:
        """Whether rows that began so long ago let so many prompt tokens be computed first."""
        return bool(self._per_token) and waited + tokens * self._per_token <= START

    def prefilled(self, tokens: int, seconds: float, *, decoding: bool) -> None:
        """So many prompt tokens took so long."""
        measured = seconds / tokens
        if self._per_token:
            weight = tokens / (tokens + _FEW)
            measured = weight * measured + (1 - weight) * self._per_token
        self._per_token = measured
        if decoding:
            self._saved = max(self._saved - seconds, -BURST)

    def decoded(self, seconds: float, *, rows: int = 1, beside: bool = False) -> None:
        """A step of so many rows took so long; `beside`: after a chunk of prefill."""
        if not beside or not self._alone:
            known = self._alone.get(rows, seconds)
            self._alone[rows] = known + _MEMORY * (seconds - known)
        self._saved = min(self._saved + SHARE * self._step(rows), BURST)

    def together(self, tokens: int, seconds: float, *, rows: int = 1) -> None:
        """A step of so many rows, with so many prompt tokens in it, took so long."""
        step = self._step(rows)
        self.prefilled(tokens, max(seconds - step, 0.1 * seconds), decoding=True)
        self._saved = min(self._saved + SHARE * step, BURST)

    def _step(self, rows: int) -> float:
        """What a step of so many rows takes alone: as measured, or by the nearest number."""
        if not self._alone:
            return 0.0
        nearest = min(self._alone, key=lambda count: abs(count - rows))
        return self._alone[nearest] * (1 + _PER_ROW * max(0, rows - nearest))


def shares(remaining: Sequence[int], tokens: int) -> list[int]:
    """Divides `tokens` among prompts in line that need so many each, first come first.

    The first prompt gets half of it at least, and all that it can use if it is alone; the other
    half goes to the shortest, so that short prompts need not wait for a long one before them, nor
    the long one for ever new short ones.
    """
    given = [0] * len(remaining)
    if not remaining or tokens < 1:
        return given
    given[0] = min(remaining[0], -(-tokens // 2))
    left = tokens - given[0]
    for place in sorted(range(1, len(remaining)), key=remaining.__getitem__):
        given[place] = min(remaining[place], left)
        left -= given[place]
    given[0] += min(left, remaining[0] - given[0])
    return given
