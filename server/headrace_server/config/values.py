"""What a setting's value may look like, in words and in TOML. Pure.

A parser gets text and gives the value, or raises ValueError with what is wrong of it: "is no time
such as 90, 5m or 1h". The text itself is put before that by the one who knows where it stood.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from headrace._target import HTTPS, resolve_target
from headrace.errors import InvalidRequest
from headrace.telemetry.store.schema import LEAST_BYTES
from headrace_server.store.catalogue import find
from headrace_server.store.names import ModelName, parse_name

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30}
_TIMES = {"": 1.0, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_MOST = 10**9
_MOST_BYTES = 1 << 60
_NO_TIME = "is no time such as 90, 5m or 1h"
_NO_SIZE = "is no size such as 8000000000, 8GB or 8GiB"
_YES, _NO = ("true", "1", "yes", "on"), ("false", "0", "no", "off")


@dataclass(frozen=True)
class Kind:
    """A kind of value."""

    parse: Callable[[str], Any]
    """From the environment, the command line, or a string of the file. Raises ValueError."""
    show: Callable[[Any], str]
    """As TOML that `read` takes."""
    metavar: str = ""
    takes: tuple[type, ...] = (str,)
    """The types of TOML that the file may give it as."""
    choices: tuple[str, ...] = ()

    def read(self, value: object) -> Any:
        """The value that stands in the file. Raises ValueError."""
        if type(value) not in self.takes:  # An exact match: true is no number.
            raise ValueError(
                f"is {_name(value)}, not {' or '.join(map(_TOML.__getitem__, self.takes))}"
            )
        match value:
            case bool():
                return value
            case list():
                return self.parse(",".join(_words(value)))
            case _:
                return self.parse(str(value))


_TOML: dict[type, str] = {
    str: "a string",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list of strings",
    dict: "a table",
}


def _name(value: object) -> str:
    return _TOML.get(type(value), "a date or time")


def _words(value: Sequence[object]) -> Sequence[str]:
    if not all(isinstance(word, str) and "," not in word for word in value):
        raise ValueError("is not a list of strings")
    return [str(word) for word in value]


def quoted(text: object) -> str:
    """Text as a TOML string."""
    # TOML's basic strings escape as JSON's do, and want DEL escaped besides.
    return json.dumps(str(text), ensure_ascii=False).replace("\x7f", "\\u007f")


def toml(value: object) -> str:
    """What was found in a file, for an error. Cut where it is long."""
    shown = quoted(value) if isinstance(value, str) else json.dumps(value, default=str)
    return shown if len(shown) <= 80 else shown[:79] + "…"


class HttpsAddress(str):
    """An address that was written with https://: it speaks of TLS."""

    __slots__ = ()


def _address(text: str) -> str:
    if not text:
        raise ValueError("is no address")
    kind = HttpsAddress if text.lower().startswith(HTTPS) else str
    text = resolve_target(text)
    if text.startswith("unix:"):
        path = text.removeprefix("unix:").removeprefix("//")
        if not path.startswith("/"):
            raise ValueError("has no absolute path; give the socket's")
        if len(os.fsencode(path)) > 100:
            raise ValueError("is too long: a socket's path has at most 100 bytes")
        return f"unix:{path}"
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError("is neither host:port nor unix:/path")
    return kind(text)


def _tcp_address(text: str) -> str:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError("is not host:port")
    return text


def path(text: str) -> Path:
    """An absolute path; a leading ~ is a home directory. Raises ValueError."""
    if not text:
        raise ValueError("is no path")
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError:
        raise ValueError("names a home directory that is not known; write it out") from None


def _file(text: str) -> Path | None:
    return path(text) if text else None


def _show_file(value: Path | None) -> str:
    return quoted("" if value is None else value)


def _count(text: str) -> int:
    if not text.isdecimal() or len(text) > 10 or not 1 <= int(text) <= _MOST:
        raise ValueError(f"is no whole number from 1 to {_MOST}")
    return int(text)


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(-?\d+(?:\.\d+)?)(ms|s|m|h|d)?", text)
    if found is None:
        raise ValueError(_NO_TIME)
    return float(found[1]) * _TIMES[found[2] or ""]


def _time(text: str) -> float:
    value = _seconds(text)
    if not 0 <= value < 1e9:
        raise ValueError(_NO_TIME)
    return value


def _patience(text: str) -> float:
    value = _seconds(text)
    if not 0 < value < 1e6:  # As a runner has it.
        raise ValueError("is not above 0 and below 1000000 s")
    return value


def _keep_alive(text: str) -> float:
    # On a command line a negative time, which the contract has for it, would look like an option.
    value = _seconds_or_forever(text)
    return math.inf if value < 0 else value


def _seconds_or_forever(text: str) -> float:
    if text == "forever":
        return math.inf
    try:
        return _seconds(text)
    except ValueError:
        raise ValueError(f"{_NO_TIME}, nor forever") from None


def _lifetime(text: str) -> float:
    value = _seconds_or_forever(text)
    if value < 1:
        raise ValueError("is less than a second; or give forever")
    return value


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kmg]i?)?b?", text.lower())
    if found is None:
        raise ValueError(_NO_SIZE)
    value = float(found[1]) * _UNITS[found[2] or ""]
    if not 1 <= value < _MOST_BYTES:
        raise ValueError(_NO_SIZE)
    return int(value)


def _bytes_or_none(text: str) -> int:
    return 0 if text.strip() == "0" else _bytes(text)


def _store(text: str) -> int:
    if text.lower() == "off":
        return 0
    try:
        value = _bytes(text)
    except ValueError:
        raise ValueError(f"{_NO_SIZE}, nor off") from None
    if value < LEAST_BYTES:
        raise ValueError(f"is less than {LEAST_BYTES >> 20} MiB, which hold little; or give off")
    return value


def _flag(text: str) -> bool:
    if text.lower() not in (*_YES, *_NO):
        raise ValueError("is neither true nor false")
    return text.lower() in _YES


def model_name(text: str) -> ModelName:
    """A model's name. Raises ValueError."""
    try:
        return parse_name(text)
    except InvalidRequest as error:
        raise ValueError(f"is no model name: {error.violations[0].description}") from None


def names_of(full_name: str) -> tuple[str, ...]:
    """Every name that a table for the model may have: its own, then the catalogue's aliases."""
    entry = find(parse_name(full_name))
    own = entry is not None and str(entry.name) == full_name
    return (full_name, *(str(alias) for alias in (entry.aliases if entry and own else ())))


def _models(text: str) -> tuple[str, ...]:
    names = tuple(word.strip() for word in text.split(",") if word.strip())
    for name in names:
        model_name(name)
    return names


def show_time(seconds: float) -> str:
    """A time in the largest unit that divides it."""
    if math.isinf(seconds):
        return quoted("forever")
    for unit in ("d", "h", "m"):
        if seconds and not seconds % _TIMES[unit]:
            return quoted(f"{seconds / _TIMES[unit]:.0f}{unit}")
    return quoted(f"{seconds:.3f}".rstrip("0").rstrip(".") + "s")


def show_bytes(count: int) -> str:
    """A size in the largest power of 1024 that divides it."""
    for unit in ("gi", "mi", "ki"):
        if count and not count % _UNITS[unit]:
            return quoted(f"{count // _UNITS[unit]}{unit[0].upper()}iB")
    return str(count)


def _show_store(count: int) -> str:
    return show_bytes(count) if count else quoted("off")


def _show_flag(value: bool) -> str:
    return "true" if value else "false"


def _show_list(value: Sequence[str]) -> str:
    return f"[{', '.join(map(quoted, value))}]"


ADDRESS = Kind(_address, quoted, "ADDRESS")
TCP_ADDRESS = replace(ADDRESS, parse=_tcp_address)
DIRECTORY = Kind(path, quoted, "DIR")
FILE = Kind(_file, _show_file, "FILE")
LIBRARY = Kind(str, quoted, "LIBRARY")
COUNT = Kind(_count, str, "N", (int,))
TOKENS = replace(COUNT, metavar="TOKENS")
TIME = Kind(_time, show_time, "TIME", (str, int, float))
PATIENCE = Kind(_patience, show_time, "TIME", (str, int, float))
KEEP_ALIVE = Kind(_keep_alive, show_time, "TIME", (str, int, float))
LIFETIME = Kind(_lifetime, show_time, "TIME", (str, int, float))
SIZE = Kind(_bytes, show_bytes, "BYTES", (str, int))
SIZE_OR_NONE = Kind(_bytes_or_none, show_bytes, "BYTES", (str, int))
STORE = Kind(_store, _show_store, "BYTES", (str, int))
FLAG = Kind(_flag, _show_flag, "", (bool,))
NAME = Kind(lambda text: str(model_name(text)), quoted, "NAME")
MODELS = Kind(_models, _show_list, "MODEL", (list,))


def one_of(*words: str) -> Kind:
    """One of these words."""

    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(f"is none of {', '.join(words)}")
        return text

    return Kind(parse, quoted, "{" + ",".join(words) + "}", choices=words)
