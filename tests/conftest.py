"""The model that tests run on: SmolLM2, pulled once into a store of the tests' own."""

import asyncio
import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

from headrace_server.store import Store

MODEL = "smollm2:135m"

# How long an example takes says more of a busy machine than of the code.
settings.register_profile("headrace", deadline=None)
settings.load_profile("headrace")

# Who starts the tests in the background, or to outlive a terminal, has these ignored, and so would
# all that the tests start.
for number, handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def model_home() -> Path:
    """A HEADRACE_HOME that has SmolLM2. Shared by all tests: read it, and write nowhere else."""
    default = Path(__file__).parents[1] / ".cache" / "home"
    home = Path(os.environ.get("HEADRACE_TEST_HOME") or default)
    asyncio.run(Store(home).pull(MODEL))
    return home


@pytest.fixture(scope="session")
def smollm2_dir(model_home: Path) -> Path:
    """SmolLM2's model directory."""
    store = Store(model_home)
    return store.path(store.get(MODEL))
