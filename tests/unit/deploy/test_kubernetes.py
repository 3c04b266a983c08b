"""What Kubernetes is given: right by its schemas, and right by what Headrace needs.

Those with the mark `toolchain` have kustomize and Helm make it first.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from headrace_server.config import Sources, read
from scripts.kubernetes import SOURCE, TARGET, generate
from tests import manifests
from tests.manifests import CHART, KUBERNETES, OVERLAYS, ROOT, Object, container, one
from tests.tools import tool

VERSIONS = ("1.30", kubernetes_validate.latest_version())
CHARTED = {"plain": "mesh", "tls": "tls"}
"""The chart's `protection` by the overlay that says the same."""

toolchain = pytest.mark.toolchain


@cache
def built(overlay: str) -> list[Object]:
    return manifests.overlay(overlay)


@cache
def charted(overlay: str) -> list[Object]:
    return manifests.chart("--set", f"protection={CHARTED[overlay]}")


def validate(objects: list[Object]) -> None:
    for version in VERSIONS:
        for found in objects:
            kubernetes_validate.validate(found, version, strict=True)


def seconds(time: str) -> int:
    return int(time[:-1]) * {"s": 1, "m": 60}[time[-1]]


def written() -> Iterator[tuple[Path, Object]]:
    for path in [*(KUBERNETES / "base").glob("*.yaml"), *KUBERNETES.glob("overlays/*/front.yaml")]:
        if path.name != "kustomization.yaml":
            for found in yaml.safe_load_all(path.read_text(encoding="utf-8")):
                yield path, found


@pytest.mark.parametrize(
    "found", [f for _, f in written()], ids=lambda f: f"{f['kind']}-{f['metadata']['name']}"
)
def test_a_manifest_is_right_by_the_schema(found: Object) -> None:
    validate([found])


def test_the_schema_knows_a_mistake() -> None:
    found = next(f for _, f in written() if f["kind"] == "StatefulSet")
    found["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        validate([found])


def test_envoy_s_configuration_is_made_of_the_one_that_there_is() -> None:
    source = SOURCE.read_text(encoding="utf-8")
    assert TARGET.read_text(encoding="utf-8") == generate(source), "run `make kubernetes`"
    with pytest.raises(ValueError, match="0 times"):
        generate(source.replace("type: EDS", "type: STATIC"))


def test_the_settings_are_right_and_the_pod_has_time_for_them() -> None:
    file = KUBERNETES / "base" / "config.toml"
    config = read(Sources(["--config", str(file)])).config
    stateful = next(f for _, f in written() if f["kind"] == "StatefulSet")
    pod = stateful["spec"]["template"]["spec"]
    controller = container(stateful, "controller")
    wait = int(controller["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] == wait + config.grace + 20
    front = next(f for _, f in written() if f["kind"] == "Deployment")
    script = container(front, "envoy")["lifecycle"]["preStop"]["exec"]["command"][-1]
    drained = int(script.split()[-1])
    assert wait + config.grace <= drained
    assert drained < front["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    limit = controller["resources"]["limits"]["memory"]
    assert limit.endswith("Gi")
    assert config.memory is not None
    assert config.memory <= 0.75 * int(limit[:-2]) * 2**30
    # What is loaded at once has been pulled before.
    assert config.preload == (container(stateful, "models")["args"][1],)


def test_the_dockerfile_is_clean() -> None:
    hadolint = tool("hadolint")
    if hadolint is None:
        pytest.skip("hadolint has no wheel for this machine")
    file = ROOT / "deploy" / "docker" / "Dockerfile"
    done = subprocess.run([hadolint, file], capture_output=True, text=True, check=False)
    assert not done.returncode, done.stdout


def test_the_image_has_what_the_kernels_are_built_from(tmp_path: Path) -> None:
    """Their licence is a link to that of the repository, which has to be there as well."""
    docker = (ROOT / "deploy" / "docker" / "Dockerfile").read_text(encoding="utf-8")
    stage = docker.partition(" AS kernels\n")[2].partition("\nFROM ")[0]
    for line in stage.splitlines():
        if line.startswith("COPY "):
            *sources, target = line.split()[1:]
            for name in sources:
                to = tmp_path / target / name if target.endswith("/") else tmp_path / target
                if (ROOT / name).is_dir():
                    shutil.copytree(ROOT / name, to, symlinks=True)
                else:
                    shutil.copy(ROOT / name, to)

    assert (tmp_path / "kernels" / "CMakeLists.txt").exists()
    assert (tmp_path / "constraints.txt").exists()
    assert not [path for path in tmp_path.rglob("*") if not path.exists()], "a link to nothing"


def test_the_image_has_what_the_wheel_is_made_of() -> None:
    """Each part that the build reads passes .dockerignore, and the user is the pods' user."""
    passed = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for needed in ("LICENSE", "README.md", "client/python", "constraints.txt", "pyproject.toml"):
        assert f"!{needed}" in passed
        assert (ROOT / needed).exists()
    assert {"!kernels", "!runner", "!server", "!protos/third_party/*/LICENSE"} < {*passed}
    assert passed[1] == "*"
    docker = (ROOT / "deploy" / "docker" / "Dockerfile").read_text(encoding="utf-8")
    stateful = next(f for _, f in written() if f["kind"] == "StatefulSet")
    user = stateful["spec"]["template"]["spec"]["securityContext"]["runAsUser"]
    assert f"USER {user}:{user}\n" in docker
    assert "EXPOSE 50151" in docker


@toolchain
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_is_right_by_the_schema_and_locked(overlay: str) -> None:
    objects = built(overlay)
    validate(objects)
    for workload in (o for o in objects if o["kind"] in {"StatefulSet", "Deployment"}):
        pod = workload["spec"]["template"]["spec"]
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        volumes = {volume["name"] for volume in pod["volumes"]} | {"store"}
        for found in [*pod["containers"], *pod.get("initContainers", ())]:
            assert found["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert {mount["name"] for mount in found["volumeMounts"]} <= volumes


@toolchain
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_selects_pods_selects_those_it_is_meant_for(overlay: str) -> None:
    objects = built(overlay)
    pods: dict[str, dict[str, str]] = {
        o["metadata"]["name"]: o["spec"]["template"]["metadata"]["labels"]
        for o in objects
        if o["kind"] in {"StatefulSet", "Deployment"}
    }
    maps = {o["metadata"]["name"] for o in objects if o["kind"] == "ConfigMap"}
    seen = 0
    for found in objects:
        spec = found.get("spec", {})
        selector = spec.get("selector", spec.get("podSelector", {}))
        labels = selector.get("matchLabels", selector)
        if not labels:
            continue
        chosen = {name for name, has in pods.items() if labels.items() <= has.items()}
        assert chosen == {found["metadata"]["name"].removesuffix("-pods")}
        seen += 1
        for volume in spec.get("template", {}).get("spec", {}).get("volumes", ()):
            assert volume.get("configMap", {"name": ""})["name"] in {*maps, ""}
    assert seen >= 5
    stateful = one(objects, "StatefulSet")
    (headless,) = (o for o in objects if o.get("spec", {}).get("clusterIP") == "None")
    assert stateful["spec"]["serviceName"] == headless["metadata"]["name"]
    if overlay == "envoy":
        (allowed,) = one(objects, "NetworkPolicy")["spec"]["ingress"][0]["from"]
        wanted = allowed["podSelector"]["matchLabels"]
        assert wanted.items() <= pods["headrace-front"].items()
        cluster = yaml.safe_load(
            one(objects, "ConfigMap", "headrace-front-config")["data"]["envoy.yaml"]
        )
        (address,) = (
            endpoint["endpoint"]["address"]["socket_address"]
            for c in cluster["static_resources"]["clusters"]
            if c["name"] == "controllers"
            for endpoint in c["load_assignment"]["endpoints"][0]["lb_endpoints"]
        )
        assert address == {"address": headless["metadata"]["name"], "port_value": 50151}


def comparable(found: Object) -> Any:
    """An object without what chart and kustomization may differ in: labels of the chart's own, the
    settings' checksum, where the image comes from."""
    metadata = {
        "name": found["metadata"]["name"].rpartition("-config")[0] or found["metadata"]["name"]
    }
    rest = {key: value for key, value in found.items() if key not in {"metadata", "data"}}
    spec = rest.get("spec", {}).get("template", {})
    if spec:
        spec["metadata"].pop("annotations", None)
        pod = spec["spec"]
        for each in [*pod["containers"], *pod.get("initContainers", ())]:
            each["image"] = each["image"].partition(":")[0]
            each.pop("imagePullPolicy", None)
            each["env"] = sorted(each["env"], key=lambda variable: str(variable["name"]))
            each["volumeMounts"] = sorted(each["volumeMounts"], key=lambda m: str(m["name"]))
        pod["volumes"] = sorted(pod["volumes"], key=lambda volume: str(volume["name"]))
        for volume in pod["volumes"]:
            if "configMap" in volume:
                volume["configMap"] = {}
    return metadata, rest


@toolchain
@pytest.mark.parametrize("overlay", CHARTED)
def test_the_chart_says_what_the_kustomization_says(overlay: str, tmp_path: Path) -> None:
    chart = charted(overlay)
    validate(chart)
    settings = []
    for objects in (chart, built(overlay)):
        file = tmp_path / "config.toml"
        file.write_text(one(objects, "ConfigMap")["data"]["config.toml"], encoding="utf-8")
        settings.append(read(Sources(["--config", str(file)])).config)
    assert settings[0] == settings[1]

    def everything(objects: list[Object]) -> dict[tuple[str, str], Any]:
        copies = [yaml.safe_load(yaml.safe_dump(found)) for found in objects]
        return {
            (found["kind"], str(comparable(found)[0])): comparable(found)[1] for found in copies
        }

    assert everything(chart) == everything(built(overlay))


@toolchain
def test_values_of_the_chart() -> None:
    with pytest.raises(ValueError, match="protection"):
        manifests.chart()
    with pytest.raises(ValueError, match="relicas"):
        manifests.chart("--set", "protection=tls,relicas=3")
    options = (
        "protection=mesh,graceSeconds=600,preStopSeconds=5,models={a,b},networkPolicy.enabled=false"
    )
    objects = manifests.chart("--set", options, release="other")
    validate(objects)
    stateful = one(objects, "StatefulSet")
    pod = stateful["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == 625
    assert [c["args"] for c in pod["initContainers"]] == [["pull", "a"], ["pull", "b"]]
    assert stateful["metadata"]["name"] == "other-headrace"
    assert 'grace = "600s"' in one(objects, "ConfigMap")["data"]["config.toml"]
    assert "NetworkPolicy" not in {found["kind"] for found in objects}
    bare = manifests.chart("--set", "protection=mesh,models=null")
    assert "initContainers" not in one(bare, "StatefulSet")["spec"]["template"]["spec"]


@toolchain
def test_helm_finds_nothing_wrong() -> None:
    done = subprocess.run(
        [
            manifests.helm(),
            "lint",
            "--strict",
            "--kube-version",
            "1.30",
            CHART,
            "--set",
            "protection=tls",
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert not done.returncode, done.stdout + done.stderr
