"""Verifying and collecting garbage by both clients, against a server with scripted answers."""

from __future__ import annotations

import pytest

from headrace import AsyncClient, Client
from headrace.errors import InvalidRequest, RpcFailed
from headrace.types import FileDamage, Garbage, GarbageKind, VerifiedModel, VerifyProgress
from headrace.v1 import model_pb2
from tests.unit.sdk import fake as say
from tests.unit.sdk.fake import Fake


def check(garbage: Garbage) -> None:
    assert garbage.freed_bytes == 2000
    assert garbage.downloads_in_use
    assert [item.kind for item in garbage.items] == [
        GarbageKind.DOWNLOAD,
        GarbageKind.DUPLICATE,
        GarbageKind.DUPLICATE,
    ]


def test_a_verification_and_its_result(fake: Fake) -> None:
    fake.verification = say.verification()
    with Client(fake.target) as client, client.verify_models(["m:1", "n:1"]) as stream:
        events = list(stream)
        found = stream.collect()
    assert list(fake.requests[0].models) == ["m:1", "n:1"]
    kinds = [VerifyProgress, VerifiedModel, VerifyProgress, VerifiedModel]
    assert [type(event) for event in events] == kinds
    assert found.models == (events[1], events[3])
    (broken,) = found.damaged
    assert (broken.model, broken.remedy) == ("n:1", "get it again")
    assert [(file.file, file.damage) for file in broken.damaged] == [
        ("config.json", FileDamage.MISSING)
    ]
    check(found.garbage)


def test_a_verification_that_breaks_off_is_no_success(fake: Fake) -> None:
    script = say.verification()
    with Client(fake.target) as client:
        fake.verification = script[:-1]
        with pytest.raises(RpcFailed, match="without being completed"):
            client.verify_models().collect()
        fake.verification = [*script, script[0]]
        with pytest.raises(RpcFailed, match="after it had been completed"):
            client.verify_models().collect()
        with pytest.raises(InvalidRequest, match="put a single one in a list"):
            client.verify_models("m:1")


def test_what_a_later_version_says_is_unknown(fake: Fake) -> None:
    item = model_pb2.GarbageItem(kind=99, name="x")  # type: ignore[arg-type]
    fake.garbage = model_pb2.Garbage(items=[item])
    with Client(fake.target) as client:
        (found,) = client.collect_garbage().items
    assert found.kind is GarbageKind.UNKNOWN


def test_collecting(fake: Fake) -> None:
    with Client(fake.target) as client:
        check(client.collect_garbage())
        assert not fake.requests[-1].HasField("dry_run")
        check(client.collect_garbage(dry_run=True))
        assert fake.requests[-1].dry_run


async def test_the_same_awaited(fake: Fake) -> None:
    fake.verification = say.verification()
    async with AsyncClient(fake.target) as client:
        found = await client.verify_models().collect()
        assert [model.model for model in found.damaged] == ["n:1"]
        check(await client.collect_garbage(dry_run=True))
