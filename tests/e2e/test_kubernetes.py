"""Pods as the manifests have them, but for Kubernetes: the very arguments, environment, settings,
probes and preStop, with paths and ports of this machine in the place of the pod's own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import grpc
import psutil
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from headrace import Client
from headrace.cli.authority import Authority
from headrace.errors import HeadraceError, Unauthenticated
from tests import manifests
from tests.e2e.front import envoy, free_port
from tests.e2e.harness import MODEL, PATIENCE, Place, eventually, headrace
from tests.manifests import Object, container, one

pytestmark = [pytest.mark.toolchain, pytest.mark.timeout(300)]

PROMPT = "The capital of France is"
# What is ours here: two cores, which the tests share with the models.
MEASURE = {"HEADRACE_THREADS": "1", "HEADRACE_SPARE": "false"}


class Pod:
    """A container of a workload, as a process."""

    def __init__(
        self, place: Place, found: Object, paths: Mapping[str, Path], ports: Mapping[str, int]
    ) -> None:
        self._place = place
        self._found = found
        self._paths = paths
        self._ports = ports
        own = {variable["name"]: self._here(variable["value"]) for variable in found.get("env", ())}
        # Nothing of this machine's but where programs are, and by what the harness finds it.
        kept = {
            k: v
            for k, v in place.environment.items()
            if not k.startswith("HEADRACE_") and k != "XDG_RUNTIME_DIR"
        }
        kept["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        kept["TMPDIR"] = str(place.sockets)
        marks = {k: v for k, v in place.environment.items() if k == "HEADRACE_TEST_MARK"}
        self.environment = {**kept, **marks, **MEASURE, **own}
        self.process: subprocess.Popen[bytes] | None = None
        self.log = place.sockets / f"{found['name']}.log"

    def _here(self, text: str) -> str:
        for path, mine in self._paths.items():
            if text.startswith(path):
                return f"{mine}{text.removeprefix(path)}"
        for port, other in self._ports.items():
            text = text.replace(port, str(other))
        return text

    def run(
        self, command: list[str], timeout: float = PATIENCE
    ) -> subprocess.CompletedProcess[str]:
        """What Kubernetes executes in the container."""
        return subprocess.run(
            [self._here(word) for word in command],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )

    def start(self, *, cwd: Path | None = None) -> None:
        entry = self._found.get("command") or ["headrace"]  # the image's entry point
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [self._here(word) for word in [*entry, *self._found.get("args", ())]],
                env=self.environment,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def probe(self, name: str) -> bool:
        """One attempt, as the kubelet makes it."""
        found = self._found[name]
        timeout = found["timeoutSeconds"]
        if "exec" in found:
            return self.run(found["exec"]["command"], timeout=timeout).returncode == 0
        port = self._ports[str(found["grpc"]["port"])]
        request = HealthCheckRequest(service=found["grpc"].get("service", ""))
        with suppress(grpc.RpcError), grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            answer = HealthStub(channel).Check(request, timeout=timeout, wait_for_ready=True)
            return bool(answer.status == HealthCheckResponse.SERVING)
        return False

    def wait_until_started(self) -> None:
        """No longer than the startup probe lets it take."""
        assert self.process is not None
        until = time.monotonic() + 3 * PATIENCE
        while not self.probe("startupProbe"):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < until, self.log.read_text()
            time.sleep(0.1)  # noqa: TID251 - as the kubelet does

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class Site:
    """A controller by an overlay's StatefulSet, with its Secrets and ConfigMaps as files."""

    def __init__(self, overlay: str, home: Path, directory: Path) -> None:
        self.objects = manifests.overlay(overlay)
        self.directory = directory
        self.place = Place(home)
        workload = one(self.objects, "StatefulSet")
        self.workload = workload
        self.port = free_port()
        self.ports = {"50151": self.port, "9464": free_port()}
        config = volume(
            directory / "config", one(self.objects, "ConfigMap", "headrace-config")["data"]
        )
        self.paths = {
            "/var/lib/headrace": home,
            "/etc/headrace/config": config,
            "/etc/headrace/tls": directory / "tls",
            "/etc/headrace/tokens": directory / "tokens",
            "/tmp": self.place.sockets,
        }
        self.token = ""
        self.authority = directory / "made" / "ca.crt"
        if overlay != "plain":
            self._secrets()
        self.pod = Pod(self.place, container(workload, "controller"), self.paths, self.ports)

    def _secrets(self) -> None:
        made = self.authority.parent
        made.mkdir()
        Authority(made).issue("server", ("headrace", "localhost"), 1, server=True)
        names = {"tls.crt": "server.crt", "tls.key": "server.key", "ca.crt": "ca.crt"}
        files = {name: (made / file).read_text() for name, file in names.items()}
        volume(self.directory / "tls", files)
        tokens = made / "tokens.json"
        self.place.environment["HEADRACE_TOKENS"] = str(tokens)
        self.token = headrace(
            self.place, "token", "create", "--scope", "infer", "--scope", "observe"
        ).stdout.strip()
        volume(self.directory / "tokens", {"tokens.json": tokens.read_text()})

    def client(self, port: int | None = None) -> Client:
        if not self.token:
            return Client(f"127.0.0.1:{self.port}", timeout=3 * PATIENCE)
        trusted = grpc.ssl_channel_credentials(self.authority.read_bytes())
        target = f"https://localhost:{port or self.port}"
        return Client(target, timeout=3 * PATIENCE, credentials=trusted, token=self.token)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is not None and self.pod.log.exists():
            print(self.pod.log.read_text(errors="replace")[-8000:])
        self.pod.stop()
        self.place.close()


def volume(at: Path, files: Mapping[str, str]) -> Path:
    """Files as the kubelet lays out a Secret: links to links, changed all at once."""
    at.mkdir(parents=True, exist_ok=True)
    version = Path(tempfile.mkdtemp(prefix="..2026_", dir=at))
    for name, text in files.items():
        (version / name).write_text(text)
        (version / name).chmod(0o440)
        if not (at / name).is_symlink():
            (at / name).symlink_to(Path("..data", name))
    fresh = at / "..data_tmp"
    fresh.symlink_to(version.name)
    fresh.replace(at / "..data")
    return at


@pytest.mark.parametrize("overlay", ["plain", "tls"])
def test_a_pod_becomes_ready_drains_and_ends_in_time(
    overlay: str, home: Path, tmp_path: Path
) -> None:
    with Site(overlay, home, tmp_path) as site:
        pod, spec = site.pod, site.workload["spec"]["template"]["spec"]
        models = Pod(site.place, container(site.workload, "models"), site.paths, site.ports)
        pulled = models.run(["headrace", *container(site.workload, "models")["args"]])
        assert pulled.returncode == 0, pulled.stderr
        pod.start()
        pod.wait_until_started()
        assert pod.probe("readinessProbe")
        assert pod.probe("livenessProbe")
        with site.client() as client:
            whole = client.complete(MODEL, PROMPT, max_tokens=8, temperature=0)
            assert "Paris" in whole.text
            stream = client.stream_completion(MODEL, PROMPT, max_tokens=600, ignore_eos=True)
            with stream:
                next(stream.text)
                assert pod.process is not None
                runners = psutil.Process(pod.process.pid).children(recursive=True)
                for runner in runners:
                    runner.suspend()  # However fast it is, the stream is still running below.
                # Kubernetes ends the pod: preStop, SIGTERM, and after what is left of it SIGKILL.
                began = time.monotonic()
                hook = container(site.workload, "controller")["lifecycle"]["preStop"]
                assert pod.run(hook["exec"]["command"]).returncode == 0
                if overlay == "plain":
                    assert pod.probe("readinessProbe")  # it still takes what comes late
                pod.process.send_signal(signal.SIGTERM)
                assert eventually(lambda: "draining" in pod.log.read_text())
                assert not pod.probe("readinessProbe")
                assert pod.process.poll() is None
                assert '"output_tokens": 600' not in pod.log.read_text()
                for runner in runners:
                    runner.resume()
                end = stream.collect()
            assert end.usage.output_tokens == 600
            left = spec["terminationGracePeriodSeconds"] - (time.monotonic() - began)
            assert pod.process.wait(left) == 0
        assert not pod.probe("readinessProbe")


def test_a_pod_lets_nobody_in_without_a_token_and_takes_a_renewed_secret(
    home: Path, tmp_path: Path
) -> None:
    with Site("tls", home, tmp_path) as site:
        site.pod.start()
        site.pod.wait_until_started()
        trusted = grpc.ssl_channel_credentials(site.authority.read_bytes())
        target = f"https://localhost:{site.port}"
        with (
            Client(target, timeout=PATIENCE, credentials=trusted) as stranger,
            pytest.raises(Unauthenticated),
        ):
            stranger.list_models()
        with site.client() as client:
            assert MODEL in [model.name for model in client.list_models()]
            volume(site.directory / "tokens", {"tokens.json": '{"schema": 1, "tokens": []}'})

            def refused() -> bool:
                try:
                    client.list_models()
                except Unauthenticated:
                    return True
                return False

            assert eventually(refused)


def test_the_base_alone_does_not_open_its_port(home: Path, tmp_path: Path) -> None:
    with Site("plain", home, tmp_path) as site:
        del site.pod.environment["HEADRACE_INSECURE"]
        del site.pod.environment["HEADRACE_METRICS_LISTEN"]
        site.pod.start()
        assert site.pod.process is not None
        assert site.pod.process.wait(PATIENCE) == 2
        assert "without TLS" in site.pod.log.read_text()


class FrontPod(Pod):
    """Envoy by the overlay's Deployment."""

    def __init__(self, site: Site) -> None:
        found = container(one(site.objects, "Deployment"), "envoy")
        at = site.directory / "front"
        for name in ("config", "secrets"):
            data = one(site.objects, "ConfigMap", f"headrace-front-{name}")["data"]
            volume(at / name, {key: self._local(text, site) for key, text in data.items()})
        (at / "contract").mkdir()
        manifests.descriptors(at / "contract" / "headrace.binpb")
        made = site.authority.parent
        Authority(made).issue("front", ("localhost",), 1, server=True)
        (projected,) = (
            v["projected"]["sources"][0]["secret"]["items"]
            for v in one(site.objects, "Deployment")["spec"]["template"]["spec"]["volumes"]
            if v["name"] == "tls"
        )
        secret = {"tls.crt": "front.crt", "tls.key": "front.key", "ca.crt": "ca.crt"}
        volume(at / "tls", {i["path"]: (made / secret[i["key"]]).read_text() for i in projected})
        self.at = at
        super().__init__(site.place, found, {}, self.ports_of(site))
        self.environment["PATH"] = f"{envoy().parent}{os.pathsep}{self.environment['PATH']}"

    def ports_of(self, site: Site) -> dict[str, int]:
        if not hasattr(self, "_chosen"):
            self._chosen = {"8443": free_port(), "9901": free_port(), "4317": free_port()}
        return self._chosen | {"50151": site.port}

    def _local(self, text: str, site: Site) -> str:
        """Names that the cluster's DNS would know are this machine, which has one of each port."""
        for name in ("headrace-pods", "otel-collector"):
            text = text.replace(f"address: {name},", "address: 127.0.0.1,")
        for port, other in self.ports_of(site).items():
            text = text.replace(f"port_value: {port}", f"port_value: {other}")
        return text


@pytest.fixture
def behind(home: Path, tmp_path: Path) -> Iterator[tuple[Site, FrontPod]]:
    """A controller by the overlay `envoy`, and Envoy before it."""
    envoy()
    with Site("envoy", home, tmp_path) as site:
        site.pod.start()
        site.pod.wait_until_started()
        front = FrontPod(site)
        front.start(cwd=front.at)
        try:
            yield site, front
        finally:
            front.stop()
            print(front.log.read_text(errors="replace")[-4000:])  # shown where a test fails


def reached(ask: Callable[[], Any]) -> Any:
    """What it gives, once Envoy has found its controller."""

    def attempt() -> Any:
        with suppress(HeadraceError):
            return ask()
        return None

    return eventually(attempt)


def test_envoy_finds_controllers_by_their_name_and_goes_without_breaking_streams(
    behind: tuple[Site, FrontPod],
) -> None:
    site, front = behind
    with site.client(front.ports_of(site)["8443"]) as client:
        assert reached(client.list_models)
        stream = client.stream_completion(MODEL, PROMPT, max_tokens=200, ignore_eos=True)
        with stream:
            next(stream.text)
            words = front._found["lifecycle"]["preStop"]["exec"]["command"]
            slept = [word.replace("sleep 130", "sleep 0") for word in words]
            assert slept != words
            told = front.run(slept)
            assert told.returncode == 0
            assert told.stdout.startswith("HTTP/1.1 200"), told.stdout + told.stderr
            assert stream.collect().usage.output_tokens == 200
    assert front.process is not None
    assert front.process.poll() is None
    lines = [json.loads(line) for line in eventually(lambda: calls(front))]
    assert {"OK"} <= {line["grpc_status"] for line in lines}
    front.process.terminate()
    assert front.process.wait(PATIENCE) == 0


def calls(front: FrontPod) -> list[str]:
    """Its access log, which it has on its standard output."""
    lines = front.log.read_text(errors="replace").splitlines()
    return [line for line in lines if line.startswith("{") and "StreamCompletion" in line]
