"""Rebuilds a Hugging Face tokenizer from the vocabulary in a GGUF file's metadata.

Two kinds: byte-level BPE ("gpt2") with the pre-tokenizer that the file names, and SentencePiece
BPE ("llama"). An unknown kind is refused, since a near miss would silently change what the model
reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    normalizers,
    pre_tokenizers,
    processors,
)
from tokenizers.models import BPE

from headrace.errors import UnsupportedModel
from headrace_runner.convert.gguf import GgufFile
from headrace_runner.models.safetensors import damaged

_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4
_SPACE = "\u2581"  # How SentencePiece writes a space.
_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
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
    bos = special["bos"]
    by_default = kind == "llama" or gguf.text("tokenizer.ggml.pre") in _LLAMA3
    if bos is not None and gguf.flag("tokenizer.ggml.add_bos_token", by_default):
        tokenizer.post_processor = _prepend(tokens[bos], bos)
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
    }
    for name in ("bos", "eos", "unk", "pad"):
        token_id = special[name]
        if token_id is not None:
            config[f"{name}_token"] = tokens[token_id]
    ends = (special[name] for name in ("eos", "eot", "eom"))
    return GgufTokenizer(
        tokenizer,
        config,
        gguf.text("tokenizer.chat_template"),
        bos,
        list(dict.fromkeys(token_id for token_id in ends if token_id is not None)),
    )


def _byte_level(gguf: GgufFile, tokens: list[str]) -> Tokenizer:
    pre = gguf.text("tokenizer.ggml.pre") or "default"
    pre_tokenizer = _PRE_TOKENIZERS.get(pre)
    if pre_tokenizer is None:
        raise _unsupported(gguf, f"the pre-tokenizer {pre!r}")
    merges = []
    for merge in gguf.strings("tokenizer.ggml.merges"):
        left, _, right = merge.partition(" ")
        merges.append((left, right))
    # Llama 3 takes a word that is a token as it is, without merging up to it.
    tokenizer = _bpe(gguf, tokens, merges, ignore_merges=pre in _LLAMA3)
    tokenizer.pre_tokenizer = pre_tokenizer()
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
    types = gguf.numbers("tokenizer.ggml.token_type") or [1] * len(tokens)
    if len(types) != len(tokens):
        raise damaged(gguf.path, "its vocabulary lacks token types")
    return [
        AddedToken(token, special=kind != _USER_DEFINED, normalized=False)
        for token, kind in zip(tokens, types, strict=True)
        if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)
    ]


def _token_id(gguf: GgufFile, key: str, vocabulary_size: int) -> int | None:
    token_id = gguf.integer(f"tokenizer.ggml.{key}")
    if token_id is not None and not 0 <= token_id < vocabulary_size:
        raise damaged(gguf.path, f"tokenizer.ggml.{key} is not in the vocabulary")
    return token_id


def _prepend(token: str, token_id: int) -> processors.PostProcessor:
    return processors.TemplateProcessing(
        single=[token, "$A"], pair=[token, "$A", token, "$B"], special_tokens=[(token, token_id)]
    )


def _unsupported(gguf: GgufFile, what: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"{gguf.path.name}: {what} is not supported in GGUF files; import the model's MLX or"
        " Hugging Face directory instead"
    )


def _gpt2_words() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _single_digits() -> pre_tokenizers.PreTokenizer:
    digits = pre_tokenizers.Digits(individual_digits=True)
    return pre_tokenizers.Sequence([digits, _gpt2_words()])


def _llama3_words() -> pre_tokenizers.PreTokenizer:
    words = pre_tokenizers.Split(Regex(_LLAMA3_SPLIT), behavior="isolated")
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([words, plain])


_LLAMA3 = ("llama-bpe", "llama3", "llama-v3")
_PRE_TOKENIZERS: Mapping[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
    "gpt-2": _gpt2_words,
    "smollm": _single_digits,
} | dict.fromkeys(_LLAMA3, _llama3_words)
