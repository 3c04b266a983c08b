"""Rebuilt tokenizers against independent ones: a plain BPE, and SentencePiece itself."""

import io
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
import sentencepiece

from headrace.errors import ModelCorrupt, UnsupportedModel
from headrace_runner.convert.gguf import read_gguf
from headrace_runner.convert.tokenizer import GgufTokenizer, read_tokenizer
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
