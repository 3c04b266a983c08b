"""The command line as it draws on a terminal."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Sequence


def drawn(
    arguments: Sequence[str], *, code: int = 0, errors: bool = False, **environment: str
) -> str:
    """All that a command has written there, once it has ended with `code`.

    `errors`: its standard error goes there too.
    """
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "headrace.cli.main", *arguments]
    more = {"TERM": "xterm-256color", "COLUMNS": "100", **environment}
    env = {**os.environ, **more}
    stderr = theirs if errors else None
    with subprocess.Popen(command, stdout=theirs, stderr=stderr, env=env) as process:
        os.close(theirs)
        data = b""
        while True:
            try:
                data += os.read(ours, 4096)
            except OSError:  # how a terminal on Linux ends
                break
        os.close(ours)
        assert process.wait(60) == code
    return data.decode()
