"""Channel and server options: what every connection of Headrace is made with."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any, Final

from headrace._target import is_local

MAX_MESSAGE_BYTES: Final = 32 << 20
"""Largest message received. Twice the 16 MiB that the contract allows a prompt, so that a prompt
over the limit is read and refused with a typed error."""

MAX_METADATA_BYTES: Final = 16 << 10
"""Of a call, in all."""
HANDSHAKE_TIMEOUT: Final = 20.0
"""Seconds in which a new connection has to speak HTTP/2, with TLS or without."""

_MOST_MS: Final = (1 << 31) - 1
"""Of gRPC's times; it takes it for ever."""

REPEATABLE_METHODS: Final = {
    "headrace.v1.EmbeddingService": ("Embed",),
    "headrace.v1.ModelService": (
        "GetModel",
        "ListModels",
        "ListRunners",
        "LoadModel",
        "UnloadModel",
    ),
    "headrace.v1.RunnerService": ("Abort", "Drain", "GetRunner"),
    "headrace.v1.ScoreService": ("Score",),
    "headrace.v1.TokenizeService": ("CountTokens", "Detokenize", "RenderChat", "Tokenize"),
}
"""The methods that a channel may retry by itself, by service. None that changes the store: one that
was carried out, and whose answer was lost, would find its work done and fail."""

_SERVICE_CONFIG: Final = {
    "methodConfig": [
        {
            "name": [
                {"service": service, "method": method}
                for service, methods in REPEATABLE_METHODS.items()
                for method in methods
            ],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What clients may have of a server's connections. Times in seconds; infinite: no limit."""

    connections: int
    """At once. One more is closed as soon as it is made."""
    streams: int
    """Calls at once of one connection. gRPC's clients have one more wait."""
    idle: float
    """After which a connection without a call is closed; clients make another when they need it."""
    age: float
    """After which a connection takes no more calls, and ends with those that it has."""

    def options(self) -> dict[str, int]:
        """As gRPC has them."""
        return {
            "grpc.max_allowed_incoming_connections": self.connections,
            "grpc.max_concurrent_streams": self.streams,
            "grpc.max_connection_idle_ms": _milliseconds(self.idle),
            "grpc.max_connection_age_ms": _milliseconds(self.age),
        }


def _milliseconds(seconds: float) -> int:
    return _MOST_MS if math.isinf(seconds) else min(_MOST_MS, round(seconds * 1000))


def server_options() -> list[tuple[str, Any]]:
    """Give the options of a server."""
    return [
        # Two servers would share one port without a word.
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
        # Both: between them gRPC would refuse at random.
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.server_handshake_timeout_ms", _milliseconds(HANDSHAKE_TIMEOUT)),
    ]


def channel_options(target: str = "") -> list[tuple[str, Any]]:
    """Give the options of a channel to `target`.

    Unary calls are retried while the server is UNAVAILABLE. A target on this machine is never
    reached through a proxy, whatever the environment says.
    """
    options: list[tuple[str, Any]] = [
        ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.max_pings_without_data", 0),
    ]
    if is_local(target):
        options.append(("grpc.enable_http_proxy", 0))
    return options
