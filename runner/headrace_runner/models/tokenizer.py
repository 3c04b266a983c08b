"""A model's tokenizer: text to ids and ids to exact bytes.

Built from tokenizer.json with the Rust `tokenizers` library alone, which imports in milliseconds
where transformers takes most of a second. It never guesses text: single tokens are bytes, which
need not be whole UTF-8, and nothing is "cleaned up" on the way out.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from tokenizers import Encoding as RustEncoding
from tokenizers import Tokenizer as RustTokenizer
from tokenizers.processors import TemplateProcessing

from headrace.errors import ModelCorrupt, UnsupportedModel
from headrace_runner.models.files import read_json
from headrace_runner.models.pieces import piece_decoder

_SPECIAL_NAMES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


@dataclass(frozen=True, slots=True)
class Piece:
    """One token of an encoded text."""

    token_id: int
    data: bytes
    """The token's own bytes; not always whole UTF-8."""
    start: int
    """First byte of the token in the UTF-8 of the text."""
    end: int
    """The byte after its last. Equal to `start` for a special token that was added."""


class Tokenizer:
    """Encodes and decodes for one model. Safe to use from several threads."""

    def __init__(
        self,
        backend: RustTokenizer,
        *,
        config: Mapping[str, Any] | None = None,
        generation_config: Mapping[str, Any] | None = None,
        tokenizer_config: Mapping[str, Any] | None = None,
    ) -> None:
        config, settings = config or {}, tokenizer_config or {}
        # A truncation or padding left in tokenizer.json would silently change prompts.
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self.special_tokens: dict[str, str] = {
            name: content
            for name in _SPECIAL_NAMES
            if (content := _token_content(settings.get(name))) is not None
        }
        """Named special tokens ("bos_token", …) as chat templates want them."""
        self.bos_id = self._named_id("bos_token")
        self.eos_ids = self._find_eos_ids(config, generation_config or {})
        """Tokens that end a text."""
        self.special_ids = self._find_special_ids()
        """Tokens that are control marks and no text."""
        _honour_explicit_bos_eos(backend, settings, self.special_tokens)
        self.vocab_size = self._find_vocab_size(config)
        """Ids that the model knows are 0 to this, exclusive; some may have no text."""
        self._to_bytes, self.strips_first_space = piece_decoder(backend)
        self._added = {i: t.content for i, t in backend.get_added_tokens_decoder().items()}
        self._bytes_cache: dict[int, bytes] = {}
        self.adds_bos = self.bos_id is not None and self.encode("", add_special=True)[:1] == [
            self.bos_id
        ]
        """Whether `add_special` puts the beginning-of-text token in front."""

    @classmethod
    def load(cls, model_dir: Path) -> "Tokenizer":
        """Load the tokenizer of a model directory.

        Raises ModelCorrupt naming the file that cannot be read, and UnsupportedModel where there
        is no tokenizer at all.
        """
        return cls(
            _load_backend(model_dir),
            config=read_json(model_dir, "config.json"),
            generation_config=read_json(model_dir, "generation_config.json"),
            tokenizer_config=read_json(model_dir, "special_tokens_map.json")
            | read_json(model_dir, "tokenizer_config.json"),
        )

    def encode(self, text: str, *, add_special: bool) -> list[int]:
        """Give the ids of a text; `add_special` adds what the model wants around a text."""
        # The batch calls release the GIL, which a plain `encode` holds throughout: seconds for a
        # long prompt. The fast one leaves out the offsets.
        batch = self._backend.encode_batch_fast([text], add_special_tokens=add_special)
        return batch[0].ids

    def pieces(self, text: str, *, add_special: bool) -> list[Piece]:
        """Give the tokens of a text with their bytes and their places in its UTF-8.

        Tokens that split a character get exact borders where the tokenizer changes nothing of the
        text (or adds one space in front); otherwise each covers the whole character.
        """
        encoding = self._backend.encode_batch([text], add_special_tokens=add_special)[0]
        ids = encoding.ids
        data = [self.token_bytes(i) for i in ids]
        places = _exact_places(encoding, data, text)
        if places is None:
            places = _character_places(encoding, text)
        return [
            Piece(i, piece, start, end)
            for i, piece, (start, end) in zip(ids, data, places, strict=True)
        ]

    def token_bytes(self, token_id: int) -> bytes:
        """Give the exact bytes of one token; nothing for an id that has no text."""
        found = self._bytes_cache.get(token_id)
        if found is None:
            found = self._bytes_cache[token_id] = self._find_bytes(token_id)
        return found

    def decode(self, token_ids: Iterable[int], *, skip_special: bool = False) -> bytes:
        """Give the bytes of a text's tokens, without the space that encoding put in front."""
        skipped = self.special_ids if skip_special else frozenset[int]()
        pieces = [self.token_bytes(i) for i in token_ids if i not in skipped]
        if pieces and self.strips_first_space:
            pieces[0] = pieces[0].removeprefix(b" ")
        return b"".join(pieces)

    def _find_bytes(self, token_id: int) -> bytes:
        added = self._added.get(token_id)
        piece = added if added is not None else self._backend.id_to_token(token_id)
        return b"" if piece is None else self._to_bytes(token_id, piece, added is not None)

    def _named_id(self, name: str) -> int | None:
        content = self.special_tokens.get(name)
        return None if content is None else self._backend.token_to_id(content)

    def _find_eos_ids(
        self, config: Mapping[str, Any], generation_config: Mapping[str, Any]
    ) -> frozenset[int]:
        text_config = config.get("text_config") or {}
        sources = (generation_config, config, text_config)
        declared: Any = next((i for s in sources if (i := s.get("eos_token_id")) is not None), [])
        ids = set(declared if isinstance(declared, list) else [declared])
        ids.add(self._named_id("eos_token"))
        return frozenset(i for i in ids if isinstance(i, int))

    def _find_special_ids(self) -> frozenset[int]:
        named = {self._named_id(name) for name in self.special_tokens}
        flagged = {i for i, t in self._backend.get_added_tokens_decoder().items() if t.special}
        return frozenset(flagged | self.eos_ids | {i for i in named if i is not None})

    def _find_vocab_size(self, config: Mapping[str, Any]) -> int:
        # The rows of the embedding decide what can be computed; they are often padded past the
        # last token, and an id beyond them must never reach the model.
        for source in (config, config.get("text_config") or {}):
            rows = source.get("vocab_size")
            if isinstance(rows, int) and rows > 0:
                return rows
        return self._backend.get_vocab_size(with_added_tokens=True)


def _load_backend(model_dir: Path) -> RustTokenizer:
    path = model_dir / "tokenizer.json"
    if path.is_file():
        try:
            return RustTokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing more precise
            raise ModelCorrupt(file=path.name) from error
    if not (model_dir / "tokenizer.model").is_file():
        raise UnsupportedModel(
            "the model has no tokenizer: neither tokenizer.json nor tokenizer.model"
        )
    from transformers import AutoTokenizer  # slow to import, and only these models need it

    try:
        loaded = AutoTokenizer.from_pretrained(
            str(model_dir), local_files_only=True, trust_remote_code=False
        )
        return RustTokenizer.from_str(loaded.backend_tokenizer.to_str())
    except Exception as error:  # converters raise whatever the damaged file makes them raise
        raise ModelCorrupt(file="tokenizer.model") from error


def _token_content(value: object) -> str | None:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _honour_explicit_bos_eos(
    backend: RustTokenizer, settings: Mapping[str, Any], special_tokens: Mapping[str, str]
) -> None:
    """Let add_bos_token and add_eos_token, where they are written, overrule tokenizer.json."""
    if settings.get("add_bos_token") is None and settings.get("add_eos_token") is None:
        return
    parts, tokens = ["$A"], []
    for name, place in (("bos_token", 0), ("eos_token", 2)):
        content = special_tokens.get(name)
        token_id = None if content is None else backend.token_to_id(content)
        if settings.get(f"add_{name}") and content is not None and token_id is not None:
            parts.insert(place, content)
            tokens.append((content, token_id))
    backend.post_processor = TemplateProcessing(single=parts, special_tokens=tokens)


def _exact_places(
    encoding: RustEncoding, data: Sequence[bytes], text: str
) -> list[tuple[int, int]] | None:
    """Place tokens by adding up their bytes; None where those are not the text's own."""
    added = encoding.special_tokens_mask
    sizes = [0 if mask else len(piece) for piece, mask in zip(data, added, strict=True)]
    joined = b"".join(piece for piece, mask in zip(data, added, strict=True) if not mask)
    encoded = text.encode()
    shift = len(joined) - len(encoded)
    if joined != b" " * shift + encoded or shift > 1:
        return None
    ends = [max(0, end - shift) for end in accumulate(sizes)]
    return list(pairwise([0, *ends]))


def _character_places(encoding: RustEncoding, text: str) -> list[tuple[int, int]]:
    """Place tokens by the characters that they came from."""
    to_byte = list(accumulate((len(c.encode()) for c in text), initial=0))
    places, last = [], 0
    for (start, end), added in zip(encoding.offsets, encoding.special_tokens_mask, strict=True):
        place = (last, last) if added else (to_byte[start], to_byte[end])
        places.append(place)
        last = place[1]
    return places
