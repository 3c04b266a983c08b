"""The file of tokens."""

from __future__ import annotations

import json
import stat
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.rpc.tokens import (
    PREFIX,
    Tokens,
    TokensError,
    new_token,
    parse_tokens,
    read_tokens,
    write_tokens,
)


def test_a_token_is_found_by_its_secret_alone() -> None:
    made = [new_token(["infer"], name=str(number)) for number in range(3)]
    tokens = Tokens(tuple(token for token, _ in made))
    for token, secret in made:
        assert secret.startswith(f"{PREFIX}{token.id}_")
        assert tokens.find(secret) is token
        assert tokens.find(secret + "x") is None
        assert tokens.find(token.sha256) is None
    assert tokens.find("") is None
    assert len({secret for _, secret in made}) == 3


def test_the_file_has_no_secret_and_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "tokens.json"
    token, secret = new_token(
        ["manage", "infer"], name="é", max_requests=2, tokens_per_minute=60_000
    )
    write_tokens(path, Tokens((token,)))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert secret not in path.read_text()
    assert secret.rpartition("_")[2] not in path.read_text()
    assert read_tokens(path) == Tokens((token,))
    assert token.scopes == ("infer", "manage")
    assert [*path.parent.iterdir()] == [path]


def test_expiry() -> None:
    now = datetime.now(UTC)
    token, _ = new_token(["infer"], expires_at=(now + timedelta(hours=1)).isoformat())
    assert not token.has_expired(now)
    assert token.has_expired(now + timedelta(hours=1))
    assert not new_token(["infer"])[0].has_expired(now + timedelta(days=36500))


def test_revoking_an_id_that_is_none_revokes_nothing() -> None:
    (one, _), (two, _) = new_token(["infer"]), new_token(["infer"])
    tokens = Tokens((one, two))
    assert tokens.without([one.id]) == Tokens((two,))
    with pytest.raises(TokensError, match="nobody"):
        tokens.without([one.id, "nobody"])


def entry(**changes: Any) -> str:
    token, _ = new_token(["infer"])
    known = {"id": token.id, "sha256": token.sha256, "scopes": ["infer"], **changes}
    return json.dumps({"schema": 1, "tokens": [known]})


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no file of tokens"),
        ("[]", "schema 1"),
        ('{"schema": 2, "tokens": []}', "schema 1"),
        ('{"schema": 1}', "tokens"),
        ('{"schema": 1, "tokens": [1]}', "entry 0"),
        (entry(scopes=["all"]), "all is no scope"),
        (entry(sha256="x" * 64), "sha256"),
        (entry(id=7), "texts"),
        (entry(expires_at="soon"), "soon"),
        (entry(max_requests=0), "max_requests"),
        (entry(max_requests=True), "max_requests"),
        (entry(tokens_per_minute=1.5), "tokens_per_minute"),
        (entry(colour="red"), "colour"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(text: str, why: str) -> None:
    with pytest.raises(TokensError, match=why):
        parse_tokens(text)


def test_two_tokens_of_one_id_are_refused() -> None:
    whole = json.loads(entry())
    whole["tokens"] *= 2
    with pytest.raises(TokensError, match="one id"):
        parse_tokens(json.dumps(whole))


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists) | st.text())
def test_no_text_makes_it_fail_otherwise(value: Any) -> None:
    for text in (json.dumps(value), str(value), json.dumps({"schema": 1, "tokens": value})):
        with suppress(TokensError):
            parse_tokens(text)
