"""Drivers of every SDK whose toolchain is here, and what they are tried against."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from headrace.cli.authority import Authority
from tests.conformance.drivers import SDKS, Driver, Sdk
from tests.conformance.scripted import Scripted
from tests.e2e.harness import MODEL, Controller

PAINTER = "emoji:64"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@cache
def _built(sdk: Sdk) -> None:
    sdk.build()


def _parameters() -> Iterator[object]:
    """Python's is tried by every run of the tests, the others where toolchains are."""
    for sdk in SDKS:
        marks = [] if sdk.name == "python" else [pytest.mark.toolchain, pytest.mark.timeout(900)]
        yield pytest.param(sdk, id=sdk.name, marks=marks)


@pytest.fixture(scope="session", params=_parameters())
def driver(request: pytest.FixtureRequest) -> Iterator[Driver]:
    """One of each SDK."""
    sdk: Sdk = request.param
    if missing := sdk.missing():
        pytest.skip(f"{sdk.name} needs {' and '.join(missing)}")
    _built(sdk)
    with Driver(sdk) as running:
        yield running


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a server, of a client, and of a client whom nobody knows."""
    directory = tmp_path_factory.mktemp("tls")
    authority = Authority(directory)
    authority.issue("server", ("localhost", "127.0.0.1"), 1, server=True)
    authority.issue("client", ("somebody",), 1, server=False)
    stranger = directory / "stranger"
    stranger.mkdir()
    Authority(stranger).issue("client", ("nobody",), 1, server=False)
    return directory


def of_client(certificates: Path, who: Path | None = None) -> dict[str, str]:
    """The files of a client as drivers take them; `who`: the directory of its certificate."""
    own = who or certificates
    files = {"ca": certificates / "ca.crt", "cert": own / "client.crt", "key": own / "client.key"}
    return {name: str(path) for name, path in files.items()}


@pytest.fixture(scope="session")
def plain(drawing_home: Path) -> Iterator[Controller]:
    """A controller on loopback, for everybody."""
    with Controller(drawing_home, "--preload", MODEL, listen="127.0.0.1:0") as running:
        yield running


@pytest.fixture(scope="session")
def scripted() -> Iterator[Scripted]:
    """What does what no healthy controller does."""
    with Scripted() as running:
        yield running
