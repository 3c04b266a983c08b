"""Text leaves as whole characters, and joined it is the detokenized output."""

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models

from headrace_runner.engine.text.detokenizer import Detokenizer
from headrace_runner.models.tokenizer import Tokenizer
from tests.unit.text.samples import texts

SMOLLM2_IDS = st.lists(st.integers(0, 49151), max_size=40)


def _stream(tokenizer: Tokenizer, ids: list[int]) -> str:
    detokenizer = Detokenizer(tokenizer)
    return "".join(map(detokenizer.push, ids)) + detokenizer.finish()


def test_b3_characters_split_over_tokens() -> None:
    # Three tokens of two bytes each, written in the byte-level alphabet: E3 81, 93 E3, 82 93.
    backend = RustTokenizer(models.BPE(vocab={"ãģ": 0, "ĵã": 1, "Ĥĵ": 2}, merges=[]))
    backend.decoder = decoders.ByteLevel()
    tokenizer = Tokenizer(backend)
    assert [tokenizer.token_bytes(i) for i in range(3)] == [
        b"\xe3\x81",
        b"\x93\xe3",
        b"\x82\x93",
    ]
    detokenizer = Detokenizer(tokenizer)
    assert [detokenizer.push(i) for i in range(3)] == ["", "こ", "ん"]
    assert detokenizer.finish() == ""


def test_unfinished_bytes_become_one_replacement_character(smollm2: Tokenizer) -> None:
    *ids, _ = smollm2.encode("日 日", add_special=False)
    text = _stream(smollm2, ids)
    assert text == "日 \ufffd"


def test_streams_equal_the_text(smollm2: Tokenizer, sentencepiece: Tokenizer) -> None:
    for text in texts():
        ids = smollm2.encode(text, add_special=False)
        expected = smollm2.decode(ids, skip_special=True).decode(errors="replace")
        assert _stream(smollm2, ids) == expected
    for text in ("hello", " hello", "héllo\nworld", "", "日本"):
        assert _stream(sentencepiece, sentencepiece.encode(text, add_special=True)) == text


@given(SMOLLM2_IDS)
def test_any_tokens_stream_as_they_decode(smollm2: Tokenizer, ids: list[int]) -> None:
    expected = smollm2.decode(ids, skip_special=True).decode(errors="replace")
    assert _stream(smollm2, ids) == expected


@given(st.lists(st.integers(0, 280), max_size=40))
def test_any_sentencepiece_tokens_stream_as_they_decode(
    sentencepiece: Tokenizer, ids: list[int]
) -> None:
    expected = sentencepiece.decode(ids, skip_special=True).decode(errors="replace")
    assert _stream(sentencepiece, ids) == expected


def test_special_tokens_are_skipped_even_inside_a_character(sentencepiece: Tokenizer) -> None:
    a, b = (3 + byte for byte in "é".encode())
    assert _stream(sentencepiece, [1, a, 2, b, 1]) == "é"
