"""Certificates of an authority of one's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.cli.authority import Authority

LOCAL = ("localhost", "127.0.0.1")


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    """A directory with an authority, and a server's and a client's certificate by it."""
    directory = tmp_path / "certificates"
    directory.mkdir()
    authority = Authority(directory)
    authority.issue("server", LOCAL, 1, server=True)
    authority.issue("client", ("somebody",), 1, server=False)
    return directory
