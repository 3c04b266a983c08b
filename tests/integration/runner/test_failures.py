"""What cannot be served ends with a report that says why, and exit status 1."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from headrace.host.handover import Failed, Listening
from tests.integration.runner.child import started


def truncate(model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def cut_header(model: Path) -> None:
    (model / "model.safetensors").write_bytes(b"\xff\xff")


def no_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()


def garbage_config(model: Path) -> None:
    (model / "config.json").write_text("{ this is no JSON")


def no_config(model: Path) -> None:
    (model / "config.json").unlink()


def other_shape(model: Path) -> None:
    edit_config(model, hidden_size=128)


def odd_config(model: Path) -> None:
    edit_config(model, num_attention_heads="four")


def unknown_architecture(model: Path) -> None:
    edit_config(model, model_type="perceptron")


def no_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").unlink()


def damaged_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").write_text("{}")


def edit_config(model: Path, **changes: object) -> None:
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("damage", "cause", "file"),
    [
        (truncate, "MODEL_CORRUPT", "model.safetensors"),
        (odd_config, "MODEL_CORRUPT", "config.json"),
        (unknown_architecture, "UNSUPPORTED_MODEL", None),
        (damaged_tokenizer, "MODEL_CORRUPT", "tokenizer.json"),
        *(
            pytest.param(*like, marks=pytest.mark.slow)
            for like in (
                (cut_header, "MODEL_CORRUPT", "model.safetensors"),
                (no_weights, "MODEL_CORRUPT", "model.safetensors"),
                (garbage_config, "MODEL_CORRUPT", "config.json"),
                (no_config, "MODEL_CORRUPT", "config.json"),
                (other_shape, "MODEL_CORRUPT", "config.json"),
                (no_tokenizer, "UNSUPPORTED_MODEL", None),
            )
        ),
    ],
)
def test_c10_damage_is_reported_with_its_file(
    model_home: Path,
    tiny_dir: Path,
    tmp_path: Path,
    damage: Callable[[Path], None],
    cause: str,
    file: str | None,
) -> None:
    model = shutil.copytree(tiny_dir, tmp_path / "model")
    damage(model)
    with started(model_home, model) as child:
        failed = child.hear(Failed)
        assert (failed.cause, failed.file) == (cause, file)
        assert failed.message
        assert child.exit_code() == 1
        assert not child.socket.exists()
        assert "Traceback" not in child.log


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("listen", ["unix:/no/such/folder/r.sock", "127.0.0.1:{port}"])
def test_an_address_that_cannot_be_had_is_reported(
    model_home: Path, tiny_dir: Path, taken_port: int, listen: str
) -> None:
    listen = listen.format(port=taken_port)
    with started(model_home, tiny_dir, "--listen", listen) as child:
        failed = child.hear(Failed)
        assert listen in failed.message
        assert child.exit_code() == 1
        assert not [report for report in child.reports if isinstance(report, Listening)]
        assert "Traceback" not in child.log
