"""Where the controller is: an argument, else HEADRACE_HOST, else the default. Opens nothing."""

from __future__ import annotations

import os
from ipaddress import ip_address
from typing import Final

DEFAULT_PORT: Final = 50151
DEFAULT_TARGET: Final = f"127.0.0.1:{DEFAULT_PORT}"
HTTPS: Final = "https://"
HTTP: Final = "http://"


def is_local(target: str) -> bool:
    """Whether only this machine can be meant: a Unix socket, or a loopback address."""
    return target.startswith("unix:") or is_loopback(target.rpartition(":")[0])


def is_loopback(host: str) -> bool:
    """Whether a host, as an address writes it, is this machine."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def resolve_target(target: str | None = None) -> str:
    """The target of a channel: "host:port", "unix:/path", or any other that gRPC knows.

    "https://host:port" and "http://host:port" are host:port.

    A host without a port gets Headrace's own, since gRPC's default is a web server's.
    """
    target = target or os.environ.get("HEADRACE_HOST") or DEFAULT_TARGET
    for scheme in (HTTPS, HTTP):
        if target.lower().startswith(scheme):  # It says whether there is TLS, and not where.
            target = target[len(scheme) :].rstrip("/") or DEFAULT_TARGET
    if "/" in target or target.startswith("unix:"):
        return target
    if target.startswith("["):
        return target if "]:" in target else f"{target}:{DEFAULT_PORT}"
    match target.count(":"):
        case 0:
            return f"{target}:{DEFAULT_PORT}"
        case 1:
            return target
        case _:  # an IPv6 address without its brackets
            return f"[{target}]:{DEFAULT_PORT}"
