"""Fetches files by HTTP, several at a time, each from its last byte on. Runs in a process of its
own, which may be killed at any moment."""

from __future__ import annotations

import errno
import os
import re
import shutil
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from http import HTTPStatus
from netrc import NetrcParseError
from pathlib import Path

import httpx2

from headrace._target import is_loopback
from headrace.errors import (
    HeadraceError,
    InsufficientDisk,
    InvalidRequest,
    ModelNotFound,
    SourceUnavailable,
)
from headrace_server.store.sources.limits import Limits
from headrace_server.store.sources.partial import Partial
from headrace_server.store.sources.plan import RemoteFile
from headrace_server.store.sources.retries import TryAgain, retrying, try_again_after

REMEDY = "check the network, then pull again: it goes on where it was"
_LOOK_EVERY = 0.1
"""Seconds between two reports."""
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


@dataclass(frozen=True)
class Origin:
    """Whom the files come from."""

    shown: str
    """What errors call it: nothing secret."""
    headers: Mapping[str, str]
    """For its own host alone."""
    allow_http: bool
    netrc: bool
    """Whether ~/.netrc is asked for credentials."""
    conditional: bool
    """Whether to ask by ETag if what follows is of the same version. Not where the file is named by
    its content: then two nodes that tag one file differently would only cost a new beginning."""


class Download:
    """Fetches files into a directory, as `Partial` says."""

    def __init__(
        self,
        origin: Origin,
        directory: Path,
        limits: Limits,
        on_progress: Callable[[int, int], None],
    ) -> None:
        """`on_progress` gets bytes that are here, and bytes in all or 0, on the caller's thread."""
        self._origin = origin
        self._directory = directory
        self._limits = limits
        self._on_progress = on_progress
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._here: dict[str, int] = {}
        self._sizes: dict[str, int | None] = {}

    def run(self, files: tuple[RemoteFile, ...]) -> None:
        """Fetch all files that are not here yet.

        Raises InsufficientDisk, ModelCorrupt, ModelNotFound, SourceUnavailable, and InvalidRequest
        where it is led to an address without encryption.
        """
        distinct = {file.key: file for file in files}
        self._sizes = {key: file.size for key, file in distinct.items()}
        self._here = {key: self._kept(file) for key, file in distinct.items()}
        self._see_room()
        self._report()
        with self._client() as client:
            pool = ThreadPoolExecutor(self._limits.together)
            # The largest first: they decide when all is over.
            by_size = sorted(distinct.values(), key=lambda file: -(file.size or 0))
            running = {pool.submit(self._fetch, client, file) for file in by_size}
            try:
                while running:
                    done, running = wait(running, _LOOK_EVERY, FIRST_EXCEPTION)
                    self._report()
                    for task in done:
                        task.result()
            finally:
                self._stop.set()
                # Without waiting: one that hears nothing would hear that it is to stop as late.
                pool.shutdown(wait=False, cancel_futures=True)

    def _client(self) -> httpx2.Client:
        limits = self._limits
        return httpx2.Client(
            headers={**self._origin.headers, "Accept-Encoding": "identity"},
            auth=self._credentials() if self._origin.netrc else None,
            timeout=httpx2.Timeout(limits.stall, connect=limits.connect, pool=None),
            follow_redirects=True,
            max_redirects=limits.redirects,
            event_hooks={"request": [self._see_scheme]},
        )

    def _credentials(self) -> httpx2.Auth | None:
        """Those of ~/.netrc, or of the file that NETRC names; given to no other host."""
        try:
            return httpx2.NetRCAuth(os.environ.get("NETRC"))
        except FileNotFoundError:
            return None
        except NetrcParseError as error:
            raise self._unavailable(f"~/.netrc has a mistake in line {error.lineno}") from error

    def _see_scheme(self, request: httpx2.Request) -> None:
        """For redirects too."""
        url = request.url
        if url.scheme != "https" and not (self._origin.allow_http or is_loopback(url.host)):
            raise InvalidRequest(
                f"{self._origin.shown} leads to {url.scheme}://{url.host}, without encryption;"
                " allow that (allow_http), or take another address"
            )

    def _kept(self, file: RemoteFile) -> int:
        for path in (self._directory / file.key, self._directory / f"{file.key}.partial"):
            if path.exists():
                return path.stat().st_size
        return 0

    def _see_room(self) -> None:
        with self._lock:
            known = {key: size for key, size in self._sizes.items() if size is not None}
            missing = sum(max(0, size - self._here[key]) for key, size in known.items())
            # What was fetched stays until the store has its own copy.
            needs = missing + sum(known.values())
        free = shutil.disk_usage(self._directory).free
        if missing and needs > free:
            raise InsufficientDisk(
                f"{self._origin.shown} needs {needs} bytes of disk to be fetched and stored, and"
                f" {free} are free; remove models, or set HEADRACE_HOME to a larger disk",
                needs=needs,
                free=free,
            )

    def _report(self) -> None:
        with self._lock:
            sizes = self._sizes.values()
            total = sum(size or 0 for size in sizes) if None not in sizes else 0
            here = sum(self._here.values())
        self._on_progress(here, total)

    def _fetch(self, client: httpx2.Client, file: RemoteFile) -> None:
        whole = self._directory / file.key
        if whole.exists():
            return
        try:
            with Partial(self._directory, file) as partial:
                self._tell(file, partial)
                if file.size is None or partial.size < file.size:
                    retrying(
                        lambda: self._receive(client, file, partial),
                        lambda: partial.size,
                        self._limits,
                        self._wait,
                    )
                partial.finish()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            free = shutil.disk_usage(self._directory).free
            needs = (file.size or 0) - self._here[file.key]
            raise InsufficientDisk(needs=max(needs, 1), free=free) from error

    def _receive(self, client: httpx2.Client, file: RemoteFile, partial: Partial) -> None:
        """One try. Raises TryAgain for what may pass."""
        try:
            with client.stream("GET", file.url, headers=self._range(partial)) as response:
                if not self._see_answer(response, file, partial):
                    return
                self._tell(file, partial)
                for chunk in response.iter_raw():
                    if self._stop.is_set():
                        raise Stopped
                    partial.write(chunk)
                    self._tell(file, partial)
        except (httpx2.TooManyRedirects, httpx2.UnsupportedProtocol) as error:
            raise self._unavailable(f"{self._origin.shown} leads nowhere: {error}") from error
        except httpx2.TransportError as error:
            raise TryAgain(self._unavailable(self._broken(error, file), 5.0)) from error
        expected = self._sizes[file.key]
        if expected is not None and partial.size < expected:
            what = f"{file.path} ended after {partial.size} of {expected} bytes"
            raise TryAgain(self._unavailable(f"{self._origin.shown}: {what}", 5.0))

    def _range(self, partial: Partial) -> dict[str, str]:
        if not partial.size:
            return {}
        asked = {"Range": f"bytes={partial.size}-"}
        if self._origin.conditional and (etag := partial.etag):
            asked["If-Range"] = etag
        return asked

    def _see_answer(self, response: httpx2.Response, file: RemoteFile, partial: Partial) -> bool:
        """See that what follows is what was asked for, or make room for what it is. Gives whether
        anything follows."""
        if response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            if response.headers.get("Content-Range", "") == f"bytes */{partial.size}":
                return False  # All of it is here: who was to say so was killed.
            partial.restart()  # The file has become shorter than what is here.
            raise TryAgain(self._unavailable(f"{self._origin.shown} has changed", 5.0))
        if not response.is_success:
            raise self._refused(response, file)
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isdecimal() else None
        if response.status_code == HTTPStatus.PARTIAL_CONTENT:
            found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if found is None or int(found[1]) != partial.size:
                partial.restart()
                raise TryAgain(self._unavailable(f"{self._origin.shown} gave another part", 5.0))
            total = None if found[2] == "*" else int(found[2])
        else:
            partial.restart()  # The version is another, or ranges are not its business.
            etag = response.headers.get("ETag", "")
            partial.begin(etag if etag.startswith('"') and etag.isascii() else "")
        if file.size is None and total is not None:
            with self._lock:
                self._sizes[file.key] = total
            self._see_room()
        return True

    def _refused(self, response: httpx2.Response, file: RemoteFile) -> Exception:
        shown, status = self._origin.shown, response.status_code
        where = f"{shown}: {file.path}" if shown.startswith("hf:") else shown
        code = response.headers.get("X-Error-Code", "")
        if code == "GatedRepo" or status in (
            HTTPStatus.UNAUTHORIZED,
            HTTPStatus.FORBIDDEN,
        ):
            return (
                gated(shown)
                if shown.startswith("hf:")
                else self._unavailable(
                    f"{shown} wants credentials (HTTP {status}); put them into ~/.netrc on the"
                    " controller's machine"
                )
            )
        if status in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
            return not_found(shown, f"there is nothing at {where} (HTTP {status})")
        error = self._unavailable(f"{where} was answered with HTTP {status}")
        return try_again_after(error, status, response.headers.get("Retry-After", "")) or error

    def _broken(self, error: httpx2.TransportError, file: RemoteFile) -> str:
        if isinstance(error, httpx2.ReadTimeout):
            what = f"no byte of {file.path} for {self._limits.stall:g} s"
        elif isinstance(error, httpx2.ConnectTimeout):
            what = f"no connection within {self._limits.connect:g} s"
        elif isinstance(error, httpx2.ConnectError):
            what = f"no connection: {error}"
        else:
            what = f"{file.path} broke off: {str(error) or type(error).__name__}"
        return f"{self._origin.shown}: {what}; {REMEDY}"

    def _unavailable(self, message: str, retry_after: float | None = None) -> SourceUnavailable:
        return SourceUnavailable(message, source=self._origin.shown, retry_after=retry_after)

    def _wait(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise Stopped

    def _tell(self, file: RemoteFile, partial: Partial) -> None:
        with self._lock:
            self._here[file.key] = partial.size


class Stopped(Exception):
    """Another file failed, so this one is not wanted any more."""


def gated(shown: str) -> SourceUnavailable:
    """The error for a repository that is not open to everybody."""
    page = f"https://huggingface.co/{shown.removeprefix('hf:')}"
    return SourceUnavailable(
        f"{shown} is gated, or private: accept its terms at {page}, and give the controller a token"
        " that may read it, in HF_TOKEN or by `hf auth login` on its machine; then pull again",
        source=shown,
        retry_after=None,
    )


def not_found(model: str, message: str) -> HeadraceError:
    """ModelNotFound with a message of its own."""
    error = ModelNotFound(model)
    error.message, error.args = message, (message,)
    return error
