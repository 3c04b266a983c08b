"""Rebuilt tokenizers against independent ones: a plain BPE, and SentencePiece itself."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
import sentencepiece
from tokenizers import decoders

from headrace.errors import ModelCorrupt, UnsupportedModel
from headrace_runner.convert.gguf import read_gguf
from headrace_runner.convert.pretokenizers import WORDS
from headrace_runner.convert.tokenizer import GgufTokenizer, read_tokenizer
from tests.unit.convert.record_ids import RECORDED
from tests.unit.convert.reference_bpe import ReferenceBpe, varied_texts
from tests.unit.convert.tiny import SPECIAL, Vocabulary, byte_vocabulary, write_gguf


def tokenizer_of(path: Path) -> GgufTokenizer:
    return read_tokenizer(read_gguf(path))


def test_byte_level_ids(tiny_gguf: Path) -> None:
    tokenizer = tokenizer_of(tiny_gguf).tokenizer
    reference = ReferenceBpe(tiny_gguf)
    for text in varied_texts(400, SPECIAL):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert ids == reference.encode(text), text
        assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_digits_are_single_only_where_the_file_says_so(tiny_gguf: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", pre="gpt-2")
    assert len(tokenizer_of(tiny_gguf).tokenizer.encode("12").ids) == 2
    assert len(tokenizer_of(tmp_path / "m.gguf").tokenizer.encode(" 12").ids) == 1


def test_special_tokens(tiny_gguf: Path) -> None:
    found = tokenizer_of(tiny_gguf)
    assert found.eos_token_ids == [0]
    assert found.config["eos_token"] == "<|end|>"
    assert found.tokenizer.encode("<|user|>hi").ids[0] == 1
    assert found.tokenizer.decode([1, 0]) == ""


def test_llama3_begins_with_bos(tmp_path: Path) -> None:
    def edit(writer: gguf.GGUFWriter) -> None:
        writer.add_bos_token_id(1)
        writer.add_eot_token_id(1)

    write_gguf(tmp_path / "m.gguf", pre="llama-bpe", edit=edit)
    found = tokenizer_of(tmp_path / "m.gguf")
    assert found.tokenizer.encode("the fox").ids[0] == 1
    assert found.tokenizer.encode("the fox", add_special_tokens=False).ids[0] != 1
    assert found.eos_token_ids == [0, 1]


def piece_vocabulary() -> tuple[Vocabulary, list[float], sentencepiece.SentencePieceProcessor]:
    text = "the quick brown fox jumps over the lazy dog and the other dogs don't care\n" * 3
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text.splitlines()),
        model_writer=model,
        model_type="bpe",
        vocab_size=330,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    trained = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    ids = range(trained.get_piece_size())
    kinds: list[tuple[Callable[[int], bool], int]] = [
        (trained.is_unknown, 2),
        (trained.is_control, 3),
        (trained.is_byte, 6),
    ]
    types = [next((kind for test, kind in kinds if test(i)), 1) for i in ids]
    vocabulary = Vocabulary([trained.id_to_piece(i) for i in ids], [], types)
    return vocabulary, [trained.get_score(i) for i in ids], trained


def test_sentence_piece_ids(tmp_path: Path) -> None:
    vocabulary, scores, trained = piece_vocabulary()

    def edit(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("llama")
        writer.add_token_scores(scores)
        writer.add_unk_token_id(trained.unk_id())
        writer.add_bos_token_id(trained.bos_id())

    write_gguf(tmp_path / "m.gguf", vocabulary=vocabulary, edit=edit)
    tokenizer = tokenizer_of(tmp_path / "m.gguf").tokenizer
    for text in varied_texts(300):
        if text:
            ids = tokenizer.encode(text).ids
            assert ids == [trained.bos_id(), *trained.encode(text)], text
            assert tokenizer.decode(ids) == text


@pytest.mark.parametrize(
    "edit",
    [
        lambda writer: writer.add_tokenizer_model("rwkv"),
        lambda writer: writer.add_tokenizer_pre("yet-another"),
    ],
)
def test_an_unknown_kind_is_refused(
    tmp_path: Path, edit: Callable[[gguf.GGUFWriter], None]
) -> None:
    write_gguf(tmp_path / "m.gguf", edit=edit)
    with pytest.raises(UnsupportedModel, match=r"rwkv|yet-another"):
        tokenizer_of(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    "damage",
    [
        lambda v: Vocabulary([], [], []),
        lambda v: Vocabulary([v.tokens[1], *v.tokens[1:]], v.merges, v.types),
        lambda v: Vocabulary(v.tokens, ["no such", *v.merges], v.types),
        lambda v: Vocabulary(v.tokens, v.merges, v.types[:-1]),
    ],
)
def test_a_vocabulary_that_contradicts_itself(
    tmp_path: Path, damage: Callable[[Vocabulary], Vocabulary]
) -> None:
    write_gguf(tmp_path / "m.gguf", vocabulary=damage(byte_vocabulary()))
    with pytest.raises(ModelCorrupt, match=r"m\.gguf"):
        tokenizer_of(tmp_path / "m.gguf")


def test_an_end_token_out_of_the_vocabulary(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", edit=lambda writer: writer.add_bos_token_id(100_000))
    with pytest.raises(ModelCorrupt, match="bos_token_id"):
        tokenizer_of(tmp_path / "m.gguf")


def test_ids_of_a_thousand_texts_are_those_of_llama_cpp(smollm2_dir: Path, tmp_path: Path) -> None:
    """`record_ids` says where they come from. SmolLM2's vocabulary is that of the stored model."""
    stored = json.loads((smollm2_dir / "tokenizer.json").read_text(encoding="utf-8"))
    ids = stored["model"]["vocab"]
    added = {token["content"] for token in stored["added_tokens"]}
    tokens = sorted(ids, key=lambda token: ids[token])
    vocabulary = Vocabulary(
        tokens,
        [" ".join(merge) for merge in stored["model"]["merges"]],
        [3 if token in added else 1 for token in tokens],
    )
    write_gguf(tmp_path / "m.gguf", vocabulary=vocabulary)
    tokenizer = tokenizer_of(tmp_path / "m.gguf").tokenizer
    lines = RECORDED.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1000
    for text, wanted in map(json.loads, lines):
        assert tokenizer.encode(text).ids == wanted, text


@pytest.mark.parametrize(
    ("pre", "text", "words"),
    [
        ("gpt-2", "it's 123 IT'S", ["it", "'s", "Ġ123", "ĠIT", "'", "S"]),
        ("smollm", "a 12", ["a", "Ġ", "1", "2"]),
        ("llama-bpe", "it's 1234 IT'S", ["it", "'s", "Ġ", "123", "4", "ĠIT", "'S"]),
        ("qwen2", "a 12\n\nb", ["a", "Ġ", "1", "2", "ĊĊ", "b"]),
        ("tekken", "camelCase 12", ["camel", "Case", "Ġ", "1", "2"]),
        ("gpt-4o", "camelCase's 1234", ["camel", "Case's", "Ġ", "123", "4"]),
        ("deepseek-v3", "a1234b.x", ["a", "123", "4", "b", ".x"]),
        ("deepseek-coder", "ab 12\nc", ["ab", "Ġ", "1", "2", "Ċ", "c"]),
        ("viking", "a b1.", ["a", "Ġb", "1", "."]),
    ],
)
def test_words_of_the_pre_tokenizers(pre: str, text: str, words: list[str]) -> None:
    found = WORDS[pre].pre_tokenizer().pre_tokenize_str(text)
    assert [word for word, _ in found] == words


def test_every_pre_tokenizer_keeps_every_text() -> None:
    for words in set(WORDS.values()):
        splitter = words.pre_tokenizer()
        for text in varied_texts(100):
            joined = "".join(word for word, _ in splitter.pre_tokenize_str(text))
            assert decoders.ByteLevel().decode([joined]) == text


def test_qwen_composes_characters(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", pre="qwen2")
    tokenizer = tokenizer_of(tmp_path / "m.gguf").tokenizer
    assert tokenizer.encode("e\u0301").ids == tokenizer.encode("é").ids


def test_ends_that_the_file_names_and_that_are_known(tmp_path: Path) -> None:
    plain = byte_vocabulary()
    tokens = [*plain.tokens, "<|im_end|>", "<|eot_id|>", "<end_of_turn>"]
    vocabulary = Vocabulary(tokens, plain.merges, [*plain.types, 3, 3, 1])

    def edit(writer: gguf.GGUFWriter) -> None:
        writer.add_bos_token_id(1)
        writer.add_add_bos_token(True)
        writer.add_add_eos_token(True)

    write_gguf(tmp_path / "m.gguf", vocabulary=vocabulary, edit=edit)
    found = tokenizer_of(tmp_path / "m.gguf")
    # The last is text, by its type.
    assert found.eos_token_ids == [0, len(plain.tokens), len(plain.tokens) + 1]
    assert found.tokenizer.encode("fox").ids[0] == 1
    assert found.tokenizer.encode("fox").ids[-1] == 0
