"""Manifests: their JSON, their digest, and what is no manifest."""

import dataclasses
import json

import pytest

from headrace_server.store.manifest import ModelFile, digest_of, new_manifest, parse_manifest

FACTS = {
    "kind": "text",
    "format": "mlx",
    "architecture": "llama",
    "parameters": 10,
    "tensor_bytes": 20,
    "quantization": "Q4_1",
    "context_length": 256,
    "vocab_size": 300,
    "layers": 2,
    "kv_heads": 2,
    "head_dim": 16,
    "chat_template": "{{ messages }}",
    "license": None,
}
FILES = [
    {"path": "model.safetensors", "size": 3, "sha256": "aa"},
    {"path": "config.json", "size": 2, "sha256": "bb"},
]
MANIFEST = new_manifest("m", "latest", FACTS, FILES, source="m.gguf", created_at="2026-01-01")


def test_round_trip() -> None:
    assert parse_manifest(MANIFEST.to_json()) == MANIFEST
    assert MANIFEST.size == 5
    assert MANIFEST.full_name == "m:latest"
    assert MANIFEST.has_chat_template


def test_a_manifest_of_an_earlier_version_has_no_vectors() -> None:
    fields = json.loads(MANIFEST.to_json())
    del fields["embedding"], fields["image"]
    assert parse_manifest(json.dumps(fields)) == MANIFEST
    facts = FACTS | {"kind": "embedding", "embedding": {"dimensions": 384, "working_bytes": 9}}
    made = new_manifest("e", "1", facts, FILES, source="s", created_at="2026-01-01")
    assert made.embedding is not None
    assert made.embedding.dimensions == 384
    assert parse_manifest(made.to_json()) == made


def test_digest_is_of_the_files_in_any_order() -> None:
    files = [ModelFile(**file) for file in FILES]  # type: ignore[arg-type]
    assert digest_of(files) == digest_of(reversed(files)) == MANIFEST.digest
    for change in ({"path": "x"}, {"size": 4}, {"sha256": "cc"}):
        other = dataclasses.replace(files[0], **change)
        assert digest_of([other, files[1]]) != MANIFEST.digest


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "null", "{}", '{"schema": 1}', MANIFEST.to_json()[:-20]),
        json.dumps(json.loads(MANIFEST.to_json()) | {"schema": 99}),
        json.dumps(json.loads(MANIFEST.to_json()) | {"files": [{}]}),
        json.dumps(json.loads(MANIFEST.to_json()) | {"surprise": 1}),
    ],
)
def test_no_manifest(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_manifest(text)
