"""What child processes that do one task have in common: they tell how it goes as lines of JSON on
standard output, and end when their standard input does, which their parent holds."""

from __future__ import annotations

import json
import os
import sys
import threading
from typing import Any


def say(event: str, **fields: Any) -> None:
    """Tell the parent."""
    sys.stdout.write(json.dumps({"event": event} | fields) + "\n")
    sys.stdout.flush()


def end_with_parent() -> None:
    """From now on, end at once when nobody holds standard input any more."""
    threading.Thread(target=_follow, daemon=True).start()


def _follow() -> None:
    # Not through sys.stdin, whose lock this thread would still hold when the interpreter ends.
    while os.read(0, 1024):
        pass
    os._exit(1)
