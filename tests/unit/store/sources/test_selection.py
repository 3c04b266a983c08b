"""Which files of a repository are taken."""

from __future__ import annotations

import pytest

from headrace.errors import InvalidRequest, ModelCorrupt, UnsupportedModel
from headrace_server.store.sources.plan import check_path
from headrace_server.store.sources.selection import Listed, select

LLAMA = [
    ".gitattributes",
    "LICENSE",
    "README.md",
    "USE_POLICY.md",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
]
UNWANTED = [
    "consolidated.safetensors",
    "original/consolidated.00.pth",
    "original/params.json",
    "onnx/config.json",
    "pytorch_model.bin",
    "optimizer.pt",
    "modeling.py",
    "model.onnx",
    "flax_model.msgpack",
]
ENCODER = [
    "config.json",
    "modules.json",
    "1_Pooling/config.json",
    "model.safetensors",
    "vocab.txt",
]
FLUX = [
    "README.md",
    "model_index.json",
    "transformer/0.safetensors",
    "transformer/1.safetensors",
    "transformer/config.json",
    "vae/0.safetensors",
    "text_encoder_2/0.safetensors",
    "tokenizer/vocab.json",
    "loras/style.safetensors",
]
GGUF = [
    "README.md",
    "M.Q4_0.gguf",
    "M.Q8_0.gguf",
    "config.json",
]


def listing(paths: list[str]) -> list[Listed]:
    return [Listed(path, 1_500_000_000, "", "") for path in paths]


def chosen(paths: list[str], *patterns: str) -> list[str]:
    return [file.path for file in select(listing(paths), patterns)]


def test_what_a_repository_suggests() -> None:
    assert chosen(LLAMA + UNWANTED) == LLAMA[1:]
    assert chosen([*ENCODER, "2_Dense/pytorch_model.bin", "openvino/config.json"]) == ENCODER
    assert chosen([*FLUX, "flux1-dev.safetensors", "transformer/x.bin", "a/b.json"]) == FLUX
    assert chosen(LLAMA + GGUF[1:3]) == LLAMA[1:]
    assert chosen([*GGUF[:2], "mmproj.bin"]) == ["M.Q4_0.gguf"]


def test_what_is_chosen() -> None:
    assert chosen(GGUF, "*Q8*") == ["M.Q8_0.gguf"]
    assert chosen(LLAMA + GGUF[1:3], "M.Q4_0.gguf") == ["M.Q4_0.gguf"]
    variants = ["config.json", "model.safetensors", "model.fp16.safetensors", "x.bin"]
    assert chosen(variants, "model.fp16*", "*.fp16.safetensors") == [
        *("config.json", "model.fp16.safetensors")
    ]
    assert chosen(variants, "*") == variants[:3]


@pytest.mark.parametrize(
    ("paths", "patterns", "field", "words"),
    [
        (GGUF, (), "files", r"choose one: M\.Q4_0\.gguf \(1\.5 GB\), M\.Q8_0\.gguf"),
        (GGUF, ("*.gguf",), "files", "choose one"),
        (GGUF, ("M.Q5.gguf",), "files[0]", r"no file .*'M\.Q5\.gguf': M\.Q4_0"),
        (GGUF, ("*Q4*", "README.md"), "files[1]", r"README\.md is none of the weights"),
        (LLAMA + UNWANTED, ("pytorch_model.bin",), "files[0]", "pickle, which is never fetched"),
        ([f"{n}.gguf" for n in range(100)], (), "files", "and 88 more"),
    ],
)
def test_what_cannot_be_chosen(
    paths: list[str], patterns: tuple[str, ...], field: str, words: str
) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        chosen(paths, *patterns)
    assert caught.value.violations[0].field == field


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        (["config.json", "pytorch_model.bin"], "pickles"),
        (["config.json", "README.md"], "no weights"),
        (["config.json", "adapter_model.safetensors"], r"only adapter_model\.safetensors"),
        (["big-00001-of-00002.gguf"], "a part of a GGUF file"),
        ([], "no weights"),
    ],
)
def test_repositories_without_a_model(paths: list[str], words: str) -> None:
    with pytest.raises(UnsupportedModel, match=words):
        chosen(paths)


@pytest.mark.parametrize(
    "path",
    ["../x", "a/../x", "/x", "a//x", "a/./x", "", "a\\..\\x", "x\n", "x\0", "x/"],
)
def test_paths_that_lead_out(path: str) -> None:
    with pytest.raises(ModelCorrupt, match="nothing was fetched"):
        check_path(path)


def test_paths_that_stay() -> None:
    for path in ("config.json", "1_Pooling/config.json", ".hidden", "a..b", "ä b"):
        check_path(path)
