"""What a runner is told at its start: the command line of `python -m headrace_runner`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from headrace._target import is_local
from headrace.rpc.protection import missing_beside

_EPILOG = """\
examples:
  python -m headrace_runner --model ./smollm2
  python -m headrace_runner --model ./smollm2 --listen unix:/run/user/1000/smollm2.sock
"""


@dataclass(frozen=True, slots=True)
class RunnerConfig:
    """Settings of one runner. Times in seconds."""

    model_dir: Path
    name: str
    """The model's name, as requests give it."""
    digest: str
    """The model's digest; empty when started by hand without one."""
    id: str
    kind: Literal["auto", "text", "image", "embedding"]
    """What the model is for; "auto": what its directory says."""
    listen: str
    """"unix:/path" or "host:port"; port 0 takes a free one."""
    dtype: Literal["auto", "float32", "int8", "stored"]
    context: int | None
    """Tokens of prompt and output together; None: what the model was made for."""
    max_concurrency: int
    """Requests in the batch at once."""
    max_waiting: int
    """Requests that may wait for a place in the batch."""
    kv_cache: int | None
    """Bytes that requests may reserve for keys and values; None: by the memory that is free."""
    prefix_cache: int | None
    """Bytes for what is remembered of earlier prompts; 0: nothing; None: by the memory."""
    drafts: bool
    """Whether tokens may be guessed and verified, several in a step."""
    adapters: Path | None
    """The directory that the adapters lie in, each in one of its own; None: there are none."""
    max_adapters: int
    """Adapters in memory at once."""
    stall_timeout: float
    grace: float
    """How long running requests may go on after SIGTERM."""
    report_fd: int | None
    parent: Literal["stdin"] | None
    insecure: bool
    tls_cert: Path | None
    """The certificate for TLS; None: no TLS."""
    tls_key: Path | None
    tls_client_ca: Path | None
    tokens: Path | None
    """The file with the tokens of those who may call; None: everybody may."""
    log_format: Literal["auto", "json", "text"]
    log_level: str
    blas: str | None
    threads: int | None
    core_dumps: bool
    """Whether a crash may write the process's memory to disk."""
    report_spans: bool
    """Whether the controller is told of spans, for its local store."""


def parse(argv: Sequence[str] | None = None) -> RunnerConfig:
    """Reads the command line. Exits with status 2 and a usage message when it is wrong."""
    parser = argparse.ArgumentParser(
        prog="headrace_runner",
        description="Serve one MLX model over gRPC.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--model", dest="model_dir", type=Path, required=True, metavar="DIR", help="model directory"
    )
    add("--name", help="name that requests give the model (default: the directory's name)")
    add("--digest", default="", help="digest of the model, reported to clients")
    add("--id", default="runner", help="identity of the runner, reported to clients")
    add(
        "--kind",
        choices=("auto", "text", "image", "embedding"),
        default="auto",
        help="what the model is for; auto: what its directory says",
    )
    add(
        "--listen",
        type=_address,
        default="127.0.0.1:0",
        metavar="ADDRESS",
        help="unix:/path or host:port; port 0 takes a free one (default: %(default)s)",
    )
    add(
        "--dtype",
        choices=("auto", "float32", "int8", "stored"),
        default="auto",
        help="float32: weights are widened; stored: they stay; int8: they stay, and products are "
        "of 8-bit integers on a CPU; auto: int8 where it can be, else the faster that fits",
    )
    add("--context", type=_positive, metavar="TOKENS", help="prompt and output (default: model's)")
    add(
        "--max-concurrency",
        type=_positive,
        default=32,
        metavar="N",
        help="requests computed together (default: %(default)s)",
    )
    add(
        "--max-waiting",
        type=_positive,
        default=256,
        metavar="N",
        help="requests that may wait for a place (default: %(default)s)",
    )
    add(
        "--kv-cache",
        type=_positive,
        metavar="BYTES",
        help="for keys and values of running requests (default: half of what is free)",
    )
    add(
        "--prefix-cache",
        type=_not_negative,
        metavar="BYTES",
        help="to remember prompts in; 0: none (default: half the weights, within 10%% of free)",
    )
    add(
        "--no-drafts",
        dest="drafts",
        action="store_false",
        help="compute every token in a step of its own, also where guessing it would pay",
    )
    add("--adapters", type=Path, metavar="DIR", help="where adapters lie, each in its directory")
    add(
        "--max-adapters",
        type=_positive,
        default=8,
        metavar="N",
        help="adapters in memory at once (default: %(default)s)",
    )
    add(
        "--stall-timeout",
        type=_seconds,
        default=60.0,
        metavar="SECONDS",
        help="without progress on work for so long, health says NOT_SERVING (default: %(default)s)",
    )
    add(
        "--grace",
        type=_seconds,
        default=30.0,
        metavar="SECONDS",
        help="time for running requests after SIGTERM (default: %(default)s)",
    )
    add("--insecure", action="store_true", help="allow an address beyond loopback, without TLS")
    add("--tls-cert", type=Path, metavar="FILE", help="certificate chain in PEM, for TLS")
    add("--tls-key", type=Path, metavar="FILE", help="its private key in PEM")
    add(
        "--tls-client-ca",
        type=Path,
        metavar="FILE",
        help="authorities in PEM that have to have signed a client's certificate",
    )
    add("--tokens", type=Path, metavar="FILE", help="tokens of those who may call")
    add("--blas", metavar="LIBRARY", help="BLAS library to preload on a Linux CPU")
    add("--threads", type=_positive, metavar="N", help="CPU cores to compute on (default: all)")
    add("--core-dumps", action="store_true", help="let a crash write a core file (default: none)")
    add("--log-format", choices=("auto", "json", "text"), default="auto")
    add("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    # What follows is for the controller.
    add("--report-fd", type=int, help=argparse.SUPPRESS)
    add("--parent", choices=("stdin",), help=argparse.SUPPRESS)
    add("--report-spans", action="store_true", help=argparse.SUPPRESS)
    values = parser.parse_args(argv)
    values.name = values.name or values.model_dir.resolve().name
    if not values.model_dir.is_dir():
        parser.error(f"--model: no directory at {values.model_dir}")
    if values.adapters is not None and not values.adapters.is_dir():
        parser.error(f"--adapters: no directory at {values.adapters}")
    config = RunnerConfig(**vars(values))
    if lacks := missing_beside(config.tls_cert, config.tls_key, config.tls_client_ca):
        parser.error(f"TLS needs --{lacks.replace('_', '-')} too")
    if not config.insecure and config.tls_cert is None and not is_local(config.listen):
        parser.error(
            f"--listen {config.listen}: reaches beyond this machine without TLS; listen on "
            "127.0.0.1 or a Unix socket, give --tls-cert and --tls-key, or allow it with --insecure"
        )
    return config


def _address(text: str) -> str:
    kind, _, path = text.partition(":")
    host, _, port = text.rpartition(":")
    # gRPC would take the remainder of a port that is too large.
    if (kind == "unix" and path) or (host and port.isdecimal() and int(port) < 65536):
        return text
    raise argparse.ArgumentTypeError(f"{text!r} is neither unix:/path nor host:port")


def _positive(text: str) -> int:
    return _at_least(1, text)


def _not_negative(text: str) -> int:
    return _at_least(0, text)


def _at_least(least: int, text: str) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of {least} or more")
    return int(text)


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text} is no positive time in seconds")
    return value
