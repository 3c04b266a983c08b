"""W3C trace context over gRPC metadata and over the environment of a child process."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, MutableMapping

from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_PROPAGATOR = TraceContextTextMapPropagator()
_FIELDS = ("traceparent", "tracestate")


def extract(metadata: Iterable[tuple[str, str | bytes]]) -> Context:
    """Give the caller's context from a call's metadata; an empty one if there is none."""
    carrier = {key: value for key, value in metadata if key in _FIELDS and isinstance(value, str)}
    return _PROPAGATOR.extract(carrier, Context())


def headers(context: Context | None = None) -> dict[str, str]:
    """Give the metadata that carries the context; nothing if it has no span."""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier, context)
    return carrier


def inject_env(env: MutableMapping[str, str], context: Context | None = None) -> None:
    """Put the context (the current one if none is given) into a child's environment."""
    for field in _FIELDS:
        env.pop(field.upper(), None)
    for field, value in headers(context).items():
        env[field.upper()] = value


def context_from_env(env: Mapping[str, str] | None = None) -> Context:
    """Give the context that the parent process left in the environment."""
    env = os.environ if env is None else env
    return extract((field, env[field.upper()]) for field in _FIELDS if field.upper() in env)
