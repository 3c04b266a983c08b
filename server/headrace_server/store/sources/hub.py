"""Looks up a repository of the Hugging Face hub, with the hub's own client: whoever imports this
has its settings read. For the child process alone.

Tokens, mirrors and the offline switch are the client's business: HF_TOKEN or the file that `hf auth
login` writes, HF_ENDPOINT, HF_HUB_OFFLINE.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import NoReturn, TypeVar, cast

from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import ModelInfo, RepoSibling
from huggingface_hub.utils._headers import build_hf_headers

from headrace.errors import FieldViolation, InvalidRequest, ModelCorrupt, SourceUnavailable
from headrace_server.store.sources.http import REMEDY, Origin, gated, not_found
from headrace_server.store.sources.limits import Limits
from headrace_server.store.sources.plan import Plan, RemoteFile, check_path
from headrace_server.store.sources.reference import HubSource
from headrace_server.store.sources.retries import TryAgain, retrying, try_again_after
from headrace_server.store.sources.selection import Listed, select

# httpx's or httpx2's, whichever this version of the client stands on.
_HttpError = cast("type[Exception]", HfHubHTTPError.__bases__[0])
_LIBRARY = "headrace"
_SHA1_DIGITS, _SHA256_DIGITS = 40, 64
T = TypeVar("T")


def look_up(source: HubSource, limits: Limits) -> Plan:
    """What to fetch of a repository, at the commit that its revision is at now.

    Raises ModelNotFound, SourceUnavailable, ModelCorrupt for a listing that cannot be, and what
    `select` raises.
    """
    api = HfApi(library_name=_LIBRARY)
    info = _asking(
        source,
        limits,
        lambda: api.model_info(source.repo, revision=source.revision, files_metadata=True),
    )
    commit = info.sha or ""
    if len(commit) != _SHA1_DIGITS or not commit.isalnum():
        raise ModelCorrupt(f"{source} gave no commit; is {constants.ENDPOINT} a hub?", file="")
    chosen = select([_listed(sibling) for sibling in info.siblings or []], source.files)
    files = []
    for listed in chosen:
        check_path(listed.path)
        url = hf_hub_url(source.repo, listed.path, revision=commit)
        if listed.size is None or not (listed.sha256 or listed.git_sha1):
            listed = _asking(source, limits, partial(_measured, url, listed))
        files.append(RemoteFile(listed.path, url, listed.size, listed.sha256, listed.git_sha1))
    plan = Plan(commit, _license(info), tuple(files))
    return _pinned(source, plan)


def origin_of(source: str) -> Origin:
    """Whom the files of a repository come from, with the token where there is one."""
    # An endpoint without encryption is the operator's own choice.
    open_mirror = constants.ENDPOINT.startswith("http://")
    return Origin(
        source, build_hf_headers(library_name=_LIBRARY), open_mirror, netrc=False, conditional=False
    )


def _pinned(source: HubSource, plan: Plan) -> Plan:
    if source.sha256 and plan.files[0].sha256 != source.sha256:
        if plan.gguf is None:
            what = f"{source} is not a single file, and takes none"
            raise InvalidRequest(violations=[FieldViolation("sha256", what)])
        raise ModelCorrupt(
            f"{plan.gguf} of {source} has the SHA-256 {plan.files[0].sha256 or 'of no LFS file'} at"
            f" {plan.version}, not {source.sha256}; nothing was fetched",
            file=plan.gguf,
        )
    return plan


def _listed(sibling: RepoSibling) -> Listed:
    lfs = sibling.lfs
    return Listed(
        sibling.rfilename,
        lfs.size if lfs is not None else sibling.size,
        lfs.sha256 if lfs is not None else "",
        "" if lfs is not None else sibling.blob_id or "",
    )


def _measured(url: str, listed: Listed) -> Listed:
    """The same by the file's own headers: some mirrors list no sizes."""
    found = get_hf_file_metadata(url, library_name=_LIBRARY)
    etag = found.etag or ""
    if found.size is None or len(etag) not in (_SHA1_DIGITS, _SHA256_DIGITS):
        raise ModelCorrupt(
            f"{constants.ENDPOINT} says neither how long {listed.path} is nor what is in it;"
            " take another mirror (HF_ENDPOINT)",
            file=listed.path,
        )
    sha256 = etag if len(etag) == _SHA256_DIGITS else ""
    return Listed(listed.path, found.size, sha256, "" if sha256 else etag)


def _license(info: ModelInfo) -> str | None:
    card = info.card_data
    if card is None or not isinstance(card.license, str):
        return None
    named = card.license_name if card.license == "other" else None
    return named if isinstance(named, str) else card.license


def _asking(source: HubSource, limits: Limits, ask: Callable[[], T]) -> T:
    def attempt() -> T:
        try:
            return ask()
        except (_HttpError, OfflineModeIsEnabled) as error:
            _explain(source, error)

    return retrying(attempt, lambda: 0, limits, _pause)


def _pause(seconds: float) -> None:
    threading.Event().wait(seconds)


def _explain(source: HubSource, error: Exception) -> NoReturn:
    """Raises what `error` means."""
    if isinstance(error, OfflineModeIsEnabled):
        raise _unavailable(source, "the hub is switched off here (HF_HUB_OFFLINE)") from error
    if isinstance(error, GatedRepoError):
        raise gated(str(source)) from error
    if isinstance(error, RevisionNotFoundError):
        what = f"{source} has no branch, tag or commit {source.revision!r}"
        raise not_found(f"{source}@{source.revision}", what) from error
    if isinstance(error, RepositoryNotFoundError):
        raise not_found(
            str(source),
            f"there is no repository {source.repo} at {constants.ENDPOINT}; if it is private, give"
            " the controller a token that may read it, in HF_TOKEN or by `hf auth login`",
        ) from error
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status in (401, 403):
            raise _unavailable(source, "the hub does not take the token (HF_TOKEN)") from error
        answered = _unavailable(source, f"the hub answered with HTTP {status}")
        header = error.response.headers.get("Retry-After", "")
        raise (try_again_after(answered, status, header) or answered) from error
    broken = _unavailable(
        source,
        f"{constants.ENDPOINT} cannot be reached: {str(error) or type(error).__name__}; {REMEDY}",
    )
    broken.retry_after = 5.0
    raise TryAgain(broken) from error


def _unavailable(source: HubSource, what: str) -> SourceUnavailable:
    return SourceUnavailable(f"{source}: {what}", source=str(source), retry_after=None)
