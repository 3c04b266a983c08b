"""When the command line writes in colours."""

from __future__ import annotations

import pytest

from tests.unit.cli.terminal import drawn


@pytest.mark.parametrize(
    ("environment", "coloured"),
    [({}, True), ({"TERM": "dumb"}, False), ({"NO_COLOR": "1"}, False)],
    ids=["colours", "dumb", "unwanted"],
)
def test_errors_are_red_where_there_are_colours(
    environment: dict[str, str], coloured: bool
) -> None:
    told = drawn(
        ["health"], code=4, errors=True, **{"HEADRACE_HOST": "unix:/nowhere/c.sock", **environment}
    )
    assert "error:" in told
    assert ("\x1b[31m" in told) is coloured
    assert ("\x1b" in told) is coloured
