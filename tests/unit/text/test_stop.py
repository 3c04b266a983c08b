"""Stop strings are found wherever the text is cut, and nothing else is ever held back for good."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_runner.engine.text.stop import Finder, StopMatcher

# A small alphabet makes overlaps, repeats and near misses likely.
TEXT = st.text(alphabet="abc", max_size=40)
STOPS = st.lists(st.text(alphabet="abc", min_size=1, max_size=5), max_size=4)


def _expected(text: str, stops: list[str], *, include_stop: bool) -> tuple[str, str | None]:
    """The rule, said the slow way: the first end wins, and of one end the longest stop."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            stop = max(ending, key=len)
            return text[: end if include_stop else end - len(stop)], stop
    return text, None


def _cut(text: str, cuts: list[int]) -> list[str]:
    borders = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [text[a:b] for a, b in pairwise(borders)]


@given(TEXT, STOPS, st.lists(st.integers(0, 1000), max_size=10), st.booleans())
def test_b4_any_cut_gives_the_text_up_to_the_first_stop(
    text: str, stops: list[str], cuts: list[int], include_stop: bool
) -> None:
    matcher = StopMatcher(stops, include_stop=include_stop)
    emitted, matched = "", None
    for part in _cut(text, cuts):
        out, matched = matcher.push(part)
        emitted += out
    emitted += matcher.finish()
    assert (emitted, matched) == _expected(text, stops, include_stop=include_stop)


@given(TEXT, STOPS)
def test_only_what_could_begin_a_stop_is_held_back(text: str, stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    emitted, matched = matcher.push(text)
    if matched is None:
        endings = [text[start:] for start in range(len(text))]
        could_begin = [e for e in endings if any(s.startswith(e) for s in stops)]
        assert text.removeprefix(emitted) == max(could_begin, key=len, default="")


def test_b4_over_three_tokens() -> None:
    matcher = StopMatcher(["\nUser:"])
    assert matcher.push("Fine.\n") == ("Fine.", None)
    assert matcher.push("Us") == ("", None)
    assert matcher.push("er: more") == ("", "\nUser:")
    assert matcher.push("and more") == ("", "\nUser:")
    assert matcher.finish() == ""


def test_b4_what_only_began_like_a_stop_is_emitted() -> None:
    matcher = StopMatcher(["\nUser:"])
    assert matcher.push("Fine.\nUse") == ("Fine.", None)
    assert matcher.push("ful\nU") == ("\nUseful", None)
    assert matcher.finish() == "\nU"


@pytest.mark.parametrize(
    ("stops", "text", "expected"),
    [
        (["abcd", "bc"], "xabcdx", ("xa", "bc")),
        (["bc", "abc"], "xabcx", ("x", "abc")),
        (["aab"], "aaab", ("a", "aab")),
        (["ん", "👍🏽"], "こ👍👍🏽", ("こ👍", "👍🏽")),
        ([], "abc", ("abc", None)),
    ],
)
def test_which_stop_wins(stops: list[str], text: str, expected: tuple[str, str | None]) -> None:
    assert StopMatcher(stops).push(text) == expected
    one_by_one = StopMatcher(stops)
    assert "".join(one_by_one.push(c)[0] for c in text) == expected[0]


def test_included_stop() -> None:
    matcher = StopMatcher(["END"], include_stop=True)
    assert matcher.push("the E") == ("the ", None)
    assert matcher.push("ND, really") == ("END", "END")


def test_many_long_stops_take_linear_time() -> None:
    matcher = StopMatcher(["a" * 1023 + chr(0x4E00 + i) for i in range(64)])
    assert len(matcher.push("a" * 200_000)[0]) == 200_000 - 1023


def test_a_finder_goes_on_behind_what_it_found() -> None:
    finder = Finder(["ab", "bc"])
    assert finder.push("xa") == ("x", None, 2)
    assert finder.held == 1
    assert finder.push("bcab") == ("", "ab", 1)
    assert finder.held == 0
    assert finder.push("bcab", 1) == ("c", "ab", 4)
    assert finder.push("c") == ("c", None, 1)
    assert finder.push("b") == ("", None, 1)
    assert finder.finish() == "b"
    assert finder.push("c") == ("c", None, 1)


def test_an_empty_stop_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        StopMatcher(["a", ""])
