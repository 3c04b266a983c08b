"""How many files this process may have open: enough for the connections that it takes."""

from __future__ import annotations

import contextlib
import logging
import resource

logger = logging.getLogger(__name__)

_OWN = 512
"""For everything that is no connection of a client: runners, pipes, the store, exporters."""


def allow_connections(connections: int) -> None:
    """Raise the limit of open files as far as it takes. Says so in the log where that is not
    enough: beyond it nobody gets in, and no runner can be started."""
    wanted = connections + _OWN
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    with contextlib.suppress(OSError, ValueError):  # macOS allows fewer than its hard limit says.
        within = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (within, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        extra = {"open_files": soft, "max_connections": connections}
        logger.warning("too few open files for so many connections; see ulimit -n", extra=extra)
