"""Shows how a pull, an import or a wait goes: moving on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

    from headrace._streams import TransferStream
    from headrace.types import Model, Progress

_WORDS = {
    "download": "downloading",
    "verify": "checking",
    "convert": "converting",
    "store": "storing",
    "unknown": "preparing",
}


def follow(stream: TransferStream, name: str) -> Model:
    """Shows a transfer to its end on stderr and gives the model."""
    with stream:
        if sys.stderr.isatty():
            return _bar(stream, name)
        phase = ""
        for progress in stream:
            if progress.phase != phase:
                phase = progress.phase
                click.echo(f"{_WORDS[phase]} {name}", err=True)
        return stream.collect()


def bytes_bar() -> Bar:
    """A bar that counts bytes, on stderr; wiped away when its `with` block ends."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)


def _bar(stream: TransferStream, name: str) -> Model:
    with bytes_bar() as bar:
        task, phase = None, ""
        for progress in stream:
            if task is None or progress.phase != phase:
                if task is not None:
                    bar.remove_task(task)
                phase = progress.phase
                task = bar.add_task(f"{_WORDS[phase]} {name}", total=None)
            bar.update(task, completed=progress.done_bytes, total=progress.total_bytes)
        return stream.collect()


class Waiting:
    """One line on the terminal about a wait, wiped away when the wait is over."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._shown = False
        self._terminal = sys.stderr.isatty()

    def show(self, progress: Progress) -> None:
        """Shows the latest of the wait."""
        if progress.load_fraction is not None:
            self._write(f"loading {self._model} {progress.load_fraction:.0%}")
        elif progress.queue_position is not None:
            self._write(f"waiting, {progress.queue_position} ahead")
        elif progress.prompt_tokens_done is not None and progress.prompt_tokens_total:
            self._write(f"reading {progress.prompt_tokens_done}/{progress.prompt_tokens_total}")

    def clear(self) -> None:
        """Wipes the line away."""
        if self._shown:
            self._write("")
            self._shown = False

    def _write(self, text: str) -> None:
        if self._terminal:
            sys.stderr.write(f"\r\x1b[2K{text}")
            sys.stderr.flush()
            self._shown = True
