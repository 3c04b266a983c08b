"""Metrics of a controller and its runners: as text, and as Prometheus itself has them."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from headrace import AsyncClient, AsyncCompletionStream
from headrace.client import Client
from headrace.errors import QueueFull
from headrace.telemetry import names
from headrace.telemetry.names import CounterSpec, HistogramSpec, LevelSpec
from headrace.types import CompletionOptions, Delta, Progress
from headrace_server.monitoring.naming import family, label, series
from headrace_server.runners.diagnosis import DeathCause
from tests.e2e.harness import MODEL, PATIENCE, Controller, Place, StartController, headrace
from tests.e2e.receiver import Receiver

SPECS = [
    value
    for value in vars(names).values()
    if isinstance(value, CounterSpec | HistogramSpec | LevelSpec)
    and value not in (names.RPC_CLIENT_DURATION, names.IMAGES)
]
"""Those that a controller with models for text has."""
DEPLOY = Path(__file__).parents[2] / "deploy" / "otel"
_OPEN = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


def fetch(url: str, accept: str = "*/*") -> str:
    with _OPEN(urllib.request.Request(url, headers={"Accept": accept}), timeout=PATIENCE) as answer:
        text: str = answer.read().decode()
        return text


def url_of(controller: Controller) -> str:
    """Where it serves metrics."""
    (line,) = [line for line in controller.log() if line["message"] == "serving metrics"]
    return str(line["url"])


class Scrape:
    """One look at all metrics."""

    def __init__(self, url: str) -> None:
        text = fetch(url, "application/openmetrics-text; version=1.0.0")
        self.families: list[Metric] = [*text_string_to_metric_families(text)]  # type: ignore[no-untyped-call]

    @property
    def names(self) -> set[str]:
        return {sample.name for family in self.families for sample in family.samples}

    def sum(self, name: str, **labels: str) -> float:
        """Of all series of this name that have these labels."""
        return sum(
            sample.value
            for family in self.families
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def traces(self, name: str) -> set[str]:
        """Of the exemplars of a histogram."""
        return {
            sample.exemplar.labels["trace_id"]
            for family in self.families
            for sample in family.samples
            if family.name == name and sample.exemplar is not None
        }


def quoted(text: str) -> list[str]:
    return re.findall(r"`([a-z_.]+)`", text)


ENDLESS: CompletionOptions = {"max_tokens": 2000, "ignore_eos": True}
SOME = 16
"""Tokens of a stream that is to end."""
ONE_AT_A_TIME = ("--max-concurrency", "1", "--queue-per-model", "1", "--no-drafts")


async def first_token(stream: AsyncCompletionStream) -> None:
    async for event in stream:
        if isinstance(event, Delta):
            return


async def lose_a_runner(controller: Controller) -> None:
    """A stream whose runner is killed, and that goes on."""
    async with (
        AsyncClient(controller.target, timeout=PATIENCE) as client,
        client.stream_completion(MODEL, "x", max_tokens=SOME, ignore_eos=True) as stream,
    ):
        await first_token(stream)
        controller.runner().send_signal(signal.SIGKILL)
        assert (await stream.collect()).usage.output_tokens == SOME


async def be_refused(controller: Controller) -> None:
    """A call that finds the queue full; the two before it are cancelled."""
    async with (
        AsyncClient(controller.target, timeout=PATIENCE) as client,
        client.stream_completion(MODEL, "x", **ENDLESS) as served,
    ):
        await first_token(served)
        async with client.stream_completion(MODEL, "y", **ENDLESS) as waits:
            assert isinstance(await anext(aiter(waits)), Progress)
            with pytest.raises(QueueFull):
                await client.complete(MODEL, "z", max_tokens=1)


def complete(controller: Controller) -> str:
    """A call without trouble; gives its trace."""
    with Client(controller.target, timeout=PATIENCE) as client:
        done = client.complete(MODEL, "x", max_tokens=8, ignore_eos=True)
        assert done.trace_id
        return done.trace_id


def live(controller: Controller) -> str:
    """A little of everything that is measured; gives the last trace."""
    asyncio.run(lose_a_runner(controller))
    asyncio.run(be_refused(controller))
    with Client(controller.target, timeout=PATIENCE) as client:
        client.unload_model(MODEL)
    return complete(controller)


@pytest.fixture(scope="module")
def lived(shared_home: Path) -> Iterator[tuple[Controller, str]]:
    """A controller that has seen everything, and the last trace."""
    with Controller(shared_home, "--metrics-listen", "127.0.0.1:0", *ONE_AT_A_TIME) as running:
        yield running, live(running)


def test_every_metric_is_served_and_no_other(lived: tuple[Controller, str]) -> None:
    scrape = Scrape(url_of(lived[0]))
    expected = {name for spec in SPECS for name in series(spec)}
    ours = {name for name in scrape.names if name.startswith(("headrace_", "gen_ai_", "rpc_"))}
    assert ours == expected


def test_labels_are_those_that_the_page_names(lived: tuple[Controller, str]) -> None:
    page = (DEPLOY.parents[1] / "docs" / "metrics.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z_.]+)` \| \w+ \| \S+ \|([^|]*)\|", page, re.MULTILINE)
    whole = re.search(r"^All but ([^|]+) are by\s`headrace.model.name`", page, re.MULTILINE)
    assert whole is not None
    of_no_model = set(quoted(whole[1]))
    served = {one.name: one for one in Scrape(url_of(lived[0])).families}
    specs = {spec.name: spec for spec in SPECS}
    for name, attributes in rows:
        if name not in specs:
            continue
        told = {label(attribute) for attribute in quoted(attributes)}
        if name.startswith("headrace.") and name not in of_no_model:
            told.add("headrace_model_name")
        if name.startswith("headrace.engine."):
            told.add("headrace_runner_id")
        samples = served[family(name, specs[name].unit)].samples
        found = {key for sample in samples for key, value in sample.labels.items() if value}
        assert found - {"le"} <= told, name
        assert told - found <= {"error_type"}, name  # Not everything has failed.


def test_what_happened_is_counted(lived: tuple[Controller, str]) -> None:
    def engine_tokens() -> float:
        now = Scrape(url_of(lived[0]))
        return now.sum("headrace_engine_tokens_total", **one, gen_ai_token_type="output")

    scrape = Scrape(url_of(lived[0]))
    one = {label(names.HEADRACE_MODEL_NAME): MODEL}
    cause = label(names.HEADRACE_RUNNER_CAUSE_OF_DEATH)
    crashes = {
        why: count
        for why in get_args(DeathCause)
        if (count := scrape.sum("headrace_crashes_total", **one, **{cause: why}))
    }
    assert crashes == {"SIGNAL": 1}, lived[0].log_text()
    assert scrape.sum("headrace_resumes_total", **one, **{cause: "SIGNAL"}) == 1
    assert scrape.sum("headrace_refusals_total", **one, error_type="QUEUE_FULL") == 1
    assert scrape.sum("headrace_unloads_total", **one, headrace_unload_reason="unloaded") == 1
    assert scrape.sum("headrace_load_duration_seconds_count", **one) == 3
    assert scrape.sum("headrace_runners", **one, headrace_runner_state="serving") == 1
    # What the client saw: one that moved counts once, one that was refused too.
    requests = "gen_ai_server_request_duration_seconds_count"
    assert scrape.sum(requests, gen_ai_request_model=MODEL) == 5
    assert scrape.sum(requests, gen_ai_request_model=MODEL, error_type="") == 2
    assert scrape.sum(requests, error_type="cancelled") == 2
    assert scrape.sum(requests, error_type="QUEUE_FULL") == 1
    assert scrape.sum("gen_ai_server_time_to_first_token_seconds_count") == 3
    out = scrape.sum("headrace_tokens_total", **one, gen_ai_token_type="output")
    assert out >= SOME + 8
    # The runner of now has served one request. It reads its figures just after it has answered.
    until(lambda: engine_tokens() == 8)
    scrape = Scrape(url_of(lived[0]))
    assert scrape.sum("headrace_engine_requests_total", **one) == 1
    assert scrape.sum("headrace_engine_memory_weights_bytes", **one) > 0


def test_exemplars_lead_to_the_trace(lived: tuple[Controller, str]) -> None:
    controller, last = lived
    scrape = Scrape(url_of(controller))
    for histogram in (
        "gen_ai_server_request_duration_seconds",
        "gen_ai_server_time_to_first_token_seconds",
        "rpc_server_call_duration_seconds",
        "headrace_queue_duration_seconds",
        "headrace_load_duration_seconds",
    ):
        assert last in scrape.traces(histogram), histogram


def test_no_metrics_are_served_unless_told(controller: Controller) -> None:
    assert not [line for line in controller.log() if line["message"] == "serving metrics"]


def test_an_address_that_is_taken_is_the_users_to_mend(place: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        own = ("--listen", f"unix:{place.sockets}/m.sock")
        ended = headrace(place, "serve", *own, "--metrics-listen", address, check=False)
    assert ended.returncode == 1
    assert f"cannot serve metrics on {address}" in ended.stderr
    assert "--metrics-listen" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_successor_takes_the_metrics_over_with_the_address(start: StartController) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        metrics = f"127.0.0.1:{free.getsockname()[1]}"
    options = ("--takeover", "--metrics-listen", metrics)
    old = start(*options)
    new = start(*options, listen=old.target)
    assert old.wait() == 0
    complete(new)
    assert Scrape(url_of(new)).sum("headrace_tokens_total", gen_ai_token_type="output") == 8


@pytest.mark.toolchain
def test_promtool_has_nothing_to_say_against_them(lived: tuple[Controller, str]) -> None:
    promtool = program("promtool")
    text = fetch(url_of(lived[0]))
    checked = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed; it comes with Debian's prometheus")
    return found


class Prometheus:
    """The real one, with our rules, at one controller."""

    def __init__(self, url: str) -> None:
        self._url = url

    @classmethod
    @contextmanager
    def at(cls, controller: Controller, folder: Path) -> Iterator[Prometheus]:
        """Started, and stopped."""
        config = (DEPLOY / "prometheus.yaml").read_text(encoding="utf-8")
        config = config.replace("127.0.0.1:9464", urllib.parse.urlsplit(url_of(controller)).netloc)
        config = config.replace(
            "scrape_interval: 15s", "scrape_interval: 1s\n  evaluation_interval: 1s"
        )
        (folder / "prometheus.yaml").write_text(config, encoding="utf-8")
        shutil.copy(DEPLOY / "alerts.yaml", folder)
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = f"127.0.0.1:{free.getsockname()[1]}"
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [
                    program("prometheus"),
                    f"--config.file={folder}/prometheus.yaml",
                    f"--storage.tsdb.path={folder}/data",
                    f"--web.listen-address={address}",
                    "--enable-feature=exemplar-storage",
                ],
                stdout=log,
                stderr=log,
            )
        try:
            yield cls(f"http://{address}/api/v1")
        except BaseException:
            print((folder / "log").read_text(errors="replace")[-4000:])  # shown with the failure
            raise
        finally:
            process.terminate()
            process.wait(PATIENCE)

    def get(self, path: str, **parameters: str) -> Any:
        """The data of an answer; None while it cannot be had."""
        query = urllib.parse.urlencode(parameters)
        try:
            answer = json.loads(fetch(f"{self._url}/{path}?{query}"))
        except OSError:
            return None
        assert answer["status"] == "success"
        return answer["data"]

    def result(self, expression: str) -> list[Any]:
        """What an expression gives now."""
        data = self.get("query", query=expression)
        return data["result"] if data else []

    def rules(self) -> list[Any]:
        data = self.get("rules")
        return [rule for group in data["groups"] for rule in group["rules"]] if data else []


def until(holds: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.1)  # noqa: TID251 - nothing tells of it


@pytest.mark.toolchain
def test_prometheus_sees_a_crash_and_its_alert_fires(
    start: StartController, tmp_path: Path
) -> None:
    program("prometheus")
    controller = start("--metrics-listen", "127.0.0.1:0", *ONE_AT_A_TIME)
    complete(controller)
    with Prometheus.at(controller, tmp_path) as prometheus:
        crashes = f'headrace_crashes_total{{headrace_model_name="{MODEL}"}}'
        until(lambda: prometheus.result(crashes))
        asyncio.run(lose_a_runner(controller))

        def firing() -> set[str]:
            alerts = [alert for rule in prometheus.rules() for alert in rule["alerts"]]
            return {
                alert["labels"]["headrace_runner_cause_of_death"]
                for alert in alerts
                if alert["labels"]["alertname"] == "HeadraceRunnersCrash"
            }

        until(lambda: firing() == {"SIGNAL"})


@pytest.mark.toolchain
def test_prometheus_answers_every_panel_and_evaluates_every_rule(
    lived: tuple[Controller, str], tmp_path: Path
) -> None:
    program("prometheus")
    dashboard = json.loads((DEPLOY / "dashboard.json").read_text(encoding="utf-8"))
    panels = {
        target["expr"]
        .replace("$__rate_interval", "1m")
        .replace("$instance", ".*")
        .replace("$model", ".*")
        for panel in dashboard["panels"]
        for target in panel.get("targets", ())
    }
    # No load has failed, and nothing was drawn.
    absent = ("load_duration_seconds_count", "headrace_images_total")
    panels = {panel for panel in panels if not any(name in panel for name in absent)}
    controller, last = lived
    with Prometheus.at(controller, tmp_path) as prometheus:
        until(lambda: prometheus.result('up{job="headrace"} == 1'))
        until(lambda: all(prometheus.result(panel) for panel in panels))
        until(lambda: {rule["health"] for rule in prometheus.rules()} == {"ok"})

        def exemplars() -> set[str]:
            data = prometheus.get(
                "query_exemplars",
                query="gen_ai_server_time_to_first_token_seconds_bucket",
                start=str(time.time() - 3600),
                end=str(time.time() + 60),
            )
            return {one["labels"]["trace_id"] for each in data or () for one in each["exemplars"]}

        until(lambda: last in exemplars())


def test_a_runner_exports_its_engine_by_itself_and_the_controller_does_not(
    start: StartController,
) -> None:
    receiver = Receiver()
    try:
        controller = start(extra=receiver.environment)
        complete(controller)
        engine = {spec.name for spec in SPECS if spec.name.startswith("headrace.engine.")}

        def by(service: str) -> set[str]:
            return {name for owner, name in receiver.metrics if owner == service}

        receiver.wait_for(lambda: engine <= by("headrace-runner"), lambda: by("headrace-runner"))
        gen_ai = {spec.name for spec in SPECS if spec.name.startswith("gen_ai.")}
        receiver.wait_for(lambda: gen_ai <= by("headrace-runner") & by("headrace-controller"))
        assert not engine & by("headrace-controller")
        assert f'string_value: "{MODEL}"' in str(
            next(message for message in receiver.raw if "headrace.engine.step" in str(message))
        )
    finally:
        receiver.close()
