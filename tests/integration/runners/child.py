"""A stand-in for a runner that keeps the process protocol and then behaves as its mode says."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator

import grpc.aio
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from headrace.host.handover import ReportWriter
from headrace.host.orders import SPARE, receive


class Health:
    def __init__(self) -> None:
        self._serving = False
        self._changed = asyncio.Condition()

    async def set(self, serving: bool) -> None:
        async with self._changed:
            self._serving = serving
            self._changed.notify_all()

    def _response(self) -> HealthCheckResponse:
        status = HealthCheckResponse.SERVING if self._serving else HealthCheckResponse.NOT_SERVING
        return HealthCheckResponse(status=status)

    async def check(self, request: HealthCheckRequest, context: object) -> HealthCheckResponse:
        return self._response()

    async def watch(
        self, request: HealthCheckRequest, context: object
    ) -> AsyncIterator[HealthCheckResponse]:
        while True:
            response = self._response()
            yield response
            async with self._changed:
                while self._response() == response:
                    await self._changed.wait()

    def handler(self, mode: str) -> grpc.GenericRpcHandler:
        decode, encode = HealthCheckRequest.FromString, HealthCheckResponse.SerializeToString
        if mode == "babbles":
            encode = lambda _: b"\xff\xff nonsense"  # noqa: E731
        return grpc.method_handlers_generic_handler(
            "grpc.health.v1.Health",
            {
                "Check": grpc.unary_unary_rpc_method_handler(self.check, decode, encode),
                "Watch": grpc.unary_stream_rpc_method_handler(self.watch, decode, encode),
            },
        )


async def serve(mode: str, options: argparse.Namespace, reports: ReportWriter) -> None:
    loop = asyncio.get_running_loop()
    health, done = Health(), asyncio.Event()
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((health.handler(mode),))
    server.add_insecure_port(options.listen)
    await server.start()
    if mode == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    elif mode != "drains":
        loop.add_signal_handler(signal.SIGTERM, done.set)
    tasks: set[asyncio.Task[None]] = set()

    def turn(serving: bool) -> None:
        tasks.add(loop.create_task(health.set(serving)))

    def drain() -> None:
        loop.add_signal_handler(signal.SIGTERM, done.set)
        reports.draining(60.0)
        turn(False)

    if mode == "drains":
        loop.add_signal_handler(signal.SIGTERM, drain)
    if mode == "mute-in-service":
        loop.add_signal_handler(signal.SIGUSR1, reports.close)
    else:
        loop.add_signal_handler(signal.SIGUSR1, turn, False)
    loop.add_signal_handler(signal.SIGUSR2, turn, True)
    if mode == "mute-at-start":
        reports.close()
    reports.listening(options.listen, "sha256:other" if mode == "impostor" else options.digest)
    if mode == "mute-at-load":
        reports.close()
    elif mode == "lingers":
        reports.failed("UNSUPPORTED_MODEL", "no such architecture")
    elif mode == "claims":
        reports.ready()
    elif mode != "stuck":
        reports.loading(0.5)
        await health.set(True)
        reports.ready()
    await done.wait()
    await server.stop(0)


async def until_orphaned(work: asyncio.Task[None]) -> None:
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    end = asyncio.create_task(reader.read())
    await asyncio.wait({work, end}, return_when=asyncio.FIRST_COMPLETED)
    work.cancel()
    end.cancel()
    transport.close()


async def main(mode: str, options: argparse.Namespace, reports: ReportWriter) -> None:
    if mode == "silent":
        await until_orphaned(asyncio.create_task(asyncio.sleep(60)))
    else:
        await until_orphaned(asyncio.create_task(serve(mode, options, reports)))


def parse() -> tuple[str, argparse.Namespace]:
    mode, words = sys.argv[1], sys.argv[2:]
    if words == [SPARE]:
        if mode == "bad-spare":
            sys.exit("broken on purpose")
        orders = receive(0)
        if orders is None:
            sys.exit(0)
        os.environ.update(orders.environment)
        words = list(orders.arguments)
    parser = argparse.ArgumentParser()
    texts = ("listen", "digest", "id", "kind", "model", "name", "parent", "dtype")
    for name in (*texts, "log-format", "log-level"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("report-fd", "max-concurrency"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--stall-timeout", type=float, required=True)
    return mode, parser.parse_args(words)


def run() -> None:
    mode, options = parse()
    reports = ReportWriter(options.report_fd)
    match mode:
        case "long-line":
            sys.stderr.write("x" * 10_000_000 + "libc++abi: terminating")
            sys.stderr.flush()
            os.abort()
        case "out-of-memory":
            print("[METAL] Command buffer execution failed: Insufficient Memory", file=sys.stderr)
            os.abort()
        case "glutton":
            eaten = []
            while True:
                eaten.append(b"x" * (1 << 20))
        case "fail":
            reports.failed("MODEL_CORRUPT", "model.safetensors is cut short", "model.safetensors")
            sys.exit(1)
        case "garbage":
            os.write(options.report_fd, b"not json\n" + b"y" * 200_000 + b"\n")
            reports.failed("UNSUPPORTED_MODEL", "no such architecture")
            sys.exit(1)
        case "raise":
            raise RuntimeError("broken on purpose")
        case "grandchild":
            # Holds every inherited pipe open for longer than any test waits.
            child = subprocess.Popen(["sleep", "30"])
            print(child.pid, flush=True)
            sys.exit(3)
        case "print":
            line = {"level": "ERROR", "message": "hello", "logger": "child", "trace_id": "ab" * 16}
            print(json.dumps(line | {"name": "reserved"}), file=sys.stderr)
            print("plain text", flush=True)
        case _:
            asyncio.run(main(mode, options, reports))


if __name__ == "__main__":
    run()
