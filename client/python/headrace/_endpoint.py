"""How a client reaches a server: where it is, by TLS or not, and as whom. Opens nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from headrace._target import DEFAULT_TARGET, HTTP, HTTPS, is_local, resolve_target
from headrace.errors import InvalidRequest
from headrace.rpc.options import channel_options


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server and the way to it."""

    target: str
    """As gRPC takes it."""
    credentials: grpc.ChannelCredentials | None = None
    """For TLS; None: the connection is not encrypted."""
    metadata: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    """What every call carries."""

    @classmethod
    def resolve(
        cls,
        target: str | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        token: str | None = None,
        env: Mapping[str, str] = os.environ,
    ) -> Endpoint:
        """By the arguments of a client; what they leave open the environment says.

        Raises InvalidRequest for a token that would travel in the clear, and for files that cannot
        be read.
        """
        where = target or env.get("HEADRACE_HOST") or DEFAULT_TARGET
        host = resolve_target(where)
        if where.lower().startswith((HTTPS, HTTP)) and "/" in host:
            raise InvalidRequest(f"{where} has a path, and there is none; write https://host:port")
        if where.lower().startswith(HTTPS) and credentials is None:
            credentials = _credentials(env)
        if credentials is None and not is_local(host) and env.get("HEADRACE_TLS_CA"):
            raise InvalidRequest(
                f"HEADRACE_TLS_CA is set, and {host} would be spoken to in the clear; write "
                f"https://{host}, or unset it"
            )
        secret = _secret(env.get("HEADRACE_TOKEN", "") if token is None else token)
        if not secret:
            return cls(host, credentials)
        if credentials is None and not is_local(host):
            raise InvalidRequest(
                f"the token would travel to {host} in the clear; connect to https://{host}, or "
                "unset HEADRACE_TOKEN"
            )
        return cls(host, credentials, (("authorization", f"Bearer {secret}"),))

    @property
    def options(self) -> list[tuple[str, object]]:
        """Of its channel."""
        return channel_options(self.target)


def _secret(token: str) -> str:
    """The token as it is sent: what a file or a header may have around it is left out."""
    token = token.strip()
    if token.lower().startswith("bearer "):
        token = token[len("bearer ") :].strip()
    if not token.isascii() or not token.isprintable() or " " in token:
        raise InvalidRequest("the token has characters that none has; look at HEADRACE_TOKEN")
    return token


def _credentials(env: Mapping[str, str]) -> grpc.ChannelCredentials:
    """Of TLS: HEADRACE_TLS_CA, else the authorities that gRPC knows; and a client's certificate
    where HEADRACE_CLIENT_CERT and HEADRACE_CLIENT_KEY name one."""
    authority, key, chain = (
        _read(env, name)
        for name in ("HEADRACE_TLS_CA", "HEADRACE_CLIENT_KEY", "HEADRACE_CLIENT_CERT")
    )
    if (key is None) != (chain is None):
        raise InvalidRequest("HEADRACE_CLIENT_CERT and HEADRACE_CLIENT_KEY go together; set both")
    return grpc.ssl_channel_credentials(authority, key, chain)


def _read(env: Mapping[str, str], name: str) -> bytes | None:
    path = env.get(name)
    if not path:
        return None
    try:
        return Path(path).expanduser().read_bytes()
    except (OSError, RuntimeError) as error:
        raise InvalidRequest(f"{name} names a file that cannot be read: {error}") from error
