"""Pulling a GGUF file from an address, and from a store of Ollama's."""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path

import pytest

from headrace.errors import (
    InvalidRequest,
    ModelCorrupt,
    ModelNotFound,
    SourceUnavailable,
    UnsupportedModel,
)
from headrace_server.store import Progress, PullOptions, Store
from headrace_server.store.sources import ollama
from headrace_server.store.sources.reference import OllamaSource
from tests.hub import Fault, Hub
from tests.integration.store.sources import partials
from tests.stores import visible

PATH = "/files/Tiny_Model.Q4_1.gguf"
LICENSE = "\n  Tiny Community License\n\nYou may …\n"


async def test_a_file_from_an_address(server: Hub, tmp_path: Path, tiny_gguf: Path) -> None:
    data = server.files[PATH] = tiny_gguf.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    options = PullOptions(sha256=sha256)
    store = Store(tmp_path / "home")
    seen: list[Progress] = []
    manifest = await store.pull(f"{server.url}{PATH}?sig=s3cret#here", seen.append, options)
    assert manifest.full_name == "tiny_model.q4_1:latest"
    assert manifest.source == f"{server.url}{PATH}@sha256:{sha256}"
    store.verify(manifest)
    assert (seen[-1].phase, server.sent) == ("verify", len(data))
    assert [p for p in seen if p.phase == "download"][-1].total == len(data)
    assert "s3cret" in server.asked[0].path
    assert await store.pull(f"{server.url}{PATH}", options=options) == manifest
    assert len(server.asked) == 1


@pytest.mark.usefixtures("impatient")
async def test_a_file_that_is_another_is_thrown_away(
    server: Hub, tmp_path: Path, tiny_gguf: Path
) -> None:
    server.files[PATH] = tiny_gguf.read_bytes()
    store = Store(tmp_path / "home")
    with pytest.raises(ModelCorrupt, match=r"not 0000.*thrown away"):
        await store.pull(f"{server.url}{PATH}", options=PullOptions(sha256="0" * 64))
    assert not partials(tmp_path / "home")
    server.fail(PATH, *[Fault(status=500)] * 3)
    with pytest.raises(SourceUnavailable, match="HTTP 500") as caught:
        await store.pull(f"{server.url}{PATH}?sig=s3cret", options=PullOptions(sha256="0" * 64))
    assert "s3cret" not in str(caught.value) + str(caught.value.metadata)
    assert store.list() == []


class Ollama:
    """A store of Ollama's, as it writes it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        (home / "blobs").mkdir(parents=True)

    def blob(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        (self.home / "blobs" / f"sha256-{digest}").write_bytes(data)
        return f"sha256:{digest}"

    def put(self, path: str, layers: list[tuple[str, bytes]]) -> None:
        manifest = self.home / "manifests" / path
        manifest.parent.mkdir(parents=True, exist_ok=True)
        listed = [
            {
                "mediaType": f"application/vnd.ollama.image.{kind}",
                "digest": self.blob(data),
                "size": len(data),
            }
            for kind, data in layers
        ]
        manifest.write_text(json.dumps({"schemaVersion": 2, "layers": listed}))


@pytest.fixture
def olla(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_gguf: Path) -> Ollama:
    found = Ollama(tmp_path / "ollama")
    monkeypatch.setenv("OLLAMA_MODELS", str(found.home))
    layers = [
        ("model", tiny_gguf.read_bytes()),
        ("template", b"{{ .Prompt }}"),
        ("license", LICENSE.encode()),
        ("params", b'{"stop": ["<|end|>"]}'),
    ]
    found.put("registry.ollama.ai/library/tiny/1b", layers)
    found.put("registry.ollama.ai/library/tiny/lora", [*layers, ("adapter", b"lora")])
    found.put("hf.co/acme/Tiny-GGUF/Q4_1", layers[1:])
    return found


async def test_a_model_of_ollama(olla: Ollama, tmp_path: Path) -> None:
    store = Store(tmp_path / "home")
    seen: list[Progress] = []
    manifest = await store.pull("ollama:tiny:1b", seen.append)
    assert manifest.full_name == "tiny:1b"
    assert manifest.source.startswith("ollama:tiny:1b@sha256:")
    assert manifest.license == "mit"  # The file's own, before the title of a text.
    named = OllamaSource("registry.ollama.ai", "library", "tiny", "1b")
    assert ollama.find(named, ollama.ollama_home()).license == "Tiny Community License"
    assert manifest.chat_template is not None
    assert "for m in messages" in manifest.chat_template
    store.verify(manifest)
    assert "download" not in {progress.phase for progress in seen}
    assert await store.pull("ollama:tiny:1b") == manifest
    assert not [path for path in visible(tmp_path / "home") if path.startswith("downloads")]


async def test_what_cannot_be_taken_from_ollama(olla: Ollama, tmp_path: Path) -> None:
    store = Store(tmp_path / "home")
    with pytest.raises(ModelNotFound, match=r"Ollama has .*tiny:1b, .*tiny:lora"):
        await store.pull("ollama:tiny")
    with pytest.raises(UnsupportedModel, match="an adapter"):
        await store.pull("ollama:tiny:lora")
    with pytest.raises(UnsupportedModel, match="0 files of weights"):
        await store.pull("ollama:hf.co/acme/Tiny-GGUF:Q4_1")
    for path in ("../../secret", "tiny:../x", "/etc/passwd", "a/b/c/d", ""):
        with pytest.raises(InvalidRequest, match="no model of Ollama"):
            await store.pull(f"ollama:{path}")
    manifest = olla.home / "manifests/registry.ollama.ai/library/tiny/1b"
    text = manifest.read_text()
    for damaged in (text[:50], "[]", text.replace("sha256:", "sha256:../../../")):
        manifest.write_text(damaged)
        with pytest.raises(ModelCorrupt, match="is damaged"):
            await store.pull("ollama:tiny:1b")
    manifest.write_text(text)
    (weights,) = (p for p in (olla.home / "blobs").iterdir() if p.read_bytes()[:4] == b"GGUF")
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ModelCorrupt, match="not the digest"):
        await store.pull("ollama:tiny:1b")
    weights.write_bytes(data[:-1])
    with pytest.raises(ModelCorrupt, match="cut off"):
        await store.pull("ollama:tiny:1b")
    assert store.list() == []


async def test_a_cancelled_check_ends_soon(
    olla: Ollama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ollama, "_CHUNK_BYTES", 1)
    begun = asyncio.Event()
    pulling = asyncio.create_task(
        Store(tmp_path / "home").pull(
            "ollama:tiny:1b", lambda p: begun.set() if p.phase == "verify" else None
        )
    )
    async with asyncio.timeout(20):
        await begun.wait()
        pulling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pulling
    assert Store(tmp_path / "home").list() == []
