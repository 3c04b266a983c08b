"""What the controller is told at its start: the command line of `headrace serve`.

Every setting has a default; HEADRACE_HOST, HEADRACE_HOME and HEADRACE_BLAS stand in for their
options.
"""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from headrace._target import DEFAULT_TARGET, resolve_target

_EPILOG = """\
examples:
  headrace serve
  headrace serve --listen unix:/run/headrace.sock --preload smollm2:135m
  headrace serve --listen 0.0.0.0:50151 --insecure --memory 12GiB
"""
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30}
_TIMES = {"": 1.0, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Settings of the controller. Times in seconds, memory in bytes."""

    listen: str = DEFAULT_TARGET
    """ "unix:/path" or "host:port"; port 0 takes a free one."""
    insecure: bool = False
    """Whether an address beyond this machine is allowed."""
    home: Path = Path("~/.headrace")
    """Where models and caches are kept."""
    memory: int | None = None
    """All runners together; None: 80% of what is available at the start."""
    keep_alive: float = 300.0
    """How long an idle model stays where the request does not say; infinite: for good."""
    max_concurrency: int = 32
    """Requests that one model serves at once."""
    context: int | None = None
    """Tokens of prompt and output together, at most; None: what each model was made for."""
    prefix_cache: int | None = None
    """Of each model, to remember earlier prompts in; None: by the model and the memory."""
    drafts: bool = True
    """Whether runners may guess tokens and verify several in a step."""
    queue_per_model: int = 64
    """Requests that may wait for one model."""
    queue_total: int = 256
    """Requests that may wait in all."""
    max_stream_time: float = 3600.0
    """The deadline of a call whose client sets none."""
    stall_timeout: float = 60.0
    """Time without progress after which a runner counts as stalled."""
    grace: float = 30.0
    """How long running streams may go on after SIGTERM."""
    preload: tuple[str, ...] = ()
    """Models to load at once."""
    blas: str | None = None
    """A BLAS library to preload into runners on a Linux CPU; None: find one."""
    threads: int | None = None
    """CPU cores of a runner; None: all."""
    log_format: Literal["auto", "json", "text"] = "auto"
    log_level: str = "info"
    parent: Literal["stdin"] | None = None
    """Whose end is also the controller's: the process that holds its stdin."""
    ready_fd: int | None = None
    """Where to write a line of JSON once the controller listens."""


def parse(argv: Sequence[str] | None = None, env: Mapping[str, str] = os.environ) -> ServerConfig:
    """Read the command line. Exits with status 2 and a usage message when it is wrong."""
    parser = _parser(env)
    values = vars(parser.parse_args(argv))
    config = ServerConfig(**{**values, "preload": tuple(values["preload"])})
    if not config.insecure and not is_local(config.listen):
        parser.error(
            f"--listen {config.listen}: reaches beyond this machine without TLS; "
            "listen on 127.0.0.1 or a Unix socket, or allow it with --insecure"
        )
    return config


def is_local(address: str) -> bool:
    """Whether only this machine can reach the address."""
    host = address.rpartition(":")[0].strip("[]")
    return address.startswith("unix:") or host in _LOOPBACK


def _parser(env: Mapping[str, str]) -> argparse.ArgumentParser:
    default = ServerConfig()
    parser = argparse.ArgumentParser(
        prog="headrace serve",
        description="Serve MLX models over gRPC.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument_group("where").add_argument
    add(
        "--listen",
        type=_address,
        default=env.get("HEADRACE_HOST") or default.listen,
        metavar="ADDRESS",
        help="host:port or unix:/path; port 0 takes a free one (default: %(default)s)",
    )
    add("--insecure", action="store_true", help="allow an address beyond loopback, without TLS")
    add(
        "--home",
        type=_home,
        default=env.get("HEADRACE_HOME") or str(default.home),
        metavar="DIR",
        help="models and caches (default: %(default)s)",
    )
    add = parser.add_argument_group("models").add_argument
    add("--preload", action="append", default=[], metavar="MODEL", help="load MODEL at once")
    add(
        "--keep-alive",
        type=_keep_alive,
        default=default.keep_alive,
        metavar="TIME",
        help="how long an idle model stays, such as 90, 5m, 1h or forever (default: 5m)",
    )
    add("--context", type=_positive, metavar="TOKENS", help="prompt and output (default: model's)")
    add(
        "--memory",
        type=_bytes,
        metavar="BYTES",
        help="for all models, such as 12GiB (default: 80%% of what is free at the start)",
    )
    add(
        "--prefix-cache",
        type=_bytes_or_none,
        metavar="BYTES",
        help="of each model, for prompts to begin where earlier ones went; 0: none "
        "(default: half of the weights, within 10%% of what is free)",
    )
    add(
        "--no-drafts",
        dest="drafts",
        action="store_false",
        help="never guess tokens to verify several in a step",
    )
    add("--blas", default=env.get("HEADRACE_BLAS"), metavar="LIBRARY", help="BLAS for a Linux CPU")
    add("--threads", type=_positive, metavar="N", help="CPU cores of a runner (default: all)")
    add = parser.add_argument_group("bounds").add_argument
    add(
        "--max-concurrency",
        type=_positive,
        default=default.max_concurrency,
        metavar="N",
        help="requests that a model serves at once (default: %(default)s)",
    )
    add(
        "--queue-per-model",
        type=_positive,
        default=default.queue_per_model,
        metavar="N",
        help="requests that may wait for one model (default: %(default)s)",
    )
    add(
        "--queue-total",
        type=_positive,
        default=default.queue_total,
        metavar="N",
        help="requests that may wait in all (default: %(default)s)",
    )
    add(
        "--max-stream-time",
        type=_time,
        default=default.max_stream_time,
        metavar="TIME",
        help="for a call without a deadline of its own (default: %(default)g s)",
    )
    add(
        "--stall-timeout",
        type=_patience,
        default=default.stall_timeout,
        metavar="TIME",
        help="a runner without progress for so long is unhealthy (default: %(default)g s)",
    )
    add(
        "--grace",
        type=_time,
        default=default.grace,
        metavar="TIME",
        help="for running streams when the controller is told to stop (default: %(default)g s)",
    )
    add = parser.add_argument_group("output").add_argument
    add(
        "--log-format",
        choices=("auto", "json", "text"),
        default=default.log_format,
        help="auto: text on a terminal, JSON elsewhere (default: %(default)s)",
    )
    add(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default=default.log_level,
        help="the least that is logged (default: %(default)s)",
    )
    # What follows is for programs that start a controller of their own.
    add("--parent", choices=("stdin",), help=argparse.SUPPRESS)
    add("--ready-fd", type=int, help=argparse.SUPPRESS)
    return parser


def _address(text: str) -> str:
    text = resolve_target(text)
    if text.startswith("unix:"):
        path = text.removeprefix("unix:").removeprefix("//")
        if not path.startswith("/"):
            raise argparse.ArgumentTypeError(f"{text}: give the socket's absolute path")
        if len(os.fsencode(path)) > 100:
            raise argparse.ArgumentTypeError(f"{text}: a socket's path has at most 100 bytes")
        return f"unix:{path}"
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"{text}: is neither host:port nor unix:/path")
    return text


def _home(text: str) -> Path:
    return Path(text).expanduser().absolute()


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is below 1")
    return value


def _time(text: str) -> float:
    value = _seconds(text)
    if not 0 <= value < 1e9:
        raise argparse.ArgumentTypeError(f"{text} is no time such as 90, 5m or 1h")
    return value


def _patience(text: str) -> float:
    value = _seconds(text)
    if not 0 < value < 1e6:  # As a runner has it.
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and below 1000000 s")
    return value


def _keep_alive(text: str) -> float:
    # A negative time, which the contract has for it, would look like an option.
    value = math.inf if text == "forever" else _seconds(text)
    return math.inf if value < 0 else value


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(-?\d+(?:\.\d+)?)(ms|s|m|h|d)?", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text} is no time such as 90, 5m or 1h")
    return float(found[1]) * _TIMES[found[2] or ""]


def _bytes_or_none(text: str) -> int:
    return 0 if text.strip() == "0" else _bytes(text)


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kmg]i?)?b?", text.lower())
    if found is None or float(found[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text} is no size such as 8000000000, 8GB or 8GiB")
    return int(float(found[1]) * _UNITS[found[2] or ""])
