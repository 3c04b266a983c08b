"""How one piece of a vocabulary becomes bytes.

Reads the decoder that tokenizer.json declares and gives a function for single pieces: exact for
byte-level BPE and for SentencePiece, by example for all others. Never joins pieces.
"""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from tokenizers import Tokenizer as RustTokenizer

PieceBytes: TypeAlias = Callable[[int, str, bool], bytes]
"""Takes a token's id, its piece, and whether it was added to the vocabulary later."""

_SENTENCEPIECE_STEPS = {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def piece_decoder(backend: RustTokenizer) -> tuple[PieceBytes, bool]:
    """Choose how a piece becomes bytes, and whether a text loses its first space."""
    # A decoder's pickled state is its part of tokenizer.json; reading that file again here would
    # cost a parse of the whole vocabulary.
    state: dict[str, Any] = json.loads(backend.decoder.__getstate__()) if backend.decoder else {}
    steps: list[dict[str, Any]] = state.get("decoders") or [state]
    kinds = {step.get("type") for step in steps}
    if "ByteLevel" in kinds:
        return _byte_level, False
    if kinds & {"ByteFallback", "Metaspace"} and kinds <= _SENTENCEPIECE_STEPS:
        return _sentencepiece(steps), any(map(_strips_first_space, steps))
    return _by_example(backend), True


def _byte_alphabet() -> dict[str, int]:
    """Give GPT-2's printable stand-in for every byte, as character to byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in set(printable)]
    stand_ins = {chr(0x100 + place): byte for place, byte in enumerate(others)}
    return stand_ins | {chr(byte): byte for byte in printable}


_BYTE_OF = _byte_alphabet()


def _byte_level(token_id: int, piece: str, added: bool) -> bytes:
    if added:
        return piece.encode()
    try:
        return bytes(_BYTE_OF[character] for character in piece)
    except KeyError:
        return piece.encode()


def _strips_first_space(step: dict[str, Any]) -> bool:
    if step["type"] == "Metaspace":
        return step.get("prepend_scheme") != "never"
    return bool(step["type"] == "Strip" and step["content"] == " " and step["start"])


def _sentencepiece(steps: Sequence[dict[str, Any]]) -> PieceBytes:
    has_bytes = any(step["type"] == "ByteFallback" for step in steps)
    spaces = [step["replacement"] for step in steps if step["type"] == "Metaspace"]
    replaced = [
        (step["pattern"]["String"], step["content"])
        for step in steps
        if step["type"] == "Replace" and "String" in step["pattern"]
    ] + [(mark, " ") for mark in spaces]

    def to_bytes(token_id: int, piece: str, added: bool) -> bytes:
        if has_bytes and (byte := _BYTE_PIECE.fullmatch(piece)):
            return bytes([int(byte[1], 16)])
        for old, new in replaced:
            piece = piece.replace(old, new)
        return piece.encode()

    return to_bytes


def _by_example(backend: RustTokenizer) -> PieceBytes:
    """Decode a piece behind a known one and take what it adds (WordPiece: a space and a word)."""
    anchor = next((i for p in "ax0" if (i := backend.token_to_id(p)) is not None), 0)
    before = backend.decode([anchor], skip_special_tokens=False)

    def to_bytes(token_id: int, piece: str, added: bool) -> bytes:
        both = backend.decode([anchor, token_id], skip_special_tokens=False)
        return (both[len(before) :] if both.startswith(before) else piece).encode()

    return to_bytes
