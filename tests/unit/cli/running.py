"""The command line, called in this process."""

from collections.abc import Callable

Run = Callable[..., tuple[int, str, str]]
"""Takes its arguments, and `stdin`; gives its exit code and what it printed on both outputs."""
