"""What a runner is asked to be. Only data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class RunnerSpec:
    """One runner of one model."""

    id: str
    """Unique among this controller's runners; names it in logs and traces."""
    model: str
    digest: str
    """Of the model; the runner reports it back and refuses requests meant for another."""
    model_dir: Path
    kind: str = "text"
    dtype: Literal["float32", "int8", "stored", "auto"] = "auto"
    context: int | None = None
    """Tokens; None means what the model was trained for."""
    max_concurrency: int = 32
    """Streams at once."""
    prefix_cache: int | None = None
    """Bytes to remember earlier prompts in; None: the runner's own choice."""
    drafts: bool = True
    """Whether tokens may be guessed and verified, several in a step."""
    adapters: Path | None = None
    """The directory that the adapters of a language model lie in, by the hex of their digests."""
    max_adapters: int = 8
    """Of them, in memory at once."""
    stall_timeout: float = 30.0
    """Seconds without progress, or without an answer, after which the runner counts as stalled."""
    log_level: str = "info"
    core_dumps: bool = False
    """Whether a crash may write the process's memory to disk."""
    report_spans: bool = False
    """Whether it reports the spans of its part of a trace."""

    def arguments(self, listen: str, report_fd: int) -> list[str]:
        """The runner's command line after the program."""
        options = {
            "--model": str(self.model_dir),
            "--name": self.model,
            "--digest": self.digest,
            "--id": self.id,
            "--kind": self.kind,
            "--listen": listen,
            "--report-fd": str(report_fd),
            "--parent": "stdin",
            "--dtype": self.dtype,
            "--max-concurrency": str(self.max_concurrency),
            "--stall-timeout": f"{self.stall_timeout:g}",
            "--log-format": "json",
            "--log-level": self.log_level,
        }
        if self.context is not None:
            options["--context"] = str(self.context)
        if self.prefix_cache is not None:
            options["--prefix-cache"] = str(self.prefix_cache)
        if self.adapters is not None:
            options["--adapters"] = str(self.adapters)
            options["--max-adapters"] = str(self.max_adapters)
        words = [word for option in options.items() for word in option]
        if not self.drafts:
            words.append("--no-drafts")
        if self.core_dumps:
            words.append("--core-dumps")
        if self.report_spans:
            words.append("--report-spans")
        return words
