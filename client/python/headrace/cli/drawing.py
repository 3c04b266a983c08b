"""Shows how the drawing of images goes: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Self

import click

from headrace.cli.output import duration

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import Progress, TaskID

    from headrace.types import ImagePreview, ImageProgress

_WORDS = {
    "queued": "waiting",
    "loading": "loading",
    "encoding": "reading the prompt",
    "denoising": "drawing",
    "decoding": "drawing",
    "unknown": "drawing",
}
_PREVIEW_LINES = 16


class Drawing:
    """What is shown while images are drawn, on standard error; gone when they are there."""

    def __init__(self, model: str, count: int) -> None:
        self._model = model
        self._count = count
        self._done: dict[int, float] = {}
        """Of each image, 0 to 1."""
        self._told = ""
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._picture: RenderableType | None = None

    def progress(self, event: ImageProgress) -> None:
        """Shows the latest."""
        if self._bar is None or self._task is None:
            words = self.words(event)
            if words != self._told:
                self._told = words
                click.echo(words, err=True)
            return
        loads = event.load_fraction is not None
        self._bar.update(
            self._task,
            description=self.words(event),
            completed=event.load_fraction if loads else self._fraction(event),
            steps=_steps(event),
            left="" if event.remaining is None else f"{duration(event.remaining)} left",
        )

    def preview(self, event: ImagePreview) -> None:
        """Shows the unfinished picture above the bar."""
        from rich.text import Text

        from headrace.cli.picture import CannotShow, preview

        if self._bar is None:
            return
        try:
            drawn = preview(event.data, self._bar.console, _PREVIEW_LINES)
        except CannotShow as reason:
            drawn = str(reason)
        self._picture = Text.from_ansi(drawn)
        self._bar.refresh()

    def words(self, event: ImageProgress) -> str:
        """What is being done."""
        words = _WORDS[event.phase]
        if event.phase == "queued" and event.queue_position:
            return f"{words}, {event.queue_position} ahead"
        if event.phase in ("queued", "loading"):
            return f"{words} for {self._model}" if words == "waiting" else f"{words} {self._model}"
        if words == "drawing" and self._count > 1:
            return f"{words} {self._count} images"  # Perhaps all together: no one in particular.
        return words

    def _fraction(self, event: ImageProgress) -> float:
        """Of all images together."""
        if event.phase == "decoding":
            self._done[event.index] = 1.0
        elif event.phase == "denoising" and event.step is not None and event.total:
            self._done[event.index] = event.step / event.total
        return sum(self._done.values()) / self._count

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            self._bar = self._make_bar()
            self._task = self._bar.add_task(
                f"waiting for {self._model}", total=1.0, steps="", left=""
            )
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._picture = None
            self._bar.stop()

    def _make_bar(self) -> Progress:
        from collections.abc import Iterable

        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        drawing = self

        class Bar(Progress):
            def get_renderables(self) -> Iterable[RenderableType]:
                if drawing._picture is not None:
                    yield drawing._picture
                yield from super().get_renderables()

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[steps]}"),
            TextColumn("{task.fields[left]}"),
        )
        return Bar(*columns, console=Console(stderr=True), transient=True)


def _steps(event: ImageProgress) -> str:
    if event.phase != "denoising" or event.step is None or event.total is None:
        return ""
    return f"step {event.step}/{event.total}"
