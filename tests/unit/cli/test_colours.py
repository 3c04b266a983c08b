"""When the command line writes in colours."""

from __future__ import annotations

import pytest

from tests.unit.cli.terminal import drawn


@pytest.mark.parametrize(("command", "code"), [("health", 4), ("doctor", 0)])
@pytest.mark.parametrize(
    ("environment", "coloured"),
    [({}, True), ({"TERM": "dumb"}, False), ({"NO_COLOR": "1"}, False)],
    ids=["colours", "dumb", "unwanted"],
)
def test_colours_are_for_terminals_that_have_them(
    command: str, code: int, environment: dict[str, str], coloured: bool
) -> None:
    """Both in what a command says, and in what is said of its error."""
    nowhere = {"HEADRACE_HOST": "unix:/nowhere/c.sock"}
    told = drawn([command], code=code, errors=True, **nowhere, **environment)
    assert ("\x1b[31merror:" if code else "\x1b[32mok") in told if coloured else "\x1b" not in told
