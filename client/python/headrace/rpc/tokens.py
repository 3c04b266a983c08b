"""Bearer tokens: the file that has them, what each may do, and how much of it.

The file has hashes, not tokens. A token is 256 random bits, so that a plain SHA-256 of it cannot be
guessed back; hashes for passwords would only make each call slower.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

SCOPES: Final = ("infer", "observe", "manage")
"""What a token may do: use models; see what runs; change what there is."""

MOST: Final = 10**9
"""Of any limit."""

PREFIX: Final = "hr_"
"""Of every token: so that one that was left lying about is found by those who scan for such."""

_SECRET_BYTES: Final = 32
_ID_BYTES: Final = 4
_SCHEMA: Final = 1
_MAX_FILE_BYTES: Final = 4 << 20


class TokensError(Exception):
    """The file of tokens cannot be used; says why."""


@dataclass(frozen=True, slots=True)
class Token:
    """One token, without the secret itself."""

    id: str
    sha256: str
    """Of the whole token, in hex."""
    scopes: tuple[str, ...]
    name: str = ""
    """Whose it is, in words."""
    created_at: str = ""
    """RFC 3339, UTC."""
    expires_at: str | None = None
    """RFC 3339; None: never."""
    max_requests: int | None = None
    """At once; None: no limit."""
    tokens_per_minute: int | None = None
    """Of prompts and outputs together, on the average; None: no limit."""

    def has_expired(self, now: datetime) -> bool:
        """Whether it is over at `now`."""
        return self.expires_at is not None and _time(self.expires_at) <= now


@dataclass(frozen=True, slots=True)
class Tokens:
    """All tokens of a file."""

    tokens: tuple[Token, ...] = field(default_factory=tuple)

    def find(self, secret: str) -> Token | None:
        """The one that `secret` is. Takes the same time whichever it is, and whether it is one."""
        digest = _digest(secret)
        found = None
        for token in self.tokens:
            if hmac.compare_digest(digest, token.sha256):
                found = token
        return found

    def without(self, ids: Iterable[str]) -> Tokens:
        """The others. Raises TokensError for an id that is none."""
        gone = set(ids)
        if unknown := gone - {token.id for token in self.tokens}:
            raise TokensError(f"there is no token {', '.join(sorted(unknown))}")
        return Tokens(tuple(token for token in self.tokens if token.id not in gone))


def new_token(
    scopes: Sequence[str],
    *,
    name: str = "",
    expires_at: str | None = None,
    max_requests: int | None = None,
    tokens_per_minute: int | None = None,
) -> tuple[Token, str]:
    """A fresh token, and its secret, which is nowhere else."""
    identity = secrets.token_hex(_ID_BYTES)
    secret = f"{PREFIX}{identity}_{secrets.token_urlsafe(_SECRET_BYTES)}"
    now = datetime.now(UTC).isoformat(timespec="seconds")
    token = Token(
        identity,
        _digest(secret),
        tuple(scope for scope in SCOPES if scope in scopes),
        name=name,
        created_at=now,
        expires_at=expires_at,
        max_requests=max_requests,
        tokens_per_minute=tokens_per_minute,
    )
    return token, secret


def parse_tokens(text: str) -> Tokens:
    """The tokens in a file's text. Raises TokensError naming what is wrong."""
    try:
        whole = json.loads(text)
        if not isinstance(whole, dict) or whole.get("schema") != _SCHEMA:
            raise TokensError(f"it is no file of tokens of schema {_SCHEMA}")
        tokens = tuple(_token(number, entry) for number, entry in enumerate(whole["tokens"]))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise TokensError(f"it is no file of tokens: {error}") from error
    if len({token.id for token in tokens}) != len(tokens):
        raise TokensError("two tokens have one id")
    return Tokens(tokens)


def read_tokens(path: Path) -> Tokens:
    """The tokens of a file. Raises TokensError."""
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise TokensError(f"{path}: it has more than {_MAX_FILE_BYTES} bytes")
        return parse_tokens(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TokensError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise TokensError(f"{path}: it is no text") from error
    except TokensError as error:
        raise TokensError(f"{path}: {error}") from None


def write_tokens(path: Path, tokens: Tokens) -> None:
    """Put the file there, whole or not at all, for its owner's eyes only. Raises OSError."""
    path = path.resolve()  # A link stays one.
    path.parent.mkdir(parents=True, exist_ok=True)
    owner = path.stat() if path.exists() else None
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    entries = [asdict(token) for token in tokens.tokens]
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            if owner is not None and os.geteuid() == 0:
                # The server has to read it, also when root has changed it.
                os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
            json.dump({"schema": _SCHEMA, "tokens": entries}, file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def _token(number: int, entry: object) -> Token:
    if not isinstance(entry, dict):
        raise TypeError(f"entry {number} is no object")
    try:
        token = Token(**{**entry, "scopes": tuple(entry["scopes"])})
    except TypeError as error:
        raise TypeError(f"entry {number}: {error}") from error
    texts = (token.id, token.sha256, token.name, token.created_at, *token.scopes)
    if not all(isinstance(text, str) for text in texts) or not token.id:
        raise TypeError(f"entry {number}: id, sha256, name, created_at and scopes are texts")
    if len(token.sha256) != 64 or not set(token.sha256) <= set("0123456789abcdef"):
        raise ValueError(f"entry {number}: sha256 is none")
    if wrong := set(token.scopes) - set(SCOPES):
        known = ", ".join(SCOPES)
        raise ValueError(f"entry {number}: {min(wrong)} is no scope; there are {known}")
    if token.expires_at is not None:
        _time(token.expires_at)
    for key in ("max_requests", "tokens_per_minute"):
        value = getattr(token, key)
        if value is not None and (type(value) is not int or not 1 <= value <= MOST):
            raise ValueError(f"entry {number}: {key} is no whole number from 1 to {MOST}")
    return token


def _time(text: str) -> datetime:
    found = datetime.fromisoformat(text)
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
