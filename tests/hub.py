"""A server on this machine that speaks the HTTP of the Hugging Face hub, and of plain file servers.

Faults are made to order: see `Fault`. What was asked for and how much was sent is kept.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_LFS = (".safetensors", ".gguf", ".bin")


@dataclass
class Repo:
    """A repository with one branch."""

    files: dict[str, bytes]
    commit: str = COMMIT
    license: str = "apache-2.0"
    gated: bool = False
    """Whether its files, not its listing, ask for a token."""
    token: str = ""
    """Whose bearer may read it; empty: nobody's is asked for, unless it is gated."""
    private: bool = False
    says: dict[str, int] = field(default_factory=dict)
    """Sizes that the listing has instead of the right ones."""


@dataclass(frozen=True)
class Asked:
    """A request that came."""

    method: str
    path: str
    start: int
    """Where the range begins that was asked for; 0 without one."""
    headers: Mapping[str, str]
    """Their names in lower case."""


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one request."""

    status: int = 0
    """Instead of the file; 0: none."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Of that answer."""
    cut: int | None = None
    """Bytes of the body after which the connection is closed."""
    hang: int | None = None
    """Bytes after which nothing more comes, until `Hub.release`."""
    wrong: bool = False
    """Whether the last byte of the body is another."""


class Hub:
    """A hub and a file server, whose large files lie at a second address, as on a CDN."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.files: dict[str, bytes] = {}
        """Of the file server, by path."""
        self.redirects: dict[str, str] = {}
        """Of the file server: where a path leads."""
        self.asked: list[Asked] = []
        self.promised = 0
        """Bytes of files that answers were to have, in all: what was asked for."""
        self.chunk = 1 << 14
        """Bytes that are sent at a time."""
        self.sent = 0
        """Bytes of files, in all."""
        self.ranges = True
        """Whether ranges are honoured."""
        self.sizes = True
        """Whether the listing has them: some mirrors' have not."""
        self.lengths = True
        """Whether the file server says how long a file is."""
        self.etag = ""
        """Of the file server's files; empty: by their content."""
        self.on_sent: Callable[[int], None] = lambda sent: None
        self._faults: list[tuple[str, Fault]] = []
        self._released = threading.Event()
        self._lock = threading.Lock()
        self._front = _serve(self, _Front)
        self._cdn = _serve(self, _Cdn)
        self.url = _url(self._front)
        self.cdn = _url(self._cdn)

    def fail(self, part: str, *faults: Fault) -> None:
        """The next requests whose path contains `part` have these faults, one each."""
        self._faults += [(part, fault) for fault in faults]

    def release(self) -> None:
        """Let go of what hangs."""
        self._released.set()

    def close(self) -> None:
        self.release()
        for server in (self._front, self._cdn):
            server.shutdown()
            server.server_close()

    def starts(self, part: str) -> list[int]:
        """Where each request for the body of a file began, whose path contains `part`."""
        with self._lock:
            return [a.start for a in self.asked if a.method == "GET" and part in a.path]

    def fault(self, path: str) -> Fault | None:
        with self._lock:
            for index, (part, fault) in enumerate(self._faults):
                if part in path:
                    del self._faults[index]
                    return fault
        return None

    def note(self, asked: Asked) -> None:
        with self._lock:
            self.asked.append(asked)

    def promise(self, length: int) -> None:
        with self._lock:
            self.promised += length

    def count(self, sent: int) -> None:
        with self._lock:
            self.sent += sent
            total = self.sent
        self.on_sent(total)

    def hang(self) -> None:
        self._released.wait(60)

    def blob(self, digest: str) -> bytes:
        everything = [data for repo in self.repos.values() for data in repo.files.values()]
        return next(d for d in everything if hashlib.sha256(d).hexdigest() == digest)


@contextmanager
def hub() -> Iterator[Hub]:
    """A hub that is there for as long as this is."""
    found = Hub()
    try:
        yield found
    finally:
        found.close()


def files_in(directory: Path) -> dict[str, bytes]:
    """The files of a model directory, as a repository has them."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def git_sha1(data: bytes) -> str:
    """What Git calls a file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        self._start = int(found[1]) if found else 0
        asked = Asked(
            self.command,
            self.path,
            self._start,
            {name.lower(): value for name, value in self.headers.items()},
        )
        self.hub.note(asked)
        self._fault = self.hub.fault(self.path) if self.command == "GET" else None
        with suppress(BrokenPipeError, ConnectionResetError):
            if self._fault is not None and self._fault.status:
                self._say(self._fault.status, self._fault.headers)
            else:
                self.serve(unquote(urlsplit(self.path).path))

    def serve(self, path: str) -> None:
        raise NotImplementedError

    def _say(self, status: int, headers: Mapping[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _send(self, data: bytes, headers: Mapping[str, str], *, length: bool = True) -> None:
        """The file `data`, or the part of it that was asked for, with its faults."""
        etag, start = headers.get("ETag", ""), self._start
        condition = self.headers.get("If-Range")
        if not self.hub.ranges or (condition is not None and condition != etag):
            start = 0
        if start and start >= len(data):
            self._say(416, {"Content-Range": f"bytes */{len(data)}"})
            return
        body = data[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        for name, value in headers.items():
            self.send_header(name, value)
        if length:
            self.send_header("Content-Length", str(len(body)))
        else:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        if self.command == "HEAD":
            return
        self.hub.promise(len(body))
        fault = self._fault or Fault()
        if fault.wrong:
            body = body[:-1] + bytes([body[-1] ^ 1])
        cut = len(body) if fault.cut is None else fault.cut
        hang = len(body) if fault.hang is None else fault.hang
        sent = 0
        while sent < min(len(body), cut, hang):
            piece = body[sent : min(sent + self.hub.chunk, cut, hang)]
            self.wfile.write(piece)
            sent += len(piece)
            self.hub.count(len(piece))
        if fault.hang is not None:
            self.hub.hang()
        if sent < len(body):
            self.close_connection = True


class _Front(_Handler):
    """What huggingface.co answers, and below /files/ what any file server does."""

    def serve(self, path: str) -> None:
        if path in self.hub.redirects:
            self._say(302, {"Location": self.hub.redirects[path]})
        elif path in self.hub.files:
            data = self.hub.files[path]
            etag = self.hub.etag or f'"{hashlib.sha256(data).hexdigest()[:16]}"'
            self._send(data, {"ETag": etag}, length=self.hub.lengths)
        elif found := re.fullmatch(r"/api/models/(.+)/revision/(.+)", path):
            self._list(found[1], found[2])
        elif found := re.fullmatch(r"/((?:[^/]+/)?[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(found[1], found[2], found[3])
        else:
            self._say(404, {})

    def _repo(self, name: str, revision: str) -> Repo | None:
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and not self._authorized(repo)):
            # Who may not see it is told the same as of one that is not there.
            self._say(401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "not found"})
        elif revision not in ("main", repo.commit):
            self._say(404, {"X-Error-Code": "RevisionNotFound"})
        else:
            return repo
        return None

    def _authorized(self, repo: Repo) -> bool:
        return self.headers.get("Authorization") == f"Bearer {repo.token}"

    def _list(self, name: str, revision: str) -> None:
        repo = self._repo(name, revision)
        if repo is None:
            return
        blobs = self.hub.sizes and "blobs" in parse_qs(urlsplit(self.path).query)
        siblings = [
            self._sibling(path, data, repo.says.get(path, len(data)), blobs)
            for path, data in repo.files.items()
        ]
        listing = {
            "id": name,
            "sha": repo.commit,
            "gated": "manual" if repo.gated else False,
            "private": repo.private,
            "cardData": {"license": repo.license},
            "siblings": siblings,
        }
        self._say(200, {"Content-Type": "application/json"}, json.dumps(listing).encode())

    def _sibling(self, path: str, data: bytes, size: int, blobs: bool) -> dict[str, Any]:
        if not blobs:
            return {"rfilename": path}
        known: dict[str, Any] = {"rfilename": path, "size": size, "blobId": git_sha1(data)}
        if path.endswith(_LFS):
            sha256 = hashlib.sha256(data).hexdigest()
            known["lfs"] = {"sha256": sha256, "size": size, "pointerSize": 135}
        return known

    def _resolve(self, name: str, revision: str, path: str) -> None:
        repo = self._repo(name, revision)
        if repo is None:
            return
        if repo.gated and not self._authorized(repo):
            status = 403 if "Authorization" in self.headers else 401
            self._say(status, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is gated"})
            return
        data = repo.files.get(path)
        if data is None:
            self._say(404, {"X-Error-Code": "EntryNotFound"})
        elif path.endswith(_LFS):
            sha256 = hashlib.sha256(data).hexdigest()
            signed = f"{self.hub.cdn}/blobs/{sha256}/{quote(path)}?X-Signature=s3cret"
            linked = {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(data))}
            self._say(302, {"Location": signed, "X-Repo-Commit": repo.commit, **linked})
        else:
            self._send(data, {"ETag": f'"{git_sha1(data)}"', "X-Repo-Commit": repo.commit})


class _Cdn(_Handler):
    """Where large files lie. Takes the signature in the address, and no token."""

    def serve(self, path: str) -> None:
        digest = path.split("/")[2]
        self._send(self.hub.blob(digest), {"ETag": f'"{digest[:32]}"'})


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that are killed cut their connections, at any moment."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def _serve(hub: Hub, kind: type[_Handler]) -> ThreadingHTTPServer:
    handler = type(kind.__name__, (kind,), {"hub": hub})
    server = _Server(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}).start()
    return server


def _url(server: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}"
