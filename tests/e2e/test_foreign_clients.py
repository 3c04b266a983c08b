"""Clients that no one here wrote, grpcurl and ghz: what docs/contract.md shows of them is run.

Every line that the page shows after a command has to be seen, in order; numbers differ.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from headrace.cli.authority import Authority
from tests.e2e.harness import MODEL, PATIENCE, Controller, Place, headrace
from tests.manifests import descriptors

ROOT = Path(__file__).parents[2]
_PATH = f"{ROOT / '.cache' / 'grpc'}{os.pathsep}{os.environ.get('PATH', '')}"
_REFUSED = 64
"""Of grpcurl's exit status; what is added is the status code."""

pytestmark = pytest.mark.toolchain

Shown = tuple[str, list[str]]
"""A command, and the lines after it."""


def shown() -> Iterator[list[Shown]]:
    """The blocks of the section, as the page has them."""
    page = (ROOT / "docs" / "contract.md").read_text(encoding="utf-8")
    (section,) = re.findall(r"^## With grpcurl and ghz\n(.*?)^## ", page, re.MULTILINE | re.DOTALL)
    for block in re.findall(r"^```console\n(.*?)^```", section, re.MULTILINE | re.DOTALL):
        yield [*map(parted, re.split(r"^\$ ", block, flags=re.MULTILINE)[1:])]


def parted(text: str) -> Shown:
    """A command may go on in the next line: within quotes, and after a backslash."""
    lines = text.splitlines()
    for end in range(1, len(lines) + 1):
        typed = "\n".join(lines[:end])
        if whole(typed):
            return typed, [line for line in lines[end:] if line.strip() not in ("", "…")]
    raise AssertionError(f"{text} has no end")


def whole(typed: str) -> bool:
    try:
        shlex.split(typed)
    except ValueError:
        return False
    return not typed.endswith("\\")


PLAIN, FAILED, LOAD, OBSERVER, CALLER = shown()


def run(typed: str, place: Place, target: str, cwd: Path) -> tuple[int, str]:
    """Type a command; the page's addresses stand for the target. Gives its status and output."""
    program = shlex.split(typed)[0]
    if shutil.which(program, path=_PATH) is None:
        pytest.skip(f"there is no {program}; `make {program}` builds one by Go")
    done = subprocess.run(
        ["bash", "-c", re.sub(r"(127\.0\.0\.1|gpu\.example):50151", target, typed)],
        cwd=cwd,
        env={**place.environment, "PATH": _PATH},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    return done.returncode, done.stdout


def hold(commands: Sequence[Shown], place: Place, target: str, cwd: Path) -> list[tuple[int, str]]:
    """See what the page shows after each command. Gives their statuses and outputs."""
    ended = []
    for typed, lines in commands:
        status, output = run(typed, place, target, cwd)
        ended.append((status, output))
        seen = map(pattern, output.splitlines())
        for line in lines:
            before, _, _ = pattern(line).partition("…")
            assert any(each.startswith(before) for each in seen), f"{typed}: {line}\n{output}"
    return ended


def pattern(line: str) -> str:
    return re.sub(r"\d+", "0", line).rstrip()


def secured(controller: Controller, scope: str) -> None:
    """Make the token of the environment one with this scope alone."""
    made = headrace(controller, "token", "create", "--scope", scope)
    controller.environment["HEADRACE_TOKEN"] = made.stdout.strip()


@pytest.fixture(scope="module")
def guarded(shared_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Controller]:
    """With TLS and tokens; the files that the page names lie in its folder."""
    folder = tmp_path_factory.mktemp("guarded")
    tls = folder / "tls"
    tls.mkdir()
    Authority(tls).issue("server", ("localhost", "127.0.0.1"), 1, server=True)
    tokens = folder / "tokens.json"
    tokens.write_text('{"schema": 1, "tokens": []}')
    options = ["--tls-cert", tls / "server.crt", "--tls-key", tls / "server.key"]
    options += ["--tokens", tokens, "--preload", MODEL]
    with Controller(shared_home, *map(str, options), listen="127.0.0.1:0") as running:
        running.environment |= {
            "HEADRACE_HOST": f"https://{running.target}",
            "HEADRACE_TLS_CA": str(tls / "ca.crt"),
            "HEADRACE_TOKENS": str(tokens),
        }
        yield running


@pytest.fixture
def folder(guarded: Controller) -> Path:
    return Path(guarded.environment["HEADRACE_TOKENS"]).parent


def messages(output: str) -> list[dict[str, Any]]:
    """JSON, one behind the other."""
    found = []
    while output := output.strip():
        message, end = json.JSONDecoder().raw_decode(output)
        found.append(message)
        output = output[end:]
    return found


def test_grpcurl_finds_the_contract_and_follows_a_stream_to_its_end(
    controller: Controller, tmp_path: Path
) -> None:
    ended = hold(PLAIN, controller, controller.target, tmp_path)
    assert {status for status, _ in ended} == {0}
    events = [next(iter(message)) for message in messages(ended[-1][1])]
    assert (events[-1], events.count("completed"), events.count("started")) == ("completed", 1, 1)
    listed = run("grpcurl -plaintext 127.0.0.1:50151 list", controller, controller.target, tmp_path)
    for service in listed[1].split():
        described = f"grpcurl -plaintext 127.0.0.1:50151 describe {service}"
        status, output = run(described, controller, controller.target, tmp_path)
        assert (status, "rpc " in output) == (0, True), output


def test_grpcurl_shows_why_a_call_failed(controller: Controller, tmp_path: Path) -> None:
    ((status, _),) = hold(FAILED, controller, controller.target, tmp_path)
    assert status == _REFUSED + 5  # NOT_FOUND


def test_ghz_sees_nothing_but_success(controller: Controller, tmp_path: Path) -> None:
    ((status, output),) = hold(LOAD, controller, controller.target, tmp_path)
    _, _, distribution = output.partition("Status code distribution:")
    assert (status, distribution.split()) == (0, ["[OK]", "50", "responses"])


def test_grpcurl_comes_by_tls_with_a_token(guarded: Controller, folder: Path) -> None:
    secured(guarded, "observe")
    ((status, _),) = hold(OBSERVER, guarded, guarded.target, folder)
    assert status == 0
    trusting = OBSERVER[0][0].replace("-cacert tls/ca.crt ", "")
    status, output = run(trusting, guarded, guarded.target, folder)
    assert (status, "certificate" in output) == (1, True), output


def test_reflection_is_for_those_who_may_observe(guarded: Controller, folder: Path) -> None:
    secured(guarded, "infer")
    (folder / "deploy" / "envoy").mkdir(parents=True)
    descriptors(folder / "deploy" / "envoy" / "headrace.binpb")
    (refused, _), (called, output) = hold(CALLER, guarded, guarded.target, folder)
    assert (refused, called) == (1, 0)
    assert [*messages(output)[-1]] == ["completed"]
    guarded.environment["HEADRACE_TOKEN"] = "hr_nobody"
    status, output = run(CALLER[0][0], guarded, guarded.target, folder)
    assert (status, "Unauthenticated" in output) == (1, True), output
