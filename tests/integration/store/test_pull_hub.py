"""Pulling from a hub: the real client of the hub, against a server that speaks its HTTP."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import psutil
import pytest

from headrace.errors import (
    HeadraceError,
    InsufficientDisk,
    InvalidRequest,
    ModelCorrupt,
    ModelNotFound,
    SourceUnavailable,
    UnsupportedModel,
)
from headrace_server.store import Progress, PullOptions, Store
from tests.hub import COMMIT, Fault, Hub, Repo, git_sha1
from tests.integration.store.sources import nobody_downloads, partials
from tests.stores import visible

REPO = "acme/Tiny-Llama-4bit"
MODEL = f"hf:{REPO}"
NAME = "tiny-llama-4bit:latest"
WEIGHTS = "/blobs/"


def slow(*values: object) -> Any:
    """A case for those who have time."""
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.fixture
def repo(server: Hub, tiny_files: dict[str, bytes]) -> Repo:
    server.repos[REPO] = Repo(dict(tiny_files))
    return server.repos[REPO]


def key_of(data: bytes, *, lfs: bool) -> str:
    """The name of a file among the downloads."""
    return hashlib.sha256(data).hexdigest() if lfs else f"git-{git_sha1(data)}"


async def test_pulled_once_with_its_commit(repo: Repo, server: Hub, tmp_path: Path) -> None:
    home = tmp_path / "home"
    store = Store(home)
    seen: list[Progress] = []
    manifest = await store.pull(MODEL, seen.append)
    assert manifest == store.get(NAME)
    assert manifest.source == f"hf:{REPO}@{COMMIT}"
    assert manifest.license == "apache-2.0"
    store.verify(manifest)
    wanted = {path for path in repo.files if "/" not in path and path[-3:] not in ("bin", ".py")}
    fetched = {asked.path.rpartition("/")[2] for asked in server.asked if "/resolve/" in asked.path}
    assert fetched == {file.path for file in manifest.files} == wanted
    total = sum(len(repo.files[path]) for path in wanted)
    of_download = [(p.done, p.total) for p in seen if p.phase == "download"]
    assert of_download[0] == (0, total)
    assert of_download[-1] == (total, total)
    assert server.sent == total
    assert not [path for path in visible(home) if path.startswith(("downloads/", "tmp/"))]

    server.asked.clear()
    assert await store.pull(f"https://huggingface.co/{REPO}") == manifest
    copied = await store.pull(MODEL, options=PullOptions(name="other:v1"))
    assert (copied.full_name, copied.digest) == ("other:v1", manifest.digest)
    assert {asked.path.partition("?")[0] for asked in server.asked} == {
        f"/api/models/{REPO}/revision/main"
    }


@pytest.mark.slow
async def test_a_branch_that_moved_replaces_the_model(repo: Repo, server: Hub, home: Path) -> None:
    store = Store(home)
    first = await store.pull(MODEL)
    repo.files["README.md"] = b"---\nlicense: mit\n---\n"
    repo.commit = "f" * 40
    second = await store.pull(MODEL)
    assert second.full_name == first.full_name
    assert (second.source, second.license) == (f"hf:{REPO}@{'f' * 40}", "mit")
    own = store.get("tiny:q4")
    assert store.list() == [second, own]
    pinned = await store.pull(f"{MODEL}@{'f' * 40}")
    assert pinned.full_name == f"tiny-llama-4bit:{'f' * 12}"

    with pytest.raises(InvalidRequest, match=r"tiny:q4 from tiny\.gguf") as caught:
        await store.pull(MODEL, options=PullOptions(name="tiny:q4"))
    assert caught.value.violations[0].field == "name"
    assert store.get("tiny:q4") == own


@pytest.mark.slow
async def test_one_gguf_of_several_is_chosen(server: Hub, tmp_path: Path, tiny_gguf: Path) -> None:
    data = tiny_gguf.read_bytes()
    server.repos["acme/Tiny-GGUF"] = Repo(
        {"Tiny.Q4_1.gguf": data, "Tiny.Q8_0.gguf": b"GGUF", "README.md": b""}, license="mit"
    )
    store = Store(tmp_path / "home")
    with pytest.raises(InvalidRequest, match=r"Tiny\.Q4_1\.gguf .*Tiny\.Q8_0\.gguf") as caught:
        await store.pull("hf:acme/Tiny-GGUF")
    assert caught.value.violations[0].field == "files"
    assert server.sent == 0
    other = PullOptions(files=("*Q4*",), sha256="0" * 64)
    with pytest.raises(ModelCorrupt, match="nothing was fetched"):
        await store.pull("hf:acme/Tiny-GGUF", options=other)
    chosen = PullOptions(files=("*Q4*",), sha256=hashlib.sha256(data).hexdigest().upper())
    manifest = await store.pull("hf:acme/Tiny-GGUF", options=chosen)
    assert manifest.full_name == "tiny.q4_1:latest"
    assert manifest.source == f"hf:acme/Tiny-GGUF/Tiny.Q4_1.gguf@{COMMIT}"
    assert server.sent == len(data)


@pytest.mark.slow
async def test_two_pulls_at_once_download_once(repo: Repo, server: Hub, tmp_path: Path) -> None:
    home = tmp_path / "home"
    first, second = await asyncio.gather(Store(home).pull(MODEL), Store(home).pull(MODEL))
    assert first == second
    assert len(server.starts(WEIGHTS)) == 1


@pytest.mark.slow
async def test_a_cancelled_pull_stops_at_once_and_the_next_goes_on(
    repo: Repo, server: Hub, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    server.fail(WEIGHTS, Fault(hang=20_000))
    before = psutil.Process().children(recursive=True)
    arrived = asyncio.Event()
    first = asyncio.create_task(
        Store(home).pull(MODEL, lambda p: arrived.set() if p.done >= 20_000 else None)
    )
    async with asyncio.timeout(60):
        await arrived.wait()
    seen: list[Progress] = []
    second = asyncio.create_task(Store(home).pull(MODEL, seen.append))
    first.cancel()
    async with asyncio.timeout(5):
        with pytest.raises(asyncio.CancelledError):
            await first
    store = Store(home)
    store.verify(await second)
    assert server.starts(WEIGHTS) == [0, 20_000]
    started = next(p.done for p in seen if p.phase == "download")
    assert started >= 20_000
    assert set(psutil.Process().children(recursive=True)) <= set(before)


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
async def test_what_passes_is_tried_again(repo: Repo, server: Hub, tmp_path: Path) -> None:
    server.fail("/api/models/", Fault(status=503), Fault(status=429, headers={"Retry-After": "0"}))
    server.fail("config.json", Fault(status=500), Fault(status=429))
    server.fail(WEIGHTS, Fault(cut=5_000), Fault(status=502))
    store = Store(tmp_path / "home")
    store.verify(await store.pull(MODEL))
    assert server.starts(WEIGHTS) == [0, 5_000, 5_000]
    assert server.sent == sum(len(repo.files[f.path]) for f in store.get(NAME).files)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("part", "fault", "kind", "words", "retry_after"),
    [
        ("/api/", Fault(status=429, headers={"Retry-After": "900"}), SourceUnavailable, "429", 900),
        slow(WEIGHTS, Fault(status=503), SourceUnavailable, "HTTP 503", 5.0),
        (WEIGHTS, Fault(wrong=True), ModelCorrupt, r"SHA-256.*thrown away", None),
        slow("/config.json", Fault(wrong=True), ModelCorrupt, r"Git's SHA-1.*thrown away", None),
    ],
)
async def test_what_does_not_pass(
    repo: Repo,
    server: Hub,
    tmp_path: Path,
    part: str,
    fault: Fault,
    kind: type[HeadraceError],
    words: str,
    retry_after: float | None,
) -> None:
    server.fail(part, *[fault] * 3)
    with pytest.raises(kind, match=words) as caught:
        await Store(tmp_path / "home").pull(MODEL)
    assert caught.value.retry_after == retry_after
    assert "s3cret" not in str(caught.value)
    left = visible(tmp_path / "home")
    assert not [path for path in left if path.startswith(("models", "snapshots", "tmp/"))]
    if fault.wrong:
        wrong = repo.files["model.safetensors" if part == WEIGHTS else "config.json"]
        assert key_of(wrong, lfs=part == WEIGHTS) not in partials(tmp_path / "home")


@pytest.mark.slow
async def test_who_may_not_read_is_told_how_he_may(
    repo: Repo, server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "home")
    repo.gated, repo.token = True, "hf_rightrightright"
    with pytest.raises(SourceUnavailable, match=r"accept its terms.*HF_TOKEN") as caught:
        await store.pull(MODEL)
    assert caught.value.retry_after is None
    monkeypatch.setenv("HF_TOKEN", "hf_wrongwrongwrong")
    repo.private = True
    with pytest.raises(ModelNotFound, match=r"no repository acme/Tiny.*HF_TOKEN"):
        await store.pull(MODEL)
    # A token that cannot be a header is quoted by the library that refuses it.
    monkeypatch.setenv("HF_TOKEN", "hf_broken\u00e9broken")
    with pytest.raises(HeadraceError) as broken:
        await store.pull(MODEL)
    assert "broken\u00e9" not in str(broken.value)
    monkeypatch.delenv("HF_TOKEN")
    token = Path(os.environ["HF_HOME"], "token")
    token.parent.mkdir(exist_ok=True)
    token.write_text(repo.token)
    server.asked.clear()
    await store.pull(MODEL)
    with_token = {a.path for a in server.asked if repo.token in a.headers.get("authorization", "")}
    assert with_token
    assert with_token == {a.path for a in server.asked if not a.path.startswith(WEIGHTS)}


@pytest.mark.slow
async def test_a_hub_that_is_not_there(
    tmp_path: Path, server: Hub, monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    store = Store(tmp_path / "home")
    with pytest.raises(ModelNotFound, match="no repository acme/none") as missing:
        await store.pull("hf:acme/none")
    assert missing.value.metadata["model"] == "hf:acme/none"
    server.repos[REPO] = Repo({"pytorch_model.bin": b""})
    with pytest.raises(UnsupportedModel, match="pickles"):
        await store.pull(MODEL)
    with pytest.raises(ModelNotFound, match="no branch, tag or commit 'v9'"):
        await store.pull(MODEL, options=PullOptions(revision="v9"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SourceUnavailable, match=r"127\.0\.0\.1:9 cannot be reached") as away:
        await store.pull(MODEL)
    assert away.value.retry_after == 5.0
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SourceUnavailable, match="HF_HUB_OFFLINE") as off:
        await store.pull(MODEL)
    assert off.value.retry_after is None


@pytest.mark.slow
async def test_a_mirror_that_lists_no_sizes(repo: Repo, server: Hub, tmp_path: Path) -> None:
    server.sizes = False
    server.fail(WEIGHTS, Fault(wrong=True))
    store = Store(tmp_path / "home")
    with pytest.raises(ModelCorrupt, match="SHA-256"):
        await store.pull(MODEL)
    store.verify(await store.pull(MODEL))


async def test_a_listing_that_leads_out_of_the_model(
    repo: Repo, server: Hub, tmp_path: Path
) -> None:
    repo.files["model-../../../x.safetensors"] = b"x"
    with pytest.raises(ModelCorrupt, match="nothing was fetched"):
        await Store(tmp_path / "home").pull(MODEL, options=PullOptions(files=("*.safetensors",)))
    assert server.sent == 0


@pytest.mark.slow
async def test_a_model_that_cannot_be_imported_leaves_nothing(
    repo: Repo, server: Hub, tmp_path: Path
) -> None:
    repo.files["config.json"] = b'{"model_type": "frobnicator"}'
    with pytest.raises(UnsupportedModel, match="frobnicator"):
        await Store(tmp_path / "home").pull(MODEL)
    assert visible(tmp_path / "home") == []


async def test_a_disk_that_is_too_small(repo: Repo, server: Hub, tmp_path: Path) -> None:
    # The listing says so much that no disk has room for it.
    huge = server.repos["acme/huge"] = Repo({"model.safetensors": b"x", "config.json": b"{}"})
    huge.says = {"model.safetensors": 1 << 60}
    with pytest.raises(InsufficientDisk, match="remove models") as caught:
        await Store(tmp_path / "home").pull("hf:acme/huge")
    assert int(caught.value.metadata["needs"]) >= 2 << 60
    free = shutil.disk_usage(tmp_path).free
    assert 0.5 < int(caught.value.metadata["free"]) / free < 2
    assert server.sent == 0
    await nobody_downloads(tmp_path / "home")
