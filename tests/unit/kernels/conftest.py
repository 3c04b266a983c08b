"""What tests of the kernels share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    """Path and threads are the process's: each test leaves them as they were."""
    kernels = pytest.importorskip("headrace_kernels")
    path, threads = kernels.path(), kernels.threads()
    yield
    kernels.use(path)
    kernels.set_threads(threads)
