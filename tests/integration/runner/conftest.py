"""Runners to talk to: one on SmolLM2 for all tests, and small ones for a test of its own."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import pytest

from headrace_runner.convert.gguf_import import import_gguf
from tests.integration.runner.api import MODEL, Api, connected
from tests.integration.runner.child import Child, serving
from tests.unit.convert.tiny import write_gguf

CONTEXT = 100_000
"""Tokens that the tiny model claims to hold, so that its streams can be long."""

FRESH = 1024
"""Tokens that the `fresh` runner holds."""
EXACT = ("--dtype", "float32")
"""What answers are compared with is computed in float32 by mlx-lm."""


@pytest.fixture(scope="session")
def smollm2_runner(model_home: Path, smollm2_dir: Path) -> Iterator[Child]:
    arguments = ("--name", MODEL, "--digest", "sha256:abc")
    with serving(model_home, smollm2_dir, *arguments, *EXACT) as child:
        yield child
        assert child.process.poll() is None, child.log


@pytest.fixture
async def api(smollm2_runner: Child) -> AsyncIterator[Api]:
    """SmolLM2's runner, which every test leaves alive and with nothing to do."""
    async with connected(smollm2_runner.address) as api:
        yield api
        await api.idle()


@pytest.fixture(scope="session")
def fresh_runner(model_home: Path, smollm2_dir: Path) -> Iterator[Child]:
    arguments = ("--name", MODEL, "--prefix-cache", "0", "--no-drafts", "--context", str(FRESH))
    program = "tests.integration.runner.faulty"
    with serving(model_home, smollm2_dir, *arguments, *EXACT, program=program) as child:
        yield child
        assert child.process.poll() is None, child.log


@pytest.fixture
async def fresh(fresh_runner: Child) -> AsyncIterator[Api]:
    """Another process on SmolLM2: to it every prompt is new, and every token gets its own step.

    A request called `FAULTY` fails in it.
    """
    async with connected(fresh_runner.address) as api:
        yield api
        await api.idle()


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of two layers that talks nonsense at a thousand tokens a second."""
    folder = tmp_path_factory.mktemp("tiny")
    write_gguf(folder / "tiny.gguf", matrices="F32", embedding="F32")
    model_dir = folder / "model"
    model_dir.mkdir()
    import_gguf(folder / "tiny.gguf", model_dir, lambda phase, done, total: None)
    config = model_dir / "config.json"
    settings = json.loads(config.read_text()) | {"max_position_embeddings": CONTEXT}
    config.write_text(json.dumps(settings))
    return model_dir


@pytest.fixture(scope="session")
def tiny_runner(model_home: Path, tiny_dir: Path) -> Iterator[Child]:
    arguments = ("--name", MODEL, "--digest", "sha256:abc")
    places = ("--max-concurrency", "2", "--max-waiting", "1")
    with serving(model_home, tiny_dir, *arguments, *places) as child:
        yield child
        assert child.process.poll() is None, child.log


@pytest.fixture
async def tiny(tiny_runner: Child) -> AsyncIterator[Api]:
    """The runner of the tiny model; two requests at once, one waiting."""
    async with connected(tiny_runner.address) as api:
        yield api
        await api.idle()


class ServeTiny(Protocol):
    def __call__(self, *arguments: str) -> AbstractContextManager[Child]: ...


@pytest.fixture
def serve_tiny(model_home: Path, tiny_dir: Path) -> ServeTiny:
    """Starts a runner on the tiny model, with these further arguments."""
    return lambda *arguments: serving(model_home, tiny_dir, "--name", MODEL, *arguments)
