"""Yesterday's generated client talks to today's server.

The contract of earlier commits is frozen here (`make freeze`). Clients that know it alone call a
controller as it is today: they see what they know as it always was, and pass over what came later.
"""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import pytest_asyncio

from headrace.rpc.tokens import Tokens, new_token, write_tokens
from headrace_server.store import Store
from tests.compat.frozen import FOLDER, Contract, OldClient, OldError
from tests.contract import methods
from tests.e2e.harness import Controller, aio_channel
from tests.tiny_home import TINY, tiny_home
from tests.tools import needed

FROZEN = sorted(FOLDER.glob("v*.binpb"))
SUMS = dict(
    line.split(maxsplit=1)[::-1]
    for line in (FOLDER / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
)
ROOT = FOLDER.parents[1]
PAINTER = "emoji:64"
STREAM, DRAW = "CompletionService/StreamCompletion", "ImageService/StreamImage"
LIST, GET = "ModelService/ListModels", "ModelService/GetModel"

BREAKING = '{"version": "v2", "breaking": {"use": ["FILE"]}}'
"""As in buf.yaml, which speaks of a directory."""

WITHOUT_LIMITS = [
    path
    for path in FROZEN
    if Contract(path).value("ErrorReason", "ERROR_REASON_RATE_LIMITED") is None
]
"""Those that have never heard of RATE_LIMITED."""

frozen = pytest.mark.parametrize("path", FROZEN, ids=lambda path: path.stem)


_SCOPES = ("infer", "observe", "manage")


@dataclass(frozen=True)
class Secrets:
    """Tokens that may do anything, and the file that they are in."""

    path: Path
    free: str
    limited: Mapping[str, str]
    """For one call at a time: a token for each contract, as a call ends a moment after it is
    cancelled."""


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Secrets:
    path = tmp_path_factory.mktemp("tokens") / "tokens.json"
    made, free = new_token(_SCOPES)
    limited = {path.stem: new_token(_SCOPES, max_requests=1) for path in WITHOUT_LIMITS}
    write_tokens(path, Tokens((made, *(token for token, _ in limited.values()))))
    return Secrets(path, free, {stem: secret for stem, (_, secret) in limited.items()})


@pytest.fixture(scope="module")
def controller(
    model_home: Path, secrets: Secrets, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Controller]:
    """Today's, with a model that writes and one that draws."""
    home = tiny_home(model_home, tmp_path_factory.mktemp("compat"))
    asyncio.run(Store(home).pull(PAINTER))
    with Controller(home, "--tokens", str(secrets.path)) as running:
        yield running


@pytest_asyncio.fixture
async def channel(controller: Controller) -> AsyncIterator[grpc.aio.Channel]:
    async with aio_channel(controller.target) as made:
        yield made


@pytest.fixture
def client(path: Path, channel: grpc.aio.Channel, secrets: Secrets) -> OldClient:
    """Of a frozen contract."""
    return OldClient(Contract(path), channel, secrets.free)


def test_what_is_frozen_stays() -> None:
    assert len(FROZEN) >= 3
    assert len(WITHOUT_LIMITS) == 2
    assert {path.name for path in FROZEN} == SUMS.keys()
    for path in FROZEN:
        assert hashlib.sha256(path.read_bytes()).hexdigest() == SUMS[path.name], path.name


@frozen
def test_nothing_of_it_is_broken(path: Path, tmp_path: Path) -> None:
    today = tmp_path / "today.binpb"
    done = buf("build", "--exclude-source-info", "-o", today)
    assert done.returncode == 0, done.stdout
    done = buf("breaking", today, "--against", path, "--config", BREAKING)
    assert done.returncode == 0, done.stdout


def buf(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [needed("buf"), *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=60,
    )


@frozen
def test_every_method_of_the_controller_is_still_there(path: Path) -> None:
    today = {f"{m.containing_service.name}/{m.name}" for m in methods(ours=True)}
    old = {name for name in Contract(path).methods if not name.startswith("RunnerService/")}
    assert old <= today


@frozen
async def test_it_lists(path: Path, client: OldClient) -> None:
    models = {model.name: model for model in (await client.call(LIST)).models}
    assert {TINY, PAINTER} <= models.keys()
    kind = client.contract.value("ModelKind", "MODEL_KIND_TEXT")
    assert models[TINY].kind == kind
    assert models[TINY].context_length > 0
    shown = (await client.call(GET, model=TINY)).model
    assert shown.digest == models[TINY].digest


@frozen
async def test_it_follows_a_stream_to_its_end(path: Path, client: OldClient) -> None:
    sampling = client.contract.message("SamplingOptions", temperature=0)
    stop = client.contract.message("StopOptions", ignore_eos=True)
    text, ids, kinds, last = "", [], [], None
    request = {"model": TINY, "prompt": "the quick", "max_tokens": 12}
    async for event in client.stream(STREAM, **request, sampling=sampling, stop=stop):
        kinds.append(event.WhichOneof("event"))
        text += event.delta.text
        ids += event.delta.token_ids
        last = event
    assert kinds.count("started") == kinds.count("completed") == 1
    assert last is not None
    assert kinds[-1] == "completed"
    assert text
    assert last.completed.usage.output_tokens == len(ids) == 12
    length = client.contract.value("FinishReason", "FINISH_REASON_LENGTH")
    assert [choice.finish_reason for choice in last.completed.choices] == [length]


@frozen
async def test_it_draws(path: Path, client: OldClient) -> None:
    data, result = b"", None
    request = {"model": PAINTER, "prompt": "a red rose", "steps": 2, "seed": 3}
    async for event in client.stream(DRAW, **request):
        data += event.chunk.data
        if event.WhichOneof("event") == "completed":
            (result,) = event.completed.images
    assert result is not None
    assert hashlib.sha256(data).hexdigest() == result.sha256
    assert (result.seed, result.size_bytes, result.media_type) == (3, len(data), "image/png")


@frozen
async def test_it_tells_errors_apart(path: Path, client: OldClient) -> None:
    with pytest.raises(OldError) as missing:
        await client.call(GET, model="tiny:q5")
    assert missing.value.code is grpc.StatusCode.NOT_FOUND
    info = missing.value.info
    assert (info.domain, info.reason) == ("headrace.dev", "MODEL_NOT_FOUND")
    assert info.metadata["nearest"] == TINY
    assert client.contract.value("ErrorReason", f"ERROR_REASON_{info.reason}") is not None
    sampling = client.contract.message("SamplingOptions", temperature=-1)
    with pytest.raises(OldError) as wrong:
        await client.call(STREAM, model=TINY, prompt="x", sampling=sampling)
    assert wrong.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert wrong.value.violations == ["sampling.temperature"]


@pytest.mark.parametrize("path", WITHOUT_LIMITS, ids=lambda path: path.stem)
async def test_a_reason_that_is_new_to_it_has_a_code_it_knows(
    path: Path, channel: grpc.aio.Channel, secrets: Secrets
) -> None:
    client = OldClient(Contract(path), channel, secrets.limited[path.stem])
    async with aclosing(client.stream("ModelService/WatchModels")) as watch:
        assert (await anext(watch)).WhichOneof("event") == "snapshot"
        with pytest.raises(OldError) as refused:
            await client.call(LIST)
    assert refused.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert refused.value.info.reason == "RATE_LIMITED"


LATER = (
    "StreamCompletionResponse.started",
    "StreamCompletionResponse.progress",
    "CompletionCompleted.timings",
    "CompletionDelta.output_tokens",
    "FinishReason.FINISH_REASON_LENGTH",
    "Model.digest",
)
"""What a client does not know that is older than any: an event, a field, a value."""


@frozen
async def test_what_came_later_is_passed_over(
    path: Path, channel: grpc.aio.Channel, secrets: Secrets, client: OldClient
) -> None:
    older = OldClient(Contract(path, LATER), channel, secrets.free)
    request = {"model": TINY, "prompt": "the quick", "max_tokens": 6}
    texts, counts, unknown = [], [], 0
    for each in (client, older):
        sampling = each.contract.message("SamplingOptions", temperature=0)
        stop = each.contract.message("StopOptions", ignore_eos=True)
        events = [e async for e in each.stream(STREAM, **request, sampling=sampling, stop=stop)]
        kinds = [event.WhichOneof("event") for event in events]
        assert kinds[-1] == "completed"
        texts.append("".join(event.delta.text for event in events))
        unknown += kinds.count(None)
        counts.append(events[-1].completed.usage.output_tokens)
        # A value that it does not know stays the number that it is.
        assert events[-1].completed.choices[0].finish_reason == 3
    assert unknown >= 1
    assert older.contract.value("FinishReason", "FINISH_REASON_LENGTH") is None
    assert texts[0] == texts[1] != ""
    assert counts == [6, 6]
    assert TINY in [model.name for model in (await older.call(LIST)).models]


UNKNOWN_FIELD = b"\xc2\x3e\x01x"
"""Number 1000, a text."""


async def test_a_client_of_tomorrow_is_told_what_today_cannot_do(
    channel: grpc.aio.Channel, secrets: Secrets
) -> None:
    client = OldClient(Contract(FOLDER / "v0.1.0-2c6b722.binpb"), channel, secrets.free)
    with pytest.raises(OldError) as missing:
        await client.send("/headrace.v1.CompletionService/Rewrite", b"")
    assert missing.value.code is grpc.StatusCode.UNIMPLEMENTED
    model = client.contract.message("StreamCompletionRequest", model=TINY).SerializeToString()
    with pytest.raises(OldError) as refused:  # No prompt of a kind that there is.
        await client.send(f"/headrace.v1.{STREAM}", model + UNKNOWN_FIELD)
    assert refused.value.violations == ["input"]
    known = client.contract.message("GetModelRequest", model=TINY).SerializeToString()
    assert await client.send(f"/headrace.v1.{GET}", known + UNKNOWN_FIELD)
