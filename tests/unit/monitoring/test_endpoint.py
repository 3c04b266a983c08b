"""The endpoint over real HTTP."""

from __future__ import annotations

import asyncio
import socket
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import metrics
from prometheus_client.parser import text_string_to_metric_families

from headrace.telemetry import names
from headrace_server.listening import CannotListenError
from headrace_server.monitoring import endpoint as endpoints
from headrace_server.monitoring import serve_metrics
from headrace_server.monitoring.endpoint import Endpoint
from headrace_server.monitoring.naming import label
from headrace_server.monitoring.web import CLIENTS
from headrace_server.scheduling import planner
from tests.unit.control.fakes import FakeModel
from tests.unit.control.stages import Stage

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


@asynccontextmanager
async def two_runners(folder: Path) -> AsyncIterator[tuple[Stage, str, str]]:
    """The first of which does not say how it does, and their ids."""
    stage = Stage(folder)
    try:
        for key in ("a", "b"):
            with stage.scheduler.ask(FakeModel(key)) as ticket:
                await ticket.granted()
        late, quick = stage.launcher.runners
        late.reports.clear()
        yield stage, late.id, quick.id
        late.reports.set()
    finally:
        await stage.scheduler.close()


def series_by_runner(text: str) -> dict[str, set[str]]:
    """The names of what a scrape has of each."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if label(names.HEADRACE_RUNNER_ID) in sample.labels:
                runner = sample.labels[label(names.HEADRACE_RUNNER_ID)]
                found.setdefault(runner, set()).add(sample.name)
    return found


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


async def test_whoever_scrapes_at_once_gets_all(endpoint: Endpoint) -> None:
    url = endpoint.listen("127.0.0.1:0")
    counter = metrics.get_meter("test").create_counter("test.scrapes")
    counter.add(1)
    answers = await asyncio.gather(*(get(url) for _ in range(CLIENTS)))
    assert [text.count("\ntest_scrapes_total 1.0\n") for _, text in answers] == [1] * CLIENTS


async def test_a_runner_that_does_not_answer_is_served_without_its_figures(
    tmp_path: Path,
) -> None:
    async with two_runners(tmp_path) as (stage, late, quick):
        endpoint = Endpoint(stage.scheduler.runners, shared=False)
        found = series_by_runner((await get(endpoint.listen("127.0.0.1:0")))[1])
        await endpoint.close()
    assert found[late] == {"headrace_runner_memory_bytes"}
    assert found[quick] > {"headrace_runner_memory_bytes", "headrace_engine_running"}


async def test_no_scrape_waits_for_reports_that_do_not_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(endpoints, "_REPORTS", 0.1)
    monkeypatch.setattr(planner, "_LOOK_TIMEOUT", 60.0)
    async with two_runners(tmp_path) as (stage, *_):
        endpoint = Endpoint(stage.scheduler.runners, shared=False)
        _, text = await get(endpoint.listen("127.0.0.1:0"))
        await endpoint.close()
    assert not series_by_runner(text)
    assert "process_max_fds" in text
    assert "their reports did not come in time" in caplog.text


async def test_an_endpoint_that_never_listened_can_be_closed(endpoint: Endpoint) -> None:
    await endpoint.close()
