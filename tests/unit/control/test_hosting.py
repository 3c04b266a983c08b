"""How runners are hosted: their environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace_server.config import ServerConfig
from headrace_server.hosting import prepare
from tests.unit.host.machines import LINUX_CUDA, MAC

STRATEGY = "GRPC_POLL_STRATEGY"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ServerConfig:
    monkeypatch.delenv(STRATEGY, raising=False)
    return ServerConfig(home=tmp_path)


def test_runners_poll_as_suits_one_connection(config: ServerConfig) -> None:
    assert prepare(LINUX_CUDA, config).environment[STRATEGY] == "poll"
    assert STRATEGY not in prepare(MAC, config).environment


def test_a_user_s_word_on_polling_stands(
    config: ServerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(STRATEGY, "epoll1")
    assert prepare(LINUX_CUDA, config).environment[STRATEGY] == "epoll1"
