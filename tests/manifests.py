"""What deploy/kubernetes and deploy/helm come to, as Kubernetes would get it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.tools import needed

ROOT = Path(__file__).parents[1]
KUBERNETES = ROOT / "deploy" / "kubernetes"
OVERLAYS = ("plain", "tls", "envoy")
CHART = ROOT / "deploy" / "helm" / "headrace"
_TOOLS = ROOT / ".cache" / "kubernetes"

Object = dict[str, Any]


def kustomize() -> list[str]:
    """The command that builds a kustomization; kubectl has it too."""
    if path := _tool("kustomize"):
        return [path, "build"]
    if path := shutil.which("kubectl"):
        return [path, "kustomize"]
    pytest.skip("there is no kustomize; `make kustomize` builds one by Go")


def helm() -> str:
    """The program."""
    if path := _tool("helm"):
        return path
    pytest.skip("there is no Helm; `make helm` builds one by Go")


def _tool(name: str) -> str | None:
    return shutil.which(name, path=f"{_TOOLS}{os.pathsep}{os.environ.get('PATH', '')}")


def overlay(name: str, root: Path = KUBERNETES) -> list[Object]:
    """The objects of an overlay."""
    if name == "envoy":
        descriptors(root.parent / "envoy" / "headrace.binpb")
    return _parsed(_output([*kustomize(), str(root / "overlays" / name)]))


def descriptors(path: Path) -> None:
    """What `make descriptors` makes."""
    subprocess.run(
        [needed("buf"), "build", "--exclude-source-info", "-o", path],
        cwd=ROOT,
        check=True,
        timeout=60,
    )


def chart(*options: str, release: str = "headrace") -> list[Object]:
    """The objects of the chart."""
    command = [helm(), "template", release, str(CHART), "--kube-version", "1.30", *options]
    return _parsed(_output(command))


def _output(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    if done.returncode:
        raise ValueError(done.stderr)
    return done.stdout


def _parsed(text: str) -> list[Object]:
    return [found for found in yaml.safe_load_all(text) if found]


def one(objects: Sequence[Object], kind: str, name: str = "") -> Object:
    """The only object of this kind, or the one whose name begins so."""
    (found,) = (o for o in objects if o["kind"] == kind and o["metadata"]["name"].startswith(name))
    return found


def container(workload: Object, name: str) -> Object:
    """A container, or an init container, of a workload's pods."""
    spec = workload["spec"]["template"]["spec"]
    every = [*spec["containers"], *spec.get("initContainers", ())]
    (found,) = (c for c in every if c["name"] == name)
    return dict(found)
