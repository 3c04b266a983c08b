"""The tokenizer against transformers' own, and its bytes and places against the text."""

import asyncio
import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tokenizers import Tokenizer as RustTokenizer

from headrace.errors import ModelCorrupt, UnsupportedModel
from headrace_runner.models.tokenizer import Tokenizer
from tests.unit.text.conftest import sentencepiece_backend
from tests.unit.text.samples import texts


@pytest.fixture(scope="module")
def reference(smollm2_dir: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(smollm2_dir))


# SmolLM2's vocabulary has no token for these bytes, and drops them.
LOST = {0x04, 0x06, 0x13, 0x14, 0x16, 0x1D, *range(0xF1, 0xF5)}


def test_ids_and_text_equal_those_of_transformers(smollm2: Tokenizer, reference: Any) -> None:
    samples = texts()
    assert len(samples) > 300
    for text in samples:
        ids = reference.encode(text)
        assert smollm2.encode(text, add_special=True) == ids
        assert smollm2.decode(ids).decode(errors="replace") == reference.decode(ids)
        assert smollm2.decode(ids, skip_special=True).decode(errors="replace") == reference.decode(
            ids, skip_special_tokens=True
        )


def test_every_single_token_is_the_text_of_transformers(smollm2: Tokenizer, reference: Any) -> None:
    for token_id in range(smollm2.vocab_size):
        assert smollm2.token_bytes(token_id).decode(errors="replace") == reference.decode(
            [token_id]
        )


def test_what_the_model_says_of_itself(smollm2: Tokenizer) -> None:
    assert smollm2.vocab_size == 49152
    assert smollm2.eos_ids == {0, 2}  # <|endoftext|>, and the end of a turn
    assert smollm2.bos_id == 1
    assert not smollm2.adds_bos
    assert smollm2.special_ids == set(range(17))
    assert smollm2.special_tokens["eos_token"] == "<|im_end|>"
    assert smollm2.token_bytes(2) == b"<|im_end|>"
    assert smollm2.token_bytes(smollm2.vocab_size + 5) == b""


def test_pieces_split_characters_at_their_exact_bytes(smollm2: Tokenizer) -> None:
    for text in texts():
        pieces = smollm2.pieces(text, add_special=False)
        encoded = text.encode()
        assert [p.token_id for p in pieces] == smollm2.encode(text, add_special=False)
        if not LOST & set(encoded):
            assert all(p.data == encoded[p.start : p.end] for p in pieces)
            assert b"".join(p.data for p in pieces) == encoded


def test_pieces_where_the_tokenizer_loses_text_cover_whole_characters(
    smollm2: Tokenizer,
) -> None:
    pieces = smollm2.pieces("a\x06é \U0010fffd日", add_special=False)
    assert [(p.start, p.end) for p in pieces[:2]] == [(0, 1), (2, 4)]
    assert pieces[-1].end == 12
    assert pieces[-1].start == pieces[-2].start == 9


@given(st.text().filter(lambda text: not LOST & set(text.encode())))
def test_decoding_gives_the_text_back(smollm2: Tokenizer, text: str) -> None:
    assert smollm2.decode(smollm2.encode(text, add_special=True)) == text.encode()


@given(st.text(alphabet=st.characters(exclude_characters="▁<", codec="utf-8")))
def test_sentencepiece_gives_the_text_back(sentencepiece: Tokenizer, text: str) -> None:
    ids = sentencepiece.encode(text, add_special=False)
    assert sentencepiece.decode(ids) == text.encode()


def test_sentencepiece_pieces(sentencepiece: Tokenizer) -> None:
    pieces = sentencepiece.pieces("hello é w", add_special=True)
    assert [(p.data, p.start, p.end) for p in pieces] == [
        (b"<s>", 0, 0),
        (b" hello", 0, 5),
        (b" ", 5, 6),
        (b"\xc3", 6, 7),
        (b"\xa9", 7, 8),
        (b" w", 8, 10),
    ]


def test_sentencepiece_decodes_as_its_own_decoder_does(sentencepiece: Tokenizer) -> None:
    backend = sentencepiece_backend()
    for text in ("hello", " hello", "  hello", "", "héllo wörld", "a\nb"):
        ids = sentencepiece.encode(text, add_special=True)
        assert sentencepiece.decode(ids).decode() == backend.decode(ids, skip_special_tokens=False)
        assert sentencepiece.decode(ids, skip_special=True).decode() == backend.decode(ids)


def test_explicit_bos_setting_overrules_the_file() -> None:
    def ids(**settings: Any) -> list[int]:
        named = {"bos_token": {"content": "<s>"}, "eos_token": "</s>"}
        tokenizer = Tokenizer(sentencepiece_backend(), tokenizer_config=named | settings)
        assert tokenizer.adds_bos == bool(settings.get("add_bos_token"))
        return tokenizer.encode("a", add_special=True)

    plain = ids()
    assert ids(add_bos_token=True) == [1, *plain]
    assert ids(add_bos_token=True, add_eos_token=True) == [1, *plain, 2]
    assert ids(add_bos_token=False) == plain


def test_other_decoders_are_followed_by_example(wordpiece: Tokenizer) -> None:
    ids = wordpiece.encode("hello worlds singing", add_special=False)
    assert [wordpiece.token_bytes(i) for i in ids] == [
        b" hello",
        b" world",
        b"s",
        b" sing",
        b"ing",
    ]
    assert wordpiece.decode(ids) == b"hello worlds singing"


@pytest.mark.parametrize(
    ("config", "generation_config", "expected"),
    [
        ({"eos_token_id": 5}, {}, {2, 5}),
        ({"eos_token_id": [5, 6]}, {"eos_token_id": [6, 7]}, {2, 6, 7}),
        ({"text_config": {"eos_token_id": 9}}, {}, {2, 9}),
        ({}, {}, {2}),
    ],
)
def test_end_of_text_ids(
    config: dict[str, Any], generation_config: dict[str, Any], expected: set[int]
) -> None:
    tokenizer = Tokenizer(
        sentencepiece_backend(),
        config=config,
        generation_config=generation_config,
        tokenizer_config={"eos_token": "</s>"},
    )
    assert tokenizer.eos_ids == expected
    assert tokenizer.eos_ids <= tokenizer.special_ids


def test_truncation_in_the_file_never_shortens_a_prompt(smollm2_dir: Path) -> None:
    backend = RustTokenizer.from_file(str(smollm2_dir / "tokenizer.json"))
    backend.enable_truncation(4)
    backend.enable_padding(length=64)
    assert len(Tokenizer(backend).encode("1 2 3 4 5 6 7 8", add_special=True)) == 15


def test_directory_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="no tokenizer"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("content", ["", "{", '{"model": 1}', "[]"])
def test_damaged_tokenizer_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ModelCorrupt, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff", b"[" * 100_000])
def test_damaged_configuration_is_named(smollm2_dir: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").symlink_to(smollm2_dir / "tokenizer.json")
    (tmp_path / "generation_config.json").write_bytes(content)
    with pytest.raises(ModelCorrupt, match=r"generation_config\.json"):
        Tokenizer.load(tmp_path)


async def test_a_long_encode_leaves_the_event_loop_free(smollm2: Tokenizer) -> None:
    encoding = asyncio.create_task(
        asyncio.to_thread(smollm2.encode, "A fairly long prompt. " * 40_000, add_special=False)
    )
    started, longest = time.perf_counter(), 0.0
    while not encoding.done():
        before = time.perf_counter()
        await asyncio.sleep(0)
        longest = max(longest, time.perf_counter() - before)
    took = time.perf_counter() - started
    assert len(await encoding) > 100_000
    assert longest < took / 2


def test_transformers_is_not_imported_for_a_model_with_a_tokenizer_file(
    smollm2_dir: Path,
) -> None:
    code = (
        "import json, sys, pathlib\n"
        "from headrace_runner.models.tokenizer import Tokenizer\n"
        "from headrace_runner.models.chat import ChatTemplate\n"
        "t = Tokenizer.load(pathlib.Path(sys.argv[1]))\n"
        "c = ChatTemplate.load(pathlib.Path(sys.argv[1]), t.special_tokens)\n"
        "c.render([{'role': 'user', 'content': 'x'}])\n"
        "print(json.dumps([m for m in ('transformers', 'mlx', 'numpy') if m in sys.modules]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(smollm2_dir)], capture_output=True, check=True
    )
    assert json.loads(done.stdout) == []


@pytest.fixture
def sentencepiece_dir(tmp_path: Path) -> Path:
    """A model directory with nothing but a SentencePiece model, as older ones are."""
    draw = random.Random(1)
    words = ["".join(draw.choices("abcdefgh", k=draw.randint(2, 6))) for _ in range(3000)]
    SentencePieceTrainer.train(
        sentence_iterator=(" ".join(words[i : i + 12]) for i in range(0, len(words), 12)),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=500,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "config.json").write_text('{"model_type": "llama", "vocab_size": 500}')
    return tmp_path


def test_sentencepiece_model_alone_is_converted(sentencepiece_dir: Path) -> None:
    tokenizer = Tokenizer.load(sentencepiece_dir)
    reference = SentencePieceProcessor(model_file=str(sentencepiece_dir / "tokenizer.model"))
    for text in ("abc deaf  cab", "héd 日本 👋", "a\nb", ""):
        ids = tokenizer.encode(text, add_special=False)
        assert ids == reference.encode(text)
        assert tokenizer.decode(ids) == text.encode()
    assert tokenizer.eos_ids == {2}


def test_damaged_sentencepiece_model_is_named(sentencepiece_dir: Path) -> None:
    (sentencepiece_dir / "tokenizer.model").write_bytes(b"\x0a\xff\xff damaged")
    with pytest.raises(ModelCorrupt, match=r"tokenizer\.model"):
        Tokenizer.load(sentencepiece_dir)
