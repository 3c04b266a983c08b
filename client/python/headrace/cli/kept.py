"""The local store as the command line finds it, and how a trace is named there."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import click

from headrace.telemetry.store.reader import NothingKeptError, StoreReader
from headrace.telemetry.store.schema import store_path

LEVELS: Final = ("debug", "info", "warning", "error")

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
_PREFIX = re.compile(r"[0-9a-f]{1,32}")


class NotFoundError(click.ClickException):
    """There is no such thing here."""

    exit_code = 3


def level_number(name: str) -> int:
    """Of Python's logging."""
    return logging.getLevelNamesMapping()[name.upper()]


@contextmanager
def opened() -> Iterator[StoreReader]:
    """The store of HEADRACE_HOME.

    Raises NotFoundError where there is none.
    """
    home = Path(os.environ.get("HEADRACE_HOME") or "~/.headrace").expanduser()
    try:
        with StoreReader(store_path(home)) as reader:
            yield reader
    except NothingKeptError as error:
        raise NotFoundError(
            f"no logs and traces are kept: {error}\n"
            "  A controller of this machine keeps them, unless --telemetry-store is off. "
            "HEADRACE_HOME says where."
        ) from None


def find_trace(reader: StoreReader, text: str) -> str:
    """The one trace that a person means: by its id, the beginning of it, or a whole traceparent.

    Raises NotFoundError for none, and BadParameter for several or what is no id.
    """
    asked = text.strip().lower()
    whole = _TRACEPARENT.fullmatch(asked)
    prefix = whole[1] if whole else asked
    if not _PREFIX.fullmatch(prefix):
        raise click.BadParameter(f"{text!r} is no trace id: those are 32 hexadecimal digits")
    found = reader.trace_ids(prefix)
    if not found:
        raise NotFoundError(
            f"nothing is kept of a trace {prefix}\n"
            "  `headrace trace` lists those that are. Old ones go when the store is full; what "
            "still runs is seen in `headrace logs`."
        )
    if len(found) > 1:
        raise click.BadParameter(f"{prefix!r} begins several: {', '.join(found)}")
    return found[0]
