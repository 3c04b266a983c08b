"""`python -m headrace_server.store.sources`: one task, told as JSON lines on standard output.

The first line of standard input is the task; that it ends means that nobody wants it any more.

    {"task": "look up", "source": {…}, "limits": {…}}
    {"task": "fetch", "shown": "…", "hub": true, "allow_http": false, "files": […],
     "directory": "…", "limits": {…}}

    {"event": "progress", "done": 1, "total": 2}      bytes
    {"event": "done", "plan": {…}}                    of a look-up
    {"event": "failed", "status": "…"}                google.rpc.Status, in base64

A process of its own: a download is cancelled by killing it, nothing of it blocks or fattens the
controller, and the hub's client, which reads its settings as it is imported, reads them each time.
"""

from __future__ import annotations

import base64
import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from headrace.errors import FieldViolation, HeadraceError, to_status
from headrace.host.offspring import end_with_parent, say
from headrace_server.store.locks import locked
from headrace_server.store.sources.limits import Limits
from headrace_server.store.sources.plan import RemoteFile
from headrace_server.store.sources.reference import HubSource

_SECRETS = re.compile(r"hf_\w{12,}|(?<=Bearer )\S+|(?<=Basic )\S+")


def main() -> int:
    """Do the task. Gives the exit code."""
    line = sys.stdin.buffer.readline()
    if not line:
        return 1
    end_with_parent()
    task = json.loads(line)
    try:
        if task["task"] == "look up":
            _look_up(task)
        else:
            _fetch(task)
    except HeadraceError as error:
        say("failed", status=base64.b64encode(to_status(_safe(error)).SerializeToString()).decode())
        return 1
    return 0


def _look_up(task: Mapping[str, Any]) -> None:
    # Here and not above, so that a closed standard input is noticed during the slow import too.
    from headrace_server.store.sources.hub import look_up

    fields = task["source"]
    source = HubSource(**{**fields, "files": tuple(fields["files"])})
    say("done", plan=asdict(look_up(source, Limits(**task["limits"]))))


def _fetch(task: Mapping[str, Any]) -> None:
    from headrace_server.store.sources.http import Download, Origin

    if task["hub"]:
        from headrace_server.store.sources.hub import origin_of

        origin = origin_of(task["shown"])
    else:
        origin = Origin(task["shown"], {}, task["allow_http"], netrc=True, conditional=True)
    said = (-1, -1)

    def report(done: int, total: int) -> None:
        nonlocal said
        if (done, total) != said:
            said = (done, total)
            say("progress", done=done, total=total)

    directory = Path(task["directory"])
    directory.mkdir(parents=True, exist_ok=True)
    # One who was killed with the controller may yet live for a moment.
    with locked(directory / "lock"):
        download = Download(origin, directory, Limits(**task["limits"]), report)
        download.run(tuple(RemoteFile(**file) for file in task["files"]))
    say("done")


def _safe(error: HeadraceError) -> HeadraceError:
    """The error without what might be a credential: some libraries quote headers."""
    error.message = _SECRETS.sub("…", error.message)
    error.violations = tuple(
        FieldViolation(v.field, _SECRETS.sub("…", v.description)) for v in error.violations
    )
    return error


if __name__ == "__main__":
    # Threads that wait for a dead connection are not waited for.
    code = main()
    sys.stdout.flush()
    os._exit(code)
