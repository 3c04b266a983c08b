"""The load generator: one stream of a server, read as it comes, over gRPC or over HTTP.

Output counts as arrived once text is there to show; tokens whose text is held back count with it.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Protocol

from headrace import AsyncClient, Delta
from tests.bench.children import BenchError
from tests.bench.stats import Arrival, Trace

_LINE_BYTES = 1 << 20


class Recorder:
    """Notes what arrives on one stream, and says so to `on_arrival`."""

    def __init__(self, on_arrival: Callable[[], None] = lambda: None) -> None:
        self._on_arrival = on_arrival
        self._sent = time.perf_counter()
        self._arrivals: list[Arrival] = []
        self._texts: list[str] = []
        self._held = 0

    @property
    def times(self) -> list[float]:
        """When output arrived, so far."""
        return [arrival.time for arrival in self._arrivals]

    def note(self, tokens: int, text: str) -> None:
        """Notes output that has just arrived."""
        self._held += tokens
        if text:
            self._texts.append(text)
            self._arrivals.append(Arrival(time.perf_counter(), self._held))
            self._held = 0
            self._on_arrival()

    def trace(self, prompt_tokens: int, tokens: int, cached_tokens: int = 0) -> Trace:
        """The stream, complete. `tokens` is their number as the server says it.

        A server that does not say how many tokens each piece of text has gets them spread evenly.
        Raises BenchError where nothing has arrived.
        """
        noted = sum(arrival.tokens for arrival in self._arrivals)
        if not noted:
            raise BenchError("a stream ended without any output")
        share = tokens / noted
        arrivals = tuple(Arrival(one.time, one.tokens * share) for one in self._arrivals)
        return Trace(self._sent, arrivals, prompt_tokens, "".join(self._texts), cached_tokens)


class Stream(Protocol):
    """A greedy completion of `prompt` by some server: so many tokens, noted as they come."""

    def __call__(
        self, prompt: str, tokens: int, recorder: Recorder | None = None
    ) -> Coroutine[Any, Any, Trace]: ...


async def grpc_stream(
    client: AsyncClient, model: str, prompt: str, tokens: int, recorder: Recorder | None = None
) -> Trace:
    """A greedy completion of exactly `tokens` tokens, by Headrace's own client."""
    recorder = recorder or Recorder()
    async with client.stream_completion(
        model, prompt, temperature=0.0, max_tokens=tokens, ignore_eos=True
    ) as stream:
        async for event in stream:
            if isinstance(event, Delta):
                recorder.note(len(event.token_ids), event.text)
        usage = (await stream.collect()).usage
    return recorder.trace(usage.prompt_tokens, usage.output_tokens, usage.cached_tokens)


async def sse_stream(
    port: int,
    more: Mapping[str, object],
    prompt: str,
    tokens: int,
    recorder: Recorder | None = None,
) -> Trace:
    """A greedy completion of at most `tokens` tokens from an OpenAI-like server on this machine.

    `more` are fields of the request that this server knows beyond the common ones.
    """
    recorder = recorder or Recorder()
    usage: dict[str, Any] = {}

    def take(event: dict[str, Any]) -> None:
        usage.update(event.get("usage") or {})
        for choice in event["choices"]:
            recorder.note(1, choice["text"])

    body = {
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        **more,
    }
    await _post(port, "/v1/completions", body, take)
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    return recorder.trace(usage["prompt_tokens"], usage["completion_tokens"], cached)


async def _post(port: int, path: str, body: object, take: Callable[[dict[str, Any]], None]) -> None:
    """Sends a request and gives each event of the answer to `take`."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=_LINE_BYTES)
    try:
        data = json.dumps(body).encode()
        writer.write(
            f"POST {path} HTTP/1.0\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(data)}\r\n\r\n".encode()
            + data
        )
        status = await reader.readline()
        if b" 200 " not in status:
            raise BenchError(f"HTTP said {status!r}")
        async for line in reader:
            if line.startswith(b"data: {"):
                take(json.loads(line.removeprefix(b"data: ")))
    finally:
        writer.close()
