"""Tokenizers for the tests of text: SmolLM2's own, and small ones of the other kinds."""

from pathlib import Path

import pytest
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as RustTokenizer

from headrace_runner.models.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def smollm2(smollm2_dir: Path) -> Tokenizer:
    return Tokenizer.load(smollm2_dir)


def sentencepiece_backend() -> RustTokenizer:
    """A BPE in the form of Llama 2: a space in front, ▁ for spaces, bytes for what is unknown."""
    pieces = ["<unk>", "<s>", "</s>"]
    pieces += [f"<0x{byte:02X}>" for byte in range(256)]
    pieces += ["▁", *"abcdehlorw", "▁h", "▁w", "he", "ll", "▁he", "▁hell", "▁hello"]
    merges = [("h", "e"), ("l", "l"), ("▁", "he"), ("▁he", "ll"), ("▁hell", "o")]
    merges += [("▁", "h"), ("▁", "w")]
    backend = RustTokenizer(
        models.BPE(
            vocab={piece: i for i, piece in enumerate(pieces)},
            merges=merges,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )
    backend.add_special_tokens(
        [AddedToken(name, normalized=False) for name in ("<unk>", "<s>", "</s>")]
    )
    return backend


@pytest.fixture(scope="session")
def sentencepiece() -> Tokenizer:
    return Tokenizer(
        sentencepiece_backend(),
        config={"eos_token_id": 2},
        tokenizer_config={"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True},
    )


@pytest.fixture(scope="session")
def wordpiece() -> Tokenizer:
    pieces = ["[UNK]", "a", "hello", "world", "##s", "##ing", "sing"]
    backend = RustTokenizer(models.WordPiece({p: i for i, p in enumerate(pieces)}))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece(cleanup=False)
    return Tokenizer(backend)
