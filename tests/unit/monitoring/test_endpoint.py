"""The endpoint over real HTTP."""

from __future__ import annotations

import asyncio
import socket
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Any

import pytest
from opentelemetry import metrics

from headrace_server.listening import CannotListenError
from headrace_server.monitoring import serve_metrics
from headrace_server.monitoring.endpoint import Endpoint

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def nobody() -> list[Any]:
    return []


async def get(url: str, accept: str = "*/*") -> tuple[str, str]:
    """Content type and text."""

    def fetch() -> tuple[str, str]:
        request = urllib.request.Request(url, headers={"Accept": accept})
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=30) as answer:
            return answer.headers["Content-Type"], answer.read().decode()

    return await asyncio.to_thread(fetch)


@pytest.fixture
async def endpoint() -> AsyncIterator[Endpoint]:
    made = Endpoint(nobody, shared=False)
    yield made
    await made.close()


async def test_it_answers_in_the_format_that_is_asked_for(endpoint: Endpoint) -> None:
    url = endpoint.listen("127.0.0.1:0")
    kind, text = await get(url)
    assert kind.startswith("text/plain")
    assert "process_resident_memory_bytes " in text
    kind, text = await get(url, OPENMETRICS)
    assert kind.startswith("application/openmetrics-text")
    assert text.endswith("# EOF\n")


async def test_ipv6_too(endpoint: Endpoint) -> None:
    try:
        url = endpoint.listen("[::1]:0")
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    assert url.startswith("http://[::1]:")
    assert "process_max_fds" in (await get(url))[1]


async def test_an_address_that_is_taken_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(CannotListenError, match="--metrics-listen"):
            serve_metrics(address, nobody, shared=False)


async def test_two_may_share_an_address_and_one_goes_on_alone() -> None:
    first = Endpoint(nobody, shared=True)
    url = first.listen("127.0.0.1:0")
    second = Endpoint(nobody, shared=True)
    second.listen(url.split("/")[2])
    await first.close()
    assert "process_max_fds" in (await get(url))[1]
    await second.close()
    with pytest.raises(urllib.error.URLError):
        await get(url)


async def test_clients_that_say_nothing_hold_nobody_up(endpoint: Endpoint) -> None:
    url = endpoint.listen("127.0.0.1:0")
    port = int(url.split("/")[2].rpartition(":")[2])
    began = time.monotonic()
    with ExitStack() as stack:
        for _ in range(6):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        assert "process_max_fds" in (await get(url))[1]
    assert time.monotonic() - began < 20, "one after the other they would have taken 30 s"


async def test_whoever_scrapes_at_once_gets_all(endpoint: Endpoint) -> None:
    url = endpoint.listen("127.0.0.1:0")
    counter = metrics.get_meter("test").create_counter("test.scrapes")
    counter.add(1)
    answers = await asyncio.gather(*(get(url) for _ in range(12)))
    assert [text.count("\ntest_scrapes_total 1.0\n") for _, text in answers] == [1] * 12


async def test_an_endpoint_that_never_listened_can_be_closed(endpoint: Endpoint) -> None:
    await endpoint.close()
