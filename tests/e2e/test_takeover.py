"""A new controller takes the address over while clients stream without a pause."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from headrace import AsyncClient
from headrace.types import Delta, FinishReason
from tests.e2e.conftest import TINY
from tests.e2e.harness import MODEL, PATIENCE, Controller, StartController, headrace, start_headrace

TAKEOVER = "--takeover"
CLIENTS = 4
"""Of each kind."""
TOKENS = 48
"""Of a stream that begins before the new one is started, and ends on the old one."""


@dataclass
class Traffic:
    """Clients that ask again as soon as they have their answer, and what they got."""

    target: str
    texts: set[str] = field(default_factory=set)
    calls: list[int] = field(default_factory=lambda: [0] * 2 * CLIENTS)
    failures: list[BaseException] = field(default_factory=list)
    progress: asyncio.Event = field(default_factory=asyncio.Event)

    async def keep(self, number: int) -> None:
        """One channel for all calls."""
        async with AsyncClient(self.target, timeout=PATIENCE) as client:
            while True:
                await self.call(number, client)

    async def renew(self, number: int) -> None:
        """A channel for each call."""
        while True:
            async with AsyncClient(self.target, timeout=PATIENCE) as client:
                await self.call(number, client)

    async def call(self, number: int, client: AsyncClient) -> None:
        try:
            whole = await client.complete(TINY, "fox", temperature=0, max_tokens=12)
            self.texts.add(whole.text)
        except Exception as error:  # noqa: BLE001 - the test looks at all of them
            self.failures.append(error)
        self.calls[number] += 1
        self.progress.set()

    async def more(self) -> None:
        """Return when every client has had three more answers."""
        goal = [count + 3 for count in self.calls]
        async with asyncio.timeout(PATIENCE):
            while any(count < least for count, least in zip(self.calls, goal, strict=True)):
                self.progress.clear()
                await self.progress.wait()

    def start(self) -> list[asyncio.Task[None]]:
        kinds: list[Callable[[int], asyncio.Task[None]]] = [
            lambda number: asyncio.create_task(self.keep(number)),
            lambda number: asyncio.create_task(self.renew(number)),
        ]
        return [kinds[number % 2](number) for number in range(2 * CLIENTS)]


@pytest.fixture(params=["tcp", "unix"])
def listen(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An address that both controllers are told."""
    if request.param == "unix":
        return ""  # the first one's own
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return f"127.0.0.1:{probe.getsockname()[1]}"


async def test_an_upgrade_loses_no_stream_and_refuses_no_request(
    start: StartController, listen: str
) -> None:
    arguments = (TAKEOVER, "--preload", TINY, "--grace", "100s")
    old = start(*arguments, listen=listen)
    traffic = Traffic(old.target)
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(AsyncClient(old.target, timeout=2 * PATIENCE))
        await client.load_model(MODEL)
        tasks = traffic.start()
        try:
            await traffic.more()
            long = client.stream_completion(MODEL, "1, 2, 3,", max_tokens=TOKENS, ignore_eos=True)
            async for event in long:
                if isinstance(event, Delta):
                    break
            (runner,) = (process for process in old.runners() if MODEL in process.cmdline())
            runner.suspend()  # So that the stream cannot end before the old one drains.
            new = await asyncio.to_thread(start, *arguments, listen=old.target)
            await old.logged("draining")
            runner.resume()
            collecting = asyncio.create_task(long.collect())
            await traffic.more()
            ending = asyncio.create_task(asyncio.to_thread(old.wait))
            whole = await collecting
            assert await ending == 0
            await traffic.more()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    assert traffic.failures == []
    assert len(traffic.texts) == 1
    assert whole.usage.output_tokens == TOKENS
    assert whole.finish_reason is FinishReason.LENGTH
    assert old.processes() == []
    # The old one's socket is the new one's now, and goes with it.
    assert headrace(new, "list").returncode == 0
    new.process.terminate()
    assert await asyncio.to_thread(new.wait) == 0
    assert list(old.sockets.iterdir()) == []
    assert list(new.sockets.iterdir()) == []


def refused(old: Controller, *options: str) -> str:
    """What a second controller on the same address says, which is none then."""
    ended = headrace(old, "serve", "--listen", old.target, *options, check=False)
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert headrace(old, "list").returncode == 0  # not disturbed
    return ended.stderr


def test_who_cannot_hand_over_is_left_alone(start: StartController, listen: str) -> None:
    assert "--takeover" in refused(start(listen=listen), TAKEOVER)


def test_who_can_hand_over_does_so_to_a_takeover_alone(start: StartController, listen: str) -> None:
    assert "--takeover" in refused(start(TAKEOVER, listen=listen))


@pytest.mark.parametrize("mode", ["stale", "new"])
def test_where_nobody_listens_it_just_listens(start: StartController, mode: str) -> None:
    first = start(TAKEOVER)
    if mode == "stale":
        first.kill()
        second = start(TAKEOVER, listen=first.target)
        assert headrace(second, "list").returncode == 0
    else:
        assert headrace(first, "list").returncode == 0


def test_one_that_is_called_off_while_it_loads_takes_nothing_over(
    start: StartController,
) -> None:
    old = start(TAKEOVER)
    with start_headrace(
        old, "serve", "--listen", old.target, TAKEOVER, "--preload", MODEL, "--log-format", "json"
    ) as new:
        assert new.stderr is not None
        for line in new.stderr:
            if "runner is loading" in line:
                break
        new.send_signal(signal.SIGTERM)
        new.communicate(timeout=PATIENCE)
        assert new.returncode == 0
    assert headrace(old, "list").returncode == 0
    assert not [line for line in old.log() if line["message"] == "handing over"]


def test_a_program_of_another_kind_is_sent_no_signal(start: StartController) -> None:
    own = start()
    path = own.sockets / "other.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        ended = headrace(own, "serve", "--listen", f"unix:{path}", TAKEOVER, check=False)
    assert ended.returncode == 1
    assert "no controller" in ended.stderr
