"""What the directory of an embedding model says, and what a runner refuses at import."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from headrace.errors import HeadraceError, ModelCorrupt, UnsupportedModel
from headrace_runner.convert.__main__ import main
from headrace_runner.models.encoders.inputs import TextEncoder
from headrace_runner.models.encoders.layout import is_embedding, read_traits
from headrace_runner.models.tokenizer import Tokenizer
from headrace_server.store.manifest import new_manifest, parse_manifest
from tests.encoders import CONTEXT, HIDDEN, save_encoder

SETTINGS = "config_sentence_transformers.json"
POOLING = "1_Pooling/config.json"


def modules(*kinds: str, first: str = "") -> list[dict[str, Any]]:
    paths = [first, *(f"{number}_{kind}" for number, kind in enumerate(kinds[1:], start=1))]
    return [
        {"path": path, "type": f"sentence_transformers.models.{kind}"}
        for path, kind in zip(paths, kinds, strict=True)
    ]


def test_traits(tmp_path: Path) -> None:
    traits = read_traits(save_encoder(tmp_path, "cls"))
    assert (traits.pooling, traits.context_length, traits.dimensions) == ("cls", CONTEXT, HIDDEN)
    assert traits.shortened_to is None
    assert not traits.lower_case


def test_an_encoder_without_modules_is_pooled_by_the_mean(tmp_path: Path) -> None:
    directory = save_encoder(tmp_path, "cls")
    for name in ("modules.json", "sentence_bert_config.json"):
        (directory / name).unlink()
    assert is_embedding(directory)
    traits = read_traits(directory)
    assert (traits.pooling, traits.context_length) == ("mean", 32)


def test_positions_before_the_first_are_no_context(tmp_path: Path) -> None:
    directory = save_encoder(tmp_path, model_type="xlm-roberta", pad_token_id=1)
    (directory / "sentence_bert_config.json").unlink()
    assert read_traits(directory).context_length == 30


@pytest.mark.parametrize(
    ("files", "config", "dimensions", "shortened"),
    [
        ({SETTINGS: {"truncate_dim": 8}}, {}, 8, ()),
        ({}, {"is_matryoshka": True}, HIDDEN, ()),
        ({}, {"matryoshka_dimensions": [16, 8, 99]}, HIDDEN, (8, 16)),
        ({SETTINGS: {"truncate_dim": None}}, {}, HIDDEN, None),
    ],
)
def test_lengths(
    tmp_path: Path,
    files: dict[str, Any],
    config: dict[str, Any],
    dimensions: int,
    shortened: tuple[int, ...] | None,
) -> None:
    traits = read_traits(save_encoder(tmp_path, files=files, **config))
    assert (traits.dimensions, traits.shortened_to) == (dimensions, shortened)


@pytest.mark.parametrize(
    ("files", "config", "error", "says"),
    [
        ({"modules.json": modules("Transformer", "Pooling", "Dense")}, {}, UnsupportedModel, "D"),
        (
            {"modules.json": modules("Transformer", "Pooling", first="0")},
            {},
            UnsupportedModel,
            "",
        ),
        ({"modules.json": [{"path": ""}]}, {}, ModelCorrupt, "modules.json"),
        ({POOLING: {"pooling_mode": "lasttoken"}}, {}, UnsupportedModel, "lasttoken"),
        ({POOLING: {"pooling_mode": ["mean", "cls"]}}, {}, UnsupportedModel, "mean and cls"),
        ({POOLING: {"pooling_mode": "cls", "embedding_dimension": 7}}, {}, ModelCorrupt, "7"),
        ({POOLING: {}}, {}, ModelCorrupt, POOLING),
        (
            {SETTINGS: {"prompts": {"query": "query: "}, "default_prompt_name": "query"}},
            {},
            UnsupportedModel,
            "'query'",
        ),
        ({SETTINGS: {"truncate_dim": 99}}, {}, ModelCorrupt, "truncate_dim"),
        ({"sentence_bert_config.json": {"max_seq_length": 0}}, {}, ModelCorrupt, "max_seq_length"),
        ({}, {"position_embedding_type": "relative_key"}, UnsupportedModel, "relative_key"),
        ({}, {"quantization": {"bits": 4}}, UnsupportedModel, "quantised"),
        ({}, {"is_decoder": True}, UnsupportedModel, "decoder"),
    ],
)
def test_what_cannot_be_computed_is_refused(
    tmp_path: Path,
    files: dict[str, Any],
    config: dict[str, Any],
    error: type[HeadraceError],
    says: str,
) -> None:
    directory = save_encoder(tmp_path)
    for name, value in files.items():
        (directory / name).write_text(json.dumps(value))
    if config:
        path = directory / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
    with pytest.raises(error) as caught:
        read_traits(directory)
    assert says in caught.value.message


def converted(source: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    output = source.parent / "output"
    output.mkdir()
    main(["--source", str(source), "--output", str(output)])
    last: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return last


def test_a_manifest_has_what_the_vectors_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = save_encoder(tmp_path / "source", files={"notes.json": {}})
    done = converted(source, capsys)
    manifest = new_manifest("m", "1", done["facts"], done["files"], source="s", created_at="now")
    assert (manifest.kind, manifest.architecture) == ("embedding", "bert")
    assert (manifest.context_length, manifest.layers, manifest.vocab_size) == (CONTEXT, 2, 30)
    assert manifest.embedding is not None
    assert manifest.embedding.dimensions == HIDDEN
    assert manifest.embedding.working_bytes > 0
    assert parse_manifest(manifest.to_json()) == manifest
    assert [file["path"] for file in done["files"]] == [
        *("1_Pooling/config.json", "config.json", "model.safetensors", "modules.json"),
        *("sentence_bert_config.json", "tokenizer.json", "tokenizer_config.json"),
    ]


def test_another_architecture_that_pools_is_refused_as_an_encoder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = save_encoder(tmp_path / "source")
    config = json.loads((source / "config.json").read_text()) | {"model_type": "qwen3"}
    (source / "config.json").write_text(json.dumps(config))
    failed = converted(source, capsys)
    assert failed["reason"] == "UNSUPPORTED_MODEL"
    assert "'qwen3'" in failed["message"]


@pytest.mark.parametrize("damage", [{"hidden_size": 48}, {"num_hidden_layers": 3}])
def test_tensors_that_do_not_fit_are_corrupt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: dict[str, int]
) -> None:
    source = save_encoder(tmp_path / "source", files={"modules.json": []})
    config = json.loads((source / "config.json").read_text()) | damage
    (source / "config.json").write_text(json.dumps(config))
    failed = converted(source, capsys)
    assert (failed["reason"], failed["file"]) == ("MODEL_CORRUPT", "model.safetensors")


def test_a_cut_text_keeps_its_special_tokens(tmp_path: Path) -> None:
    texts = TextEncoder(Tokenizer.load(save_encoder(tmp_path)), lower_case=True)
    whole = texts.encode("THE cat sat on the mat")
    assert whole == [2, 4, 6, 8, 10, 4, 12, 3]
    assert texts.cut(whole, 5) == [2, 4, 6, 8, 3]
    assert texts.cut(whole, 8) == whole
    assert (texts.encode(" "), texts.frame) == ([2, 3], 2)
