"""The models that tests run on, pulled once into stores of the tests' own."""

import asyncio
import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

from headrace.errors import SourceUnavailable
from headrace_server.store import Store
from tests.blas import open_blas
from tests.e2e.harness import borrow_home
from tests.examples import examples

MODEL = "smollm2:135m"
MINILM = "minilm:l6"
PAINTER = "emoji:64"


def _test_home() -> Path:
    default = Path(__file__).parents[1] / ".cache" / "home"
    return Path(os.environ.get("HEADRACE_TEST_HOME") or default)


open_blas(_test_home())

# How long an example takes says more of a busy machine than of the code.
settings.register_profile("headrace", deadline=None, max_examples=examples(100))
settings.load_profile("headrace")

# Who starts the tests in the background, or to outlive a terminal, has these ignored, and so would
# all that the tests start.
for number, handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if getattr(getattr(item, "obj", None), "is_hypothesis_test", False):
            item.add_marker("property")


@pytest.fixture(scope="session")
def model_home() -> Path:
    """A HEADRACE_HOME that has SmolLM2. Shared by all tests: read it, and write nowhere else."""
    home = _test_home()
    asyncio.run(Store(home).pull(MODEL))
    return home


@pytest.fixture(scope="session")
def drawing_home(model_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A HEADRACE_HOME that has SmolLM2 and the model that draws. Only read it."""
    home = borrow_home(model_home, tmp_path_factory.mktemp("drawing") / "home")
    try:
        asyncio.run(Store(home).pull(PAINTER))
    except SourceUnavailable:
        pytest.skip(f"this checkout has no weights of {PAINTER}")
    return home


@pytest.fixture(scope="session")
def minilm_home() -> Path:
    """A HEADRACE_HOME that has MiniLM and nothing else, beside that of SmolLM2, whose store tests
    expect to have one model. Read it, and write nowhere else."""
    home = _test_home().with_name("minilm")
    asyncio.run(Store(home).pull(MINILM))
    return home


@pytest.fixture(scope="session")
def smollm2_dir(model_home: Path) -> Path:
    """SmolLM2's model directory."""
    store = Store(model_home)
    return store.path(store.get(MODEL))
