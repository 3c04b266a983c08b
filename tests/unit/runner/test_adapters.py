"""Which adapter a request means: of the controller by its digest, of a directory by its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.errors import ModelCorrupt, UnsupportedParameter
from headrace_runner.config import RunnerConfig, parse
from headrace_runner.services.adapters import adapter_of
from tests.adapters import make, write_mlx
from tests.unit.engine.tiny import tiny_model

DIGEST = "ab" * 32


@pytest.fixture
def config(tmp_path: Path) -> RunnerConfig:
    """A runner that was given a directory of adapters."""
    write_mlx(tmp_path / "adapters" / "pirate", make(tiny_model(), seed=1))
    write_mlx(tmp_path / "adapters" / DIGEST, make(tiny_model(), seed=2))
    write_mlx(tmp_path / "outside", make(tiny_model(), seed=3))
    return parse(["--model", str(tmp_path), "--adapters", str(tmp_path / "adapters")])


def test_none_is_none(config: RunnerConfig) -> None:
    assert adapter_of("", {}, config) is None


def test_a_name_is_that_of_a_directory(config: RunnerConfig, tmp_path: Path) -> None:
    found = adapter_of("pirate", {}, config)
    assert found is not None
    assert (found.name, found.directory) == ("pirate", tmp_path / "adapters" / "pirate")
    assert adapter_of("pirate", {}, config) == found
    # Once trained anew it is another one.
    (found.directory / "adapters.safetensors").unlink()
    write_mlx(tmp_path / "again", make(tiny_model(), seed=4))
    (tmp_path / "again" / "adapters.safetensors").rename(found.directory / "adapters.safetensors")
    again = adapter_of("pirate", {}, config)
    assert again is not None
    assert again.key != found.key


def test_the_controller_names_a_digest(config: RunnerConfig, tmp_path: Path) -> None:
    found = adapter_of("crew/pirate:2", {"headrace-adapter": f"sha256:{DIGEST}"}, config)
    assert found is not None
    assert (found.key, found.directory) == (f"sha256:{DIGEST}", tmp_path / "adapters" / DIGEST)
    with pytest.raises(ModelCorrupt, match=r"crew/pirate:2 is gone"):
        adapter_of("crew/pirate:2", {"headrace-adapter": f"sha256:{'cd' * 32}"}, config)


@pytest.mark.parametrize("name", ["../outside", "pirat", "..", ".", "/etc", "pirate/", "a:b"])
def test_nothing_else_is_reached(config: RunnerConfig, name: str) -> None:
    for metadata in ({}, {"headrace-adapter": "../outside"}):
        with pytest.raises(UnsupportedParameter, match=rf"there is: {DIGEST}, pirate") as caught:
            adapter_of(name, metadata, config)
        assert caught.value.metadata == {"field": "adapter"}


def test_a_runner_without_adapters_says_so(tmp_path: Path) -> None:
    config = parse(["--model", str(tmp_path)])
    with pytest.raises(UnsupportedParameter, match=r"started without adapters; .* --adapters"):
        adapter_of("pirate", {}, config)


def test_their_directory_has_to_be_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(["--model", str(tmp_path), "--adapters", str(tmp_path / "nowhere")])
    assert "--adapters: no directory at" in capsys.readouterr().err
