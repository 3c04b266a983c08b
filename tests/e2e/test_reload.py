"""Settings that change under running streams, and models with settings of their own."""

from __future__ import annotations

import asyncio
import os
import pty
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from headrace import AsyncClient, AsyncModelWatch
from headrace.cli.authority import Authority
from headrace.types import Delta, Runner
from tests.e2e.conftest import TINY
from tests.e2e.harness import MODEL, PATIENCE, Place, StartController

TOKENS = 160


def words(process: psutil.Process) -> list[str]:
    return process.cmdline()


def option(process: psutil.Process, name: str) -> str:
    """An option of a runner's command line."""
    given = process.cmdline()
    return given[given.index(name) + 1]


@asynccontextmanager
async def watching(client: AsyncClient) -> AsyncIterator[AsyncModelWatch]:
    """A watch that has had its snapshot."""
    async with client.watch_models() as watch:
        await anext(aiter(watch))
        yield watch


async def seen(watch: AsyncModelWatch, wanted: Callable[[Runner], bool]) -> Runner:
    """The first runner that looks so."""
    async with asyncio.timeout(PATIENCE):
        while True:
            for model in watch.models:
                for runner in filter(wanted, model.runners):
                    return runner
            await anext(aiter(watch))


async def test_a_running_stream_does_not_notice_that_settings_are_read_again(
    home: Path, start: StartController
) -> None:
    file = home / "config.toml"
    file.write_text(f'keep_alive = "1h"\npreload = ["{MODEL}"]\n')
    controller = start("--grace", "20s", home=home)
    async with (
        AsyncClient(controller.target, timeout=PATIENCE) as client,
        watching(client) as watch,
        client.stream_completion(MODEL, "1, 2, 3,", max_tokens=TOKENS, ignore_eos=True) as stream,
    ):
        async for event in stream:
            if isinstance(event, Delta):
                break
        old = controller.runner()
        assert "--context" not in words(old)

        # A broken file changes nothing, and says where it is broken.
        file.write_text('keep_alive = "soon"\ncontext = 9\n')
        controller.send(signal.SIGHUP)
        await controller.logged(f'not taken: {file}:1: keep_alive: "soon" is no time')
        assert (await client.get_model(MODEL)).runners[0].state == "serving"

        file.write_text(
            f'keep_alive = "2m"\nqueue_total = 7\ngrace = "1s"\nlisten = "127.0.0.1:1"\n'
            f'stall_timeout = "70s"\n[models."{MODEL}"]\ncontext = 1024\n'
            "[models.nobody]\npinned = true\n"
        )
        controller.send(signal.SIGHUP)
        # The runner with the old context finishes what it has and takes nothing new.
        retiring = await seen(watch, lambda runner: runner.state == "draining")
        assert (retiring.id, retiring.active_requests) == ("r1", 1)
        fresh = await client.complete(MODEL, "1, 2, 3,", max_tokens=1)
        assert fresh.started.runner == "r2"
        assert {option(r, "--context") for r in controller.runners() if r != old} == {"1024"}

        whole = await stream.collect()
        assert whole.started.runner == "r1"
        assert whole.completed.usage.output_tokens == TOKENS
        gone = await seen(watch, lambda runner: runner.state == "dead")
        assert (gone.id, gone.reason) == ("r1", "UNLOADED")

    for change in (
        'setting changed: keep_alive: "1h" -> "2m"',
        "setting changed: queue_total: 256 -> 7",
        f'setting changed: models."{MODEL}".context: not set -> 1024',
        'needs a restart, and stays as it is: stall_timeout: "1m" -> "70s"',
    ):
        assert len(await controller.logged(change)) == 1
    warned = await controller.logged("settings wait")
    assert [line["model"] for line in warned] == ["nobody:latest"]
    text = controller.log_text()
    for fixed_by_an_option in ("listen:", "grace:"):
        assert fixed_by_an_option not in text


async def test_models_are_served_as_their_tables_say(home: Path, start: StartController) -> None:
    (home / "config.toml").write_text(
        f'max_concurrency = 5\n[models."{TINY}"]\ndtype = "stored"\nmax_concurrency = 2\n'
        'prefix_cache = "1MiB"\ndrafts = false\n[models.again]\ncontext = 16\n'
    )
    controller = start(home=home)
    async with AsyncClient(controller.target, timeout=PATIENCE) as client:
        await client.copy_model(TINY, "again")
        await client.copy_model(TINY, "same")
        first = (await client.load_model(TINY)).runner
        runner = controller.runner()
        assert option(runner, "--dtype") == "stored"
        assert option(runner, "--max-concurrency") == "2"
        assert option(runner, "--prefix-cache") == str(1 << 20)
        assert "--no-drafts" in words(runner)

        # Names of the same files share a runner where their options are the same.
        apart = (await client.load_model("again")).runner
        assert apart.id != first.id
        assert apart.digest == first.digest
        (other,) = (r for r in controller.runners() if r.pid == apart.pid)
        assert (option(other, "--context"), option(other, "--max-concurrency")) == ("16", "5")
        assert not await client.health("model/same:latest")
        assert [r.id for r in (await client.get_model("again")).runners] == [apart.id]
        # Each is asked for what it has, and unloaded alone.
        assert (await client.count_tokens("again", "x")).context_length == 16
        assert (await client.count_tokens(TINY, "x")).context_length > 16
        assert await client.unload_model("again") == 1
        assert [r.id for r in (await client.get_model(TINY)).runners] == [first.id]
        # The files go with their last name, and so do all who hold them.
        await client.load_model("again")
        for name in ("same", "again", TINY):
            await client.delete_model(name)
        assert await client.list_models(loaded=True) == ()


def test_a_configuration_is_checked_and_shown(place: Place) -> None:
    def check(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "headrace_server", *arguments, "--check-config"],
            env=place.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    file = place.sockets / "c.toml"
    file.write_text('memory = "2GiB"\n')
    shown = check("--config", str(file), "--keep-alive", "1h")
    assert shown.returncode == 0
    assert 'memory = "2GiB"' in shown.stdout
    assert f"# {file}:1" in shown.stdout
    assert "# --keep-alive" in shown.stdout
    place.environment["HEADRACE_KEEPALIVE"] = "5m"
    assert "did you mean HEADRACE_KEEP_ALIVE?" in check().stderr
    file.write_text("memory = true\n")
    wrong = check("--config", str(file))
    assert wrong.returncode == 2
    assert (
        f"{file}:1: memory: true is true or false, not a string or a whole number" in wrong.stderr
    )
    assert wrong.stdout == ""


@pytest.mark.parametrize("options", [("--check-config",), ()], ids=["checked", "served"])
def test_files_that_cannot_be_used_are_mistakes_of_the_configuration(
    place: Place, tmp_path: Path, options: tuple[str, ...]
) -> None:
    """The exit code is theirs, and nobody has begun to listen."""
    Authority(tmp_path).issue("server", ("localhost",), 1, server=True)
    good, none = tmp_path / "server.crt", tmp_path / "none.key"
    tokens = tmp_path / "tokens.json"
    tokens.write_text("{")
    for given, told in (
        (["--tls-cert", good, "--tls-key", none], f"{none}: No such file"),
        (["--tls-cert", good, "--tls-key", tmp_path / "ca.key"], "are no certificate and its key"),
        (["--tokens", tokens], f"{tokens}: it is no file of tokens"),
        (["--tokens", none], "`headrace token create` makes one"),
    ):
        ended = subprocess.run(
            [sys.executable, "-m", "headrace_server", *map(str, given), *options],
            env=place.environment | {"HEADRACE_HOST": f"unix:{place.sockets}/c.sock"},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert ended.returncode == 2, ended.stderr
        assert ended.stderr.startswith("headrace serve: error: ")
        assert told in ended.stderr
        assert ended.stdout == ""
        assert list(place.sockets.iterdir()) == []


def test_a_terminal_that_is_closed_ends_its_controller(place: Place) -> None:
    """SIGHUP is also what a terminal sends when it goes."""
    master, terminal = pty.openpty()
    ready, writer = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "headrace_server", "--ready-fd", str(writer)],
        env={**place.environment, "HEADRACE_LISTEN": f"unix:{place.sockets}/t.sock"},
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        pass_fds=(writer,),
        start_new_session=True,
    )
    os.close(writer)
    os.close(terminal)
    assert os.read(ready, 4096)
    os.close(ready)
    os.close(master)
    process.send_signal(signal.SIGHUP)
    assert process.wait(PATIENCE) == 0
