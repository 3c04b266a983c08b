"""A runner that computes nothing: it sends as many tokens as it is asked for, at once.

A prompt is the time that it takes, in seconds: so long after `started` the first token comes.

What is measured with it is what stands before it. Without `--report-fd` it serves until its stdin
is closed; with it, it keeps the process protocol of a real runner.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from contextlib import suppress
from typing import Any

import grpc.aio

from headrace.host.handover import ReportWriter
from headrace.rpc.health import SERVING, HealthServicer
from headrace.v1.completion_pb2 import (
    FINISH_REASON_LENGTH,
    CompletionCompleted,
    CompletionDelta,
    CompletionStarted,
    StreamCompletionRequest,
    StreamCompletionResponse,
)
from tests.bench.bare_relay import METHOD, handler, until_stdin_ends

_KEPT = 128
"""Deltas that are made in advance."""


def _delta(tokens: int) -> bytes:
    delta = CompletionDelta(text=" word", token_ids=[4711], output_tokens=tokens)
    return StreamCompletionResponse(delta=delta).SerializeToString()


class FastRunner:
    """Answers from what it has ready."""

    def __init__(self) -> None:
        started = CompletionStarted(id="fast", prompt_tokens=9, seed=1)
        self._started = StreamCompletionResponse(started=started).SerializeToString()
        self._deltas = [_delta(tokens) for tokens in range(1, _KEPT + 1)]
        completed = CompletionCompleted()
        completed.choices.add(finish_reason=FINISH_REASON_LENGTH)
        self._completed = StreamCompletionResponse(completed=completed).SerializeToString()

    async def stream_completion(self, data: bytes, context: Any) -> None:
        """As many deltas as `max_tokens` says, at most those that are ready."""
        request = StreamCompletionRequest.FromString(data)
        await context.write(self._started)
        if prefill := float(request.prompt):
            await asyncio.sleep(prefill)
        for delta in self._deltas[: request.max_tokens]:
            await context.write(delta)
        await context.write(self._completed)


async def _serve(listen: str, digest: str, report_fd: int | None) -> None:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((handler(METHOD, FastRunner().stream_completion),))
    health = HealthServicer()
    health.set("", SERVING)
    health.add_to(server)
    server.add_insecure_port(listen)
    await server.start()
    if report_fd is not None:
        reports = ReportWriter(report_fd)
        reports.listening(listen, digest)
        reports.ready()
    else:
        print("ready", flush=True)
    await until_stdin_ends()
    await server.stop(0)


def main() -> int:
    """Gives the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listen", required=True)
    parser.add_argument("--digest", default="")
    parser.add_argument("--report-fd", type=int)
    options, _ = parser.parse_known_args()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with suppress(KeyboardInterrupt):
        asyncio.run(_serve(options.listen, options.digest, options.report_fd))
    return 0


if __name__ == "__main__":
    sys.exit(main())
