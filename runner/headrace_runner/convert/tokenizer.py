"""Rebuilds a Hugging Face tokenizer from the vocabulary in a GGUF file's metadata.

Two kinds: byte-level BPE ("gpt2") with the pre-tokenizer that the file names, and SentencePiece
BPE ("llama", which Gemma's files say too). An unknown kind is refused, since a near miss would
silently change what the model reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE

from headrace.errors import UnsupportedModel
from headrace_runner.convert.gguf import GgufFile
from headrace_runner.convert.pretokenizers import WORDS
from headrace_runner.models.safetensors import damaged

_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4
_SPACE = "\u2581"  # How SentencePiece writes a space.
# What ends a turn in models whose files name no such token, or not all of them.
_TURN_ENDS = (
    *("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>"),
    *("<|eom_id|>", "<｜end▁of▁sentence｜>", "<EOT>"),
)


@dataclass(frozen=True)
class GgufTokenizer:
    """A tokenizer and what belongs beside it in a model directory."""

    tokenizer: Tokenizer
    config: dict[str, Any]
    """tokenizer_config.json"""
    chat_template: str | None
    bos_token_id: int | None
    eos_token_ids: list[int]
    """Every token that ends a turn, the main one first."""


def read_tokenizer(gguf: GgufFile) -> GgufTokenizer:
    """The tokenizer of `gguf`.

    Raises:
        UnsupportedModel: another kind of tokenizer, or a pre-tokenizer that is not known here.
        ModelCorrupt: the vocabulary contradicts itself.
    """
    kind = gguf.text("tokenizer.ggml.model")
    tokens = gguf.strings("tokenizer.ggml.tokens")
    if not tokens or len(set(tokens)) != len(tokens):
        raise damaged(gguf.path, "its vocabulary is empty or repeats a token")
    if kind == "gpt2":
        tokenizer = _byte_level(gguf, tokens)
    elif kind == "llama":
        tokenizer = _sentence_piece(gguf, tokens)
    else:
        raise _unsupported(gguf, f"the tokenizer {kind!r}")
    tokenizer.add_tokens(_added_tokens(gguf, tokens))

    special = {
        name: _token_id(gguf, f"{key}_token_id", len(tokens))
        for name, key in {
            "bos": "bos",
            "eos": "eos",
            "unk": "unknown",
            "pad": "padding",
            "eot": "eot",
            "eom": "eom",
        }.items()
    }
    bos, eos = special["bos"], special["eos"]
    words = WORDS.get(gguf.text("tokenizer.ggml.pre") or "")
    by_default = kind == "llama" or (words is not None and words.begins)
    begins = bos is not None and gguf.flag("tokenizer.ggml.add_bos_token", by_default)
    ends = eos is not None and gguf.flag("tokenizer.ggml.add_eos_token", default=False)
    around = (bos if begins else None, eos if ends else None)
    if around != (None, None):
        tokenizer.post_processor = _around(tokens, *around)
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
    }
    for name in ("bos", "eos", "unk", "pad"):
        token_id = special[name]
        if token_id is not None:
            config[f"{name}_token"] = tokens[token_id]
    return GgufTokenizer(
        tokenizer, config, gguf.text("tokenizer.chat_template"), bos, _stops(gguf, tokens, special)
    )


def _stops(gguf: GgufFile, tokens: list[str], special: Mapping[str, int | None]) -> list[int]:
    """The tokens that end a turn: those that the file names, and those known by their text."""
    types = _types(gguf, tokens)
    named = [special[name] for name in ("eos", "eot", "eom")]
    known = [i for i, token in enumerate(tokens) if token in _TURN_ENDS and types[i] == _CONTROL]
    return list(dict.fromkeys(i for i in (*named, *known) if i is not None))


def _byte_level(gguf: GgufFile, tokens: list[str]) -> Tokenizer:
    pre = gguf.text("tokenizer.ggml.pre") or "default"
    words = WORDS.get(pre)
    if words is None:
        raise _unsupported(gguf, f"the pre-tokenizer {pre!r}")
    merges = []
    for merge in gguf.strings("tokenizer.ggml.merges"):
        # A piece may begin with a space in vocabularies that do not write bytes as letters.
        left, _, right = merge[1:].partition(" ")
        merges.append((merge[:1] + left, right))
    tokenizer = _bpe(gguf, tokens, merges, ignore_merges=words.whole_words)
    tokenizer.pre_tokenizer = words.pre_tokenizer()
    normalizer = words.normalizer()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentence_piece(gguf: GgufFile, tokens: list[str]) -> Tokenizer:
    """SentencePiece keeps a score a piece and no merges: it joins the pair whose piece scores
    highest. So every way to split a piece into two is a merge, ranked by the piece's score."""
    scores = gguf.numbers("tokenizer.ggml.scores")
    if len(scores) != len(tokens):
        raise damaged(gguf.path, "its vocabulary lacks scores")
    ids = {token: i for i, token in enumerate(tokens)}
    ranked = []
    for token, score in zip(tokens, scores, strict=True):
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in ids and right in ids:
                ranked.append((-score, ids[left], ids[right]))
    merges = [(tokens[left], tokens[right]) for _, left, right in sorted(ranked)]
    unknown = _token_id(gguf, "unknown_token_id", len(tokens))
    tokenizer = _bpe(
        gguf,
        tokens,
        merges,
        unk_token=None if unknown is None else tokens[unknown],
        fuse_unk=True,
        byte_fallback=True,
    )
    spaces = normalizers.Replace(" ", _SPACE)
    decoding = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if gguf.flag("tokenizer.ggml.add_space_prefix", default=True):
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), spaces])
        decoding.append(decoders.Strip(" ", 1, 0))
    else:
        tokenizer.normalizer = spaces
    tokenizer.decoder = decoders.Sequence(decoding)
    return tokenizer


def _bpe(
    gguf: GgufFile, tokens: list[str], merges: list[tuple[str, str]], **options: Any
) -> Tokenizer:
    vocabulary = {token: i for i, token in enumerate(tokens)}
    try:
        return Tokenizer(BPE(vocab=vocabulary, merges=merges, **options))
    except Exception as error:  # The library raises nothing more precise.
        raise damaged(gguf.path, f"its merges do not fit its vocabulary ({error})") from error


def _added_tokens(gguf: GgufFile, tokens: list[str]) -> list[AddedToken]:
    return [
        AddedToken(token, special=kind != _USER_DEFINED, normalized=False)
        for token, kind in zip(tokens, _types(gguf, tokens), strict=True)
        if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)
    ]


def _types(gguf: GgufFile, tokens: list[str]) -> list[int | float]:
    types = gguf.numbers("tokenizer.ggml.token_type") or [1] * len(tokens)
    if len(types) != len(tokens):
        raise damaged(gguf.path, "its vocabulary lacks token types")
    return types


def _token_id(gguf: GgufFile, key: str, vocabulary_size: int) -> int | None:
    token_id = gguf.integer(f"tokenizer.ggml.{key}")
    if token_id is not None and not 0 <= token_id < vocabulary_size:
        raise damaged(gguf.path, f"tokenizer.ggml.{key} is not in the vocabulary")
    return token_id


def _around(tokens: list[str], bos: int | None, eos: int | None) -> processors.PostProcessor:
    """Puts tokens before and behind a text."""
    before = [] if bos is None else [tokens[bos]]
    behind = [] if eos is None else [tokens[eos]]
    ids = [(tokens[i], i) for i in dict.fromkeys((bos, eos)) if i is not None]
    return processors.TemplateProcessing(
        single=[*before, "$A", *behind],
        pair=[*before, "$A", *behind, *before, "$B", *behind],
        special_tokens=ids,
    )


def _unsupported(gguf: GgufFile, what: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"{gguf.path.name}: {what} is not supported in GGUF files; import the model's MLX or"
        " Hugging Face directory instead"
    )
