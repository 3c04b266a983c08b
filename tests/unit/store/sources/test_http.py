"""Downloads over HTTP, from a server on this machine, in this process."""

from __future__ import annotations

import errno
import hashlib
import os
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from headrace.errors import (
    HeadraceError,
    InsufficientDisk,
    InvalidRequest,
    ModelCorrupt,
    ModelNotFound,
    SourceUnavailable,
)
from headrace_server.store.sources.http import Download, Origin
from headrace_server.store.sources.limits import Limits
from headrace_server.store.sources.partial import Partial
from headrace_server.store.sources.plan import RemoteFile
from tests.hub import Fault, Hub, Repo, git_sha1, hub

LIMITS = Limits(tries=3, backoff=0.01, longest_wait=1.0, stall=0.3, redirects=3)
DATA = random.Random(7).randbytes(100_000)
PATH = "/files/model.gguf"


class Fetching:
    """A download of one file, and what it says."""

    def __init__(self, server: Hub, directory: Path) -> None:
        self.server = server
        self.directory = directory
        self.told: list[tuple[int, int]] = []
        server.files[PATH] = DATA
        self.file = RemoteFile("model.gguf", server.url + PATH, None, _sha256(DATA))

    def run(self, *more: RemoteFile, allow_http: bool = False, conditional: bool = True) -> None:
        origin = Origin("the file", {}, allow_http, netrc=conditional, conditional=conditional)
        download = Download(origin, self.directory, LIMITS, lambda *at: self.told.append(at))
        download.run((self.file, *more))

    @property
    def whole(self) -> bytes:
        return (self.directory / self.file.key).read_bytes()

    @property
    def partial(self) -> Path:
        return self.directory / f"{self.file.key}.partial"


@pytest.fixture
def fetching(tmp_path: Path) -> Iterator[Fetching]:
    with hub() as server:
        yield Fetching(server, tmp_path)


def test_several_files_with_their_total_from_the_first_byte(fetching: Fetching) -> None:
    small = [b"%d" % n * 1000 for n in range(9)]
    more = []
    for n, data in enumerate(small):
        fetching.server.files[f"/files/{n}"] = data
        url = f"{fetching.server.url}/files/{n}"
        more.append(RemoteFile(f"{n}", url, len(data), "", git_sha1(data)))
    fetching.run(*more, more[0])
    assert fetching.whole == DATA
    assert [(fetching.directory / file.key).read_bytes() for file in more] == small
    total = len(DATA) + sum(map(len, small))
    assert fetching.told[-1] == (total, total)
    assert fetching.server.sent == total
    assert sorted(path.name for path in fetching.directory.iterdir()) == sorted(
        {file.key for file in (fetching.file, *more)}
    )
    fetching.run(*more)
    assert fetching.server.sent == total


def test_goes_on_after_every_cut(fetching: Fetching) -> None:
    cuts = [1, 0, 5_000, 0, 0, 90_000]
    fetching.server.fail(PATH, *(Fault(cut=n) for n in cuts), Fault(hang=10), Fault(status=502))
    fetching.run()
    assert fetching.whole == DATA
    starts = [0, 1, 1, 5_001, 5_001, 5_001, 95_001, 95_011, 95_011]
    assert fetching.server.starts(PATH) == starts
    assert fetching.server.sent == len(DATA)


@pytest.mark.parametrize(
    ("fault", "kind", "words", "retry_after"),
    [
        (Fault(status=500), SourceUnavailable, "HTTP 500", 5.0),
        (Fault(status=429), SourceUnavailable, "HTTP 429", 5.0),
        (Fault(cut=0), SourceUnavailable, "broke off", 5.0),
        (Fault(hang=0), SourceUnavailable, r"no byte of model\.gguf for 0\.3 s", 5.0),
        (Fault(status=401), SourceUnavailable, "credentials.*netrc", None),
        (Fault(status=403), SourceUnavailable, "credentials.*netrc", None),
        (Fault(status=400), SourceUnavailable, "HTTP 400", None),
        (Fault(status=404), ModelNotFound, "nothing at the file", None),
        (Fault(status=410), ModelNotFound, "nothing at the file", None),
    ],
)
def test_what_does_not_pass(
    fetching: Fetching,
    fault: Fault,
    kind: type[HeadraceError],
    words: str,
    retry_after: float | None,
) -> None:
    fetching.server.fail(PATH, *[fault] * 10)
    with pytest.raises(kind, match=words) as caught:
        fetching.run()
    assert caught.value.retry_after == retry_after
    assert len(fetching.server.starts(PATH)) == (LIMITS.tries if retry_after else 1)


@pytest.mark.parametrize("in_words", [False, True])
def test_a_source_that_wants_to_be_left_alone_for_long(fetching: Fetching, in_words: bool) -> None:
    when = datetime.now(UTC) + timedelta(seconds=900)
    said = format_datetime(when, usegmt=True) if in_words else "900"
    fetching.server.fail(PATH, Fault(status=429, headers={"Retry-After": said}))
    with pytest.raises(SourceUnavailable) as caught:
        fetching.run()
    assert caught.value.retry_after == pytest.approx(900, abs=30)
    assert len(fetching.server.starts(PATH)) == 1


def test_a_partial_file_is_gone_on_with(fetching: Fetching) -> None:
    fetching.server.fail(PATH, *[Fault(cut=40_000)], *[Fault(status=500)] * 3)
    with pytest.raises(SourceUnavailable):
        fetching.run()
    assert fetching.partial.read_bytes() == DATA[:40_000]
    fetching.server.asked.clear()
    fetching.run()
    assert fetching.whole == DATA
    (asked,) = fetching.server.asked
    assert asked.start == 40_000
    assert asked.headers["if-range"].startswith('"')
    assert fetching.told[-1] == (len(DATA), len(DATA))
    assert not list(fetching.directory.glob("*.etag"))


@pytest.mark.parametrize("why", ["the version is another", "there are no ranges", "it is shorter"])
def test_a_partial_file_that_is_of_no_use(fetching: Fetching, why: str) -> None:
    fetching.server.fail(PATH, Fault(cut=40_000), *[Fault(status=500)] * 3)
    with pytest.raises(SourceUnavailable):
        fetching.run()
    if why == "the version is another":
        fetching.server.etag = '"another"'
        fetching.partial.write_bytes(b"x" * 40_000)  # Of the version before.
    elif why == "there are no ranges":
        fetching.server.ranges = False
    else:
        fetching.partial.write_bytes(b"x" * (len(DATA) + 1))
    fetching.run()
    assert fetching.whole == DATA


def test_what_is_whole_but_for_its_name_is_not_fetched(fetching: Fetching) -> None:
    size = len(DATA)
    fetching.file = RemoteFile("model.gguf", fetching.file.url, size, fetching.file.sha256)
    fetching.partial.write_bytes(DATA)
    fetching.run()
    assert fetching.whole == DATA
    assert fetching.server.asked == []


def test_what_is_whole_but_its_length_is_not_known_is_not_fetched(fetching: Fetching) -> None:
    fetching.partial.write_bytes(DATA)
    fetching.run()
    assert fetching.whole == DATA
    assert fetching.server.starts(PATH) == [len(DATA)]
    assert fetching.server.sent == 0


def test_credentials_of_netrc(fetching: Fetching, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = fetching.directory.parent / "netrc"
    monkeypatch.setenv("NETRC", str(netrc))
    netrc.write_text("machine 127.0.0.1 login me password secret\n")
    fetching.run()
    assert fetching.server.asked[0].headers["authorization"].startswith("Basic ")
    netrc.write_text("machine\nnonsense secret\n")
    with pytest.raises(SourceUnavailable, match="mistake in line") as caught:
        fetching.run()
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("size", [None, len(DATA)])
@pytest.mark.parametrize("beginning", [b"", b"x" * 1000])
def test_wrong_bytes_are_thrown_away(
    fetching: Fetching, size: int | None, beginning: bytes
) -> None:
    fetching.file = RemoteFile("model.gguf", fetching.file.url, size, fetching.file.sha256)
    fetching.partial.write_bytes(beginning)
    if not beginning:
        fetching.server.fail(PATH, Fault(wrong=True))
    with pytest.raises(ModelCorrupt, match=r"SHA-256.*it was thrown away, pull again") as caught:
        fetching.run(conditional=False)
    assert caught.value.metadata["file"] == "model.gguf"
    assert list(fetching.directory.iterdir()) == []
    fetching.run()
    assert fetching.whole == DATA


def test_more_bytes_than_there_should_be(fetching: Fetching) -> None:
    fetching.file = RemoteFile("model.gguf", fetching.file.url, 50_000, fetching.file.sha256)
    with pytest.raises(ModelCorrupt, match="longer than the 50000 bytes"):
        fetching.run()
    assert list(fetching.directory.iterdir()) == []


def test_a_server_that_does_not_say_how_long_it_is(fetching: Fetching) -> None:
    fetching.server.lengths = False
    fetching.run()
    assert fetching.whole == DATA
    assert {total for _, total in fetching.told} == {0}


def test_redirects_are_followed_and_bounded(fetching: Fetching) -> None:
    server = fetching.server
    for n in range(4):
        server.redirects[f"/r/{n}"] = f"/r/{n + 1}"
    server.redirects["/r/4"] = PATH
    fetching.file = RemoteFile("model.gguf", f"{server.url}/r/2", None, _sha256(DATA))
    fetching.run()
    assert fetching.whole == DATA
    elsewhere = Fetching(server, fetching.directory / "other")
    elsewhere.directory.mkdir()
    elsewhere.file = RemoteFile("model.gguf", f"{server.url}/r/0", None, _sha256(DATA))
    with pytest.raises(SourceUnavailable, match="leads nowhere") as caught:
        elsewhere.run()
    assert caught.value.retry_after is None


def test_a_redirect_without_encryption_is_not_followed(fetching: Fetching) -> None:
    fetching.server.redirects["/r"] = "http://headrace.invalid/model.gguf"
    fetching.file = RemoteFile("model.gguf", f"{fetching.server.url}/r", None, _sha256(DATA))
    with pytest.raises(InvalidRequest, match=r"http://headrace\.invalid, without encryption"):
        fetching.run()
    # Allowed, it is tried: and nobody is there.
    with pytest.raises(SourceUnavailable, match="no connection"):
        fetching.run(allow_http=True)


def test_a_token_stays_with_its_hub(fetching: Fetching) -> None:
    server = fetching.server
    server.repos["acme/tiny"] = Repo({"model.gguf": DATA}, gated=True, token="hf_secret")
    url = f"{server.url}/acme/tiny/resolve/main/model.gguf"
    file = RemoteFile("model.gguf", url, len(DATA), _sha256(DATA))
    for headers in ({}, {"authorization": "Bearer hf_wrong"}):
        origin = Origin("hf:acme/tiny", headers, allow_http=False, netrc=False, conditional=False)
        with pytest.raises(SourceUnavailable, match=r"accept its terms at .*HF_TOKEN") as caught:
            Download(origin, fetching.directory, LIMITS, lambda *at: None).run((file,))
        assert caught.value.retry_after is None
    server.asked.clear()
    right = {"authorization": "Bearer hf_secret"}
    origin = Origin("hf:acme/tiny", right, allow_http=False, netrc=False, conditional=False)
    Download(origin, fetching.directory, LIMITS, lambda *at: None).run((file,))
    assert fetching.whole == DATA
    hub_asked, cdn_asked = server.asked
    assert hub_asked.headers["authorization"] == "Bearer hf_secret"
    assert cdn_asked.path.startswith("/blobs/")
    assert "authorization" not in cdn_asked.headers


def test_a_disk_without_room(fetching: Fetching, monkeypatch: pytest.MonkeyPatch) -> None:
    needs = 2 * len(DATA)
    for free, fits in ((needs - 1, False), (needs, True)):
        monkeypatch.setattr("shutil.disk_usage", lambda _, free=free: _Usage(free))
        if fits:
            fetching.run()
        else:
            with pytest.raises(InsufficientDisk, match="remove models") as caught:
                fetching.run()
            assert caught.value.metadata == {"needs": str(needs), "free": str(free)}
            assert fetching.partial.stat().st_size == 0


def test_a_disk_that_fills_up(fetching: Fetching, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(partial: Partial, chunk: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Partial, "write", write)
    with pytest.raises(InsufficientDisk):
        fetching.run()


class _Usage:
    def __init__(self, free: int) -> None:
        self.free = free


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
