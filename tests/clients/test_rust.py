"""The Rust SDK: its tests and checks, what would be published, and its examples at a controller."""

from __future__ import annotations

import re
import shutil
import subprocess
import tarfile
import tomllib

import pytest

from tests.clients import shell
from tests.clients.shell import ROOT, version
from tests.e2e.harness import ANSWER, MODEL, QUESTION, Controller

FOLDER = ROOT / "client" / "rust"

pytestmark = [
    pytest.mark.toolchain,
    pytest.mark.timeout(900),  # dependencies are built once, wherever that falls
    pytest.mark.skipif(shutil.which("cargo") is None, reason="there is no cargo here"),
]


def cargo(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run cargo in the SDK's folder, however it ends; `more`: variables of its environment."""
    target = str(FOLDER / "target")
    return shell.ended("cargo", *arguments, folder=FOLDER, CARGO_TARGET_DIR=target, **more)


def check(*arguments: str, **more: str) -> None:
    """The same for a command that has to end well."""
    ended = cargo(*arguments, **more)
    assert ended.returncode == 0, (ended.stdout + ended.stderr)[-8000:]


def test_its_version_is_headraces() -> None:
    read = tomllib.loads((FOLDER / "Cargo.toml").read_text(encoding="utf-8"))
    assert read["workspace"]["package"]["version"] == version()


def test_it_is_formatted() -> None:
    check("fmt", "--all", "--check")


def test_the_linter_has_nothing_to_say() -> None:
    check("clippy", "--quiet", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings")


def test_its_documentation_can_be_built() -> None:
    check("doc", "--quiet", "--locked", "--no-deps", "-p", "headrace", RUSTDOCFLAGS="-D warnings")


def test_its_own_tests_pass() -> None:
    check("test", "--quiet", "--locked", "--workspace")


def test_it_builds_without_opentelemetry() -> None:
    only = ("-p", "headrace", "--no-default-features", "--lib")
    check("clippy", "--quiet", "--locked", *only, "--", "-D", "warnings")


def test_what_is_published_builds_by_itself() -> None:
    check("package", "--quiet", "--locked", "--allow-dirty", "-p", "headrace")
    name = f"headrace-{version()}"
    with tarfile.open(FOLDER / "target" / "package" / f"{name}.crate") as archive:
        files = {member.name.removeprefix(f"{name}/"): member for member in archive.getmembers()}
    assert all(member.isfile() for member in files.values())
    assert {"LICENSE", "README.md", "protos/headrace/v1/errors.proto"} <= files.keys()
    assert not [name for name in files if name.startswith("conformance")]


def test_the_examples_run(controller: Controller) -> None:
    def example(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = ("run", "--quiet", "--locked", "--example", name, "--", *arguments)
        return cargo(*command, host=controller.target)

    tour = example("tour")
    assert tour.returncode == 0, tour.stderr
    assert len(tour.stdout.strip()) > 10

    chat = example("chat", QUESTION)
    assert chat.returncode == 0, chat.stderr
    assert chat.stdout.startswith("Le Grand Paris, ")
    assert ANSWER.startswith(chat.stdout.strip())
    last = chat.stderr.splitlines()[-1]
    assert re.fullmatch(r"16 tokens, FINISH_REASON_LENGTH, trace [0-9a-f]{32}", last)

    nothing = example("chat", QUESTION, "smolm2")
    assert nothing.returncode == 1
    assert f"did you mean '{MODEL}'" in nothing.stderr
