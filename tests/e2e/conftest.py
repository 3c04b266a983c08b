"""Controllers to test with: one that all tests share, and any number of one's own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc.aio
import pytest

from headrace.client import Client
from headrace_server.store import Store
from tests.e2e.harness import (
    MODEL,
    Controller,
    Place,
    StartController,
    aio_channel,
    borrow_home,
)
from tests.e2e.receiver import Receiver
from tests.unit.convert.tiny import write_gguf

TINY = "tiny:q4"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 100,000 random weights, as a file to import."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path)
    return path


@pytest.fixture(scope="session")
def shared_home(
    model_home: Path, tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A store with SmolLM2 and `tiny:q4` that tests only read."""
    home = borrow_home(model_home, tmp_path_factory.mktemp("shared") / "home")
    asyncio.run(Store(home).import_model(tiny_gguf, TINY))
    return home


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    """Where a module's processes may send what they have to tell."""
    made = Receiver()
    yield made
    made.close()


@pytest.fixture
def home(shared_home: Path, tmp_path: Path) -> Path:
    """A store of one's own with SmolLM2 and `tiny:q4`."""
    return borrow_home(shared_home, tmp_path / "home")


@pytest.fixture(scope="session")
def controller(shared_home: Path) -> Iterator[Controller]:
    """The controller that all tests share. It serves SmolLM2 and is not to be killed."""
    with Controller(shared_home, "--preload", MODEL, listen="127.0.0.1:0") as running:
        yield running


@pytest.fixture
def start(shared_home: Path) -> Iterator[StartController]:
    """Starts controllers; they end with the test."""
    with ExitStack() as stack:

        def _start(*arguments: str, home: Path = shared_home, **options: object) -> Controller:
            started = Controller(home, *arguments, **options)  # type: ignore[arg-type]
            stack.enter_context(started)
            stack.callback(lambda: print(started.log_text()[-8000:]))  # shown where a test fails
            return started

        yield _start


@pytest.fixture
def place(shared_home: Path) -> Iterator[Place]:
    """Where the command line finds no controller."""
    here = Place(shared_home)
    yield here
    here.close()


@pytest.fixture
def client(controller: Controller) -> Iterator[Client]:
    """The SDK, at the shared controller."""
    with Client(controller.target) as made:
        yield made


@pytest.fixture
async def channel(controller: Controller) -> AsyncIterator[grpc.aio.Channel]:
    """A bare channel to the shared controller."""
    async with aio_channel(controller.target) as made:
        yield made
