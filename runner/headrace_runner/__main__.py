"""`python -m headrace_runner`: prepares the process, then runs the app."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from headrace.host.batch import run_as_batch
from headrace.host.orders import SPARE, OrdersError, receive
from headrace_runner.config import RunnerConfig, parse
from headrace_runner.limits import allow_core_dumps, limit_process

_PREPARED = "HEADRACE_RUNNER_PREPARED"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a runner until it is told to stop. Gives the exit status."""
    began = time.time_ns()
    run_as_batch()  # before there are threads
    words = sys.argv[1:] if argv is None else list(argv)
    spare = words == [SPARE]
    if spare:
        words = _wait_for_orders()
    config = parse(words)
    if config.parent is not None:
        _die_with_parent()
    elif os.environ.get(_PREPARED) is None:
        _restart_prepared(config, words)
    # Late: this imports MLX, which reads the environment once.
    from headrace_runner.app import preload, run

    preload(config)
    if not spare:
        limit_process()
    if config.core_dumps:
        allow_core_dumps()
    return run(config, None if spare else (began, time.time_ns()))


def _wait_for_orders() -> list[str]:
    """Does what every start begins with, and waits to be told the rest.

    Exits with status 0 when nobody will: the controller needs no spare any more, or has gone.
    """
    _die_with_parent()
    # Imports alone: nothing of MLX is computed, and no thread started, before there is a model.
    # Most models are for text, whose imports are also the slow ones.
    import headrace_runner.app
    import headrace_runner.text_app  # noqa: F401 (for later)

    limit_process()
    try:
        orders = receive(0)
    except OrdersError as error:
        print(f"headrace_runner: {SPARE}: bad orders: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    if orders is None:
        raise SystemExit(0)
    os.environ.update(orders.environment)
    return list(orders.arguments)


def _die_with_parent() -> None:
    """Has the kernel kill this process when its parent dies, where it can (Linux).

    The app watches stdin for the same end once it runs; until then only this does.
    """
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)
    stdin = select.poll()
    stdin.register(0, select.POLLHUP)
    if stdin.poll(0):
        sys.exit(0)  # The parent died before this process could ask to be told.


def _restart_prepared(config: RunnerConfig, words: Sequence[str]) -> None:
    """Starts this program anew with the environment that a controller would have given it.

    A library to preload and the number of BLAS threads are read once, before Python runs.
    """
    from headrace.host.blas import BlasError, find_blas
    from headrace.host.compiler import has_cxx
    from headrace.host.environment import runner_environment
    from headrace.host.machine import describe

    home = Path(os.environ.get("HEADRACE_HOME") or Path.home() / ".headrace")
    try:
        blas = find_blas(config.blas or os.environ.get("HEADRACE_BLAS"), home)
    except BlasError as error:
        print(f"headrace_runner: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    environment = runner_environment(os.environ, describe(), blas, has_cxx(), config.threads)
    environment[_PREPARED] = "1"
    os.execve(sys.executable, [sys.executable, "-m", "headrace_runner", *words], environment)


if __name__ == "__main__":
    sys.exit(main())
