"""Takes the options that a private controller is given and answers from a script."""

from __future__ import annotations

import argparse
import os
import select
import signal
import sys
import threading
from pathlib import Path
from types import FrameType

from tests.unit.sdk import fake as say

parser = argparse.ArgumentParser()
parser.add_argument("--listen")
parser.add_argument("--parent")
parser.add_argument("--ready-fd", type=int)
parser.add_argument("--preload")
parser.add_argument("--log-format")
parser.add_argument("--grace")
parser.add_argument("--no-spare", action="store_true")
for protection in ("--tokens", "--tls-cert", "--tls-key", "--tls-client-ca"):
    parser.add_argument(protection)
options = parser.parse_args()

# The test learns from this file that it ran, what it was told, and how it ended.
diary = Path(os.environ["STAND_IN_DIARY"])


def note(line: str) -> None:
    with diary.open("a") as file:
        file.write(f"{line}\n")


# A signal that comes just before a thread waits for a lock does not end that wait; one that is also
# written to a pipe is there for whoever reads it.
heard, tell = os.pipe()
os.set_blocking(tell, False)
signal.set_wakeup_fd(tell)


def end(number: int, frame: FrameType | None) -> None:
    note(signal.Signals(number).name)


def die(number: int, frame: FrameType | None) -> None:
    os.write(2, b"out of luck\n")
    os._exit(9)


def watch_parent() -> None:
    sys.stdin.read()
    note("orphaned")
    os.write(tell, b"\0")


signal.signal(signal.SIGTERM, end)
signal.signal(signal.SIGINT, end)
signal.signal(signal.SIGUSR1, die)
note(f"pid {os.getpid()}")
note(f"socket {options.listen.removeprefix('unix:')}")
note(f"preload {options.preload}")
mode = os.environ.get("STAND_IN_MODE", "")
if mode == "broken":
    sys.exit("the model store is on fire")

with say.serving(Path(options.listen.removeprefix("unix:"))) as fake:
    fake.models["m:1"] = say.model()
    if mode == "endless":
        fake.completion = [say.started(), say.delta("Hel", 1), say.WAIT]
    os.write(options.ready_fd, b'{"event":"ready"}\n')
    threading.Thread(target=watch_parent, daemon=True).start()
    select.select([heard], [], [], 60)
note("ended")
os._exit(0)  # the thread that reads stdin would hold up the exit
