"""Has a source looked up, and its files fetched, by a child process. Nothing here knows HTTP."""

from __future__ import annotations

import base64
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from google.rpc.status_pb2 import Status

from headrace.errors import SourceUnavailable, from_status
from headrace_server.store.child import run_child
from headrace_server.store.progress import OnProgress, Progress
from headrace_server.store.sources.limits import Limits
from headrace_server.store.sources.plan import Plan, RemoteFile, parse_plan
from headrace_server.store.sources.reference import HubSource, UrlSource

_SECRETS = re.compile(r"hf_\w{12,}|Bearer \S+|\?\S+")
_ENVIRONMENT = {
    # Xet, the hub's own way to move chunks, keeps what it has in a cache of its own that a killed
    # process leaves behind incomplete, and goes past HF_ENDPOINT to servers that the listing names.
    # What is stored by it can be had by HTTP as well, which is resumed to the byte and is what
    # proxies and mirrors know. huggingface_hub is asked for listings alone.
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DEBUG": "0",  # It would write every request to the log.
}


async def look_up(source: HubSource, limits: Limits) -> Plan:
    """What to fetch of a repository. Raises as `hub.look_up` does."""
    task = {"task": "look up", "source": asdict(source), "limits": asdict(limits)}
    return parse_plan((await _child(task, str(source), lambda _: None))["plan"])


async def fetch(
    source: HubSource | UrlSource,
    files: tuple[RemoteFile, ...],
    directory: Path,
    limits: Limits,
    on_progress: OnProgress,
) -> None:
    """Have all `files` in `directory`, each under its key. Raises as `http.Download.run` does."""
    task = {
        "task": "fetch",
        "shown": str(source),
        "hub": isinstance(source, HubSource),
        "allow_http": isinstance(source, UrlSource) and source.allow_http,
        "files": [asdict(file) for file in files],
        "directory": str(directory),
        "limits": asdict(limits),
    }
    await _child(task, str(source), on_progress)


async def _child(task: Mapping[str, Any], shown: str, on_progress: OnProgress) -> dict[str, Any]:
    outcome: dict[str, Any] = {}

    def on_line(line: str) -> None:
        event = json.loads(line)
        if event["event"] == "progress":
            on_progress(Progress("download", event["done"], event["total"]))
        else:
            outcome.update(event)

    ended = await run_child(
        [sys.executable, "-m", "headrace_server.store.sources"],
        on_line,
        _ENVIRONMENT,
        first_line=json.dumps(task),
    )
    if outcome.get("event") == "failed":
        raise from_status(Status.FromString(base64.b64decode(outcome["status"])))
    if outcome.get("event") == "done" and ended.returncode == 0:
        return outcome
    last = next((line for line in reversed(ended.errors.splitlines()) if line.strip()), "")
    raise SourceUnavailable(
        f"the download of {shown} ended with status {ended.returncode}:"
        f" {_SECRETS.sub('…', last)}; pull again, it goes on from the last byte",
        source=shown,
    )
