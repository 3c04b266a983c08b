"""How byte-level BPE splits a text into words before it merges, by the names that GGUF files use.

The expressions are those of the models' own tokenizers; the names are llama.cpp's. An unknown name
has no entry, since a near miss would silently change what a model reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tokenizers import Regex, normalizers, pre_tokenizers

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _TAIL
_QWEN2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _TAIL
_QWEN35 = (
    _CONTRACTIONS
    + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    + r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
    + _CASED_TAIL
)
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?|\p{{N}}{{1,3}}" + _CASED_TAIL
)
_DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SEED = (
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"


@dataclass(frozen=True)
class Words:
    """A way to split; what an expression leaves unmatched is a word as well."""

    expressions: tuple[str, ...]
    """Applied one after the other, each to what the ones before have left."""
    whole_words: bool = False
    """Whether a word that is a token is taken as it is, without merging up to it."""
    begins: bool = False
    """Whether a text begins with the beginning-of-text token where the file does not say."""
    composed: bool = False
    """Whether characters are composed (NFC) first."""

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        splits: list[pre_tokenizers.PreTokenizer] = [
            pre_tokenizers.Split(Regex(expression), behavior="isolated")
            for expression in self.expressions
        ]
        letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([*splits, letters])

    def normalizer(self) -> normalizers.Normalizer | None:
        return normalizers.NFC() if self.composed else None


_TABLE: Mapping[Words, tuple[str, ...]] = {
    Words((_GPT2,)): (
        *("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "exaone4", "gigachat"),
        *("a.x-4.0", "mellum", "granite-docling"),
    ),
    Words((r"\p{N}", _GPT2)): (
        *("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
        "mellum2",
    ),
    Words((_LLAMA3,), whole_words=True, begins=True): (
        *("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0"),
        "lfm2",
    ),
    Words((_LLAMA3,)): ("dbrx", "smaug-bpe", "glm4", "chatglm-bpe"),
    Words((_QWEN2,), composed=True): ("qwen2", "deepseek-r1-qwen"),
    Words((_QWEN2,)): ("stablelm2", "megrez", "hunyuan", "kormo", "solar-open"),
    Words((_QWEN35,), composed=True): ("qwen35",),
    Words((_TEKKEN,), whole_words=True, begins=True): ("tekken",),
    Words((_GPT4O,)): ("gpt-4o", "llama4", "kanana2"),
    Words((r"\p{N}{1,3}", r"[一-龥぀-ゟ゠-ヿ]+", _DEEPSEEK3)): (
        *("deepseek-v3", "hunyuan-dense", "joyai-llm"),
    ),
    Words((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+", r"\p{N}")): (
        "deepseek-coder",
    ),
    Words((_SEED,)): ("seed-coder",),
    Words((_BLOOM,)): ("poro-chat", "bloom", "gpt3-finnish"),
    Words((_BLOOM, r"\p{N}")): ("viking",),
}
WORDS: Mapping[str, Words] = {name: words for words, names in _TABLE.items() for name in names}
"""By the value of tokenizer.ggml.pre."""
