"""Whether an imported language model still reads and predicts text: the last look before it shows.

Two questions. Does a text in many scripts come back from the tokenizer as it was? And does the
model predict a plain text about as well as models do? Weights in the wrong place, or a vocabulary
that is not theirs, give a model that runs and talks nonsense; nothing else would notice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import mlx.core as mx
import numpy as np
from mlx.nn.layers.quantized import QuantizedLinear
from tokenizers import Tokenizer, decoders, pre_tokenizers

from headrace.errors import HeadraceError, UnsupportedModel
from headrace.host import machine
from headrace_runner.convert.families import FAMILIES
from headrace_runner.models.architectures import first_line
from headrace_runner.models.insides import load_lazily

SCRIPTS: Mapping[str, str] = {
    "ASCII": "The quick brown fox; it's 12,345.67 (or 8%)!",
    "Latin": "Äpfel, façade, žluťoučký kůň, ğüneş, Đặng",
    "Cyrillic": "Съешь же ещё этих мягких булок",
    "Greek": "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία",
    "Arabic": "نص حكيم له سر قاطع ١٢٣",
    "Hebrew": "דג סקרן שט בים מאוכזב",
    "Devanagari": "ऋषियों को सताने वाले दुष्ट राक्षस",
    "Thai": "เป็นมนุษย์สุดประเสริฐ",
    "Chinese and Japanese": "天地玄黃，宇宙洪荒。いろはにほへと カタカナ",
    "Hangul": "키스의 고유조건은 입술끼리",
    "emoji": "🎉 👩\u200d👩\u200d👧\u200d👦 🏳️\u200d🌈 👍🏽",
    "code": "def f(x):\r\n\tif x != 0:\n        return {'a': [x**2]}  # ok\n",
    "control characters": "a\x00b\x01c\x1b[0m\x7f",
    "white space": "  two   three\t\ttabs\n\n\nlines \u00a0\u3000 ",
}
# Said twice, since a model that has seen it says it again whatever its language is, and needs
# every layer and the order of the tokens to do so.
_SENTENCES = (
    "The sun rises in the east and sets in the west.\n",
    "太阳从东方升起，在西方落下。水热了会沸腾。\n",
    "Солнце встаёт на востоке и садится на западе.\n",
    "تشرق الشمس من الشرق وتغرب في الغرب.\n",
    "सूरज पूरब में उगता है और पश्चिम में डूबता है।\n",
)
_BOUND = 0.4
"""Of what guessing costs, the logarithm of the vocabulary's size. SmolLM2 pays 0.13; with every
token's text shifted or with two layers exchanged 0.6, with the rows of k alone out of order 0.8,
with random weights 1."""
_ORDER_MARGIN = 0.1
"""Nats that the other order of rows must be better by. For SmolLM2 it is 1.4 nats worse."""
_Change: TypeAlias = Callable[[Any], None]
JUDGED_PARAMETERS = 5_000_000
"""Models with fewer need not know any language: those of tests, and toys."""
_QUICK_PARAMETERS = {False: 4_000_000_000, True: 16_000_000_000}
"""Beyond this it would take minutes; by whether this is a Mac, whose CPUs do matrices better."""
_REMEDY = "--no-check takes it all the same"


def check_text(directory: Path, facts: Mapping[str, Any], *, from_gguf: bool) -> str:
    """Try the model in `directory`; gives a sentence about what was found, for the log.

    One that was converted from GGUF must keep every text, and have the rows of its queries and
    keys in the order that predicts best.

    Raises UnsupportedModel where the tokenizer loses text or the model predicts none.
    """
    path = directory / "tokenizer.json"
    if not path.is_file():
        return "not tried out: it has no tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    _check_round_trip(tokenizer, exact=from_gguf)
    parameters = facts["parameters"]
    if parameters < JUDGED_PARAMETERS:
        return "not tried out: a model this small need not know any language"
    needed, free = _memory(facts), machine.memory_available()
    if parameters > _QUICK_PARAMETERS[mx.metal.is_available()]:
        return "not tried out: that would take minutes on a CPU"
    if needed > free:
        return f"not tried out: that takes {needed >> 20} MiB of memory, and {free >> 20} are free"
    reordered = _reordered_rows(facts) if from_gguf else None
    try:
        return _check_prediction(directory, tokenizer, reordered)
    except HeadraceError:
        raise
    except Exception as error:  # Model classes raise whatever an odd configuration makes them.
        said = f"{type(error).__name__}: {first_line(error)}"
        if from_gguf:
            raise UnsupportedModel(f"mlx-lm cannot compute this model: {said}") from error
        # It may need what a CPU does not have, and its files are as their maker left them.
        return f"not tried out: computing it on a CPU ended with {said}"


def _check_round_trip(tokenizer: Tokenizer, *, exact: bool) -> None:
    """An inexact tokenizer, as a model brings it, may lose case, space and rare characters."""

    def normal(text: str) -> str:
        whole = tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text
        return whole if exact else "".join(whole.casefold().split())

    unknown = _unknown_id(tokenizer)
    for script, text in SCRIPTS.items():
        if script != "ASCII":
            text = _known(tokenizer, text)
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        if script != "ASCII" and (not exact or unknown in ids):
            continue  # It does not know the script, and says so.
        back = tokenizer.decode(ids, skip_special_tokens=False)
        if normal(back) != normal(text):
            raise UnsupportedModel(
                f"the tokenizer does not give text back as it was: {script}, {text!r} became"
                f" {back!r}; {_REMEDY}"
            )


def _known(tokenizer: Tokenizer, text: str) -> str:
    """The text without bytes that a byte-level vocabulary lacks: SmolLM2 has no 0x06."""
    if not isinstance(tokenizer.decoder, decoders.ByteLevel):
        return text
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return "".join(
        character
        for character in text
        if all(
            tokenizer.token_to_id(letter) is not None
            for word, _ in letters.pre_tokenize_str(character)
            for letter in word
        )
    )


def _unknown_id(tokenizer: Tokenizer) -> int | None:
    token = getattr(tokenizer.model, "unk_token", None)
    return tokenizer.token_to_id(token) if isinstance(token, str) else None


def _memory(facts: Mapping[str, Any]) -> int:
    """Bytes of the weights while they are tried out, scales widened, and what is worked in."""
    stored: int = facts["tensor_bytes"]
    packed = stored < facts["parameters"] * 1.5
    return (stored * 5 // 4 if packed else facts["parameters"] * 4) + (512 << 20)


def _check_prediction(directory: Path, tokenizer: Tokenizer, reorder: _Change | None) -> str:
    model, _ = load_lazily(directory)
    # On a CPU, products in half precision take a hundred times longer.
    model.set_dtype(mx.float32)
    for module in model.modules():
        if type(module) is QuantizedLinear:
            module.__class__ = _Widened
    best, text = math.inf, ""
    guessing = 1.0
    for sentence in _SENTENCES:
        ids = tokenizer.encode(sentence * 2).ids
        loss, guessing = _loss(model, ids)
        if loss < best:
            best, text = loss, sentence
        if best <= _BOUND * guessing:
            break
    else:
        raise UnsupportedModel(
            f"the imported model predicts no text: {best:.1f} nats a token, where guessing takes"
            f" {guessing:.1f} and a language model a third of that; its file is damaged, laid out"
            f" in another way than it says, or it never learnt a language; {_REMEDY}"
        )
    if reorder is not None:
        reorder(model)
        other, _ = _loss(model, tokenizer.encode(text * 2).ids)
        if other < best - _ORDER_MARGIN:
            raise UnsupportedModel(
                "the rows of the model's queries and keys are in another order than files of its"
                f" architecture have them: {best:.1f} nats a token as they are, and {other:.1f} in"
                f" the other order; convert it again with a current llama.cpp; {_REMEDY}"
            )
    return f"tried out: {best:.2f} nats a token, where guessing takes {guessing:.1f}"


def _loss(model: Any, ids: list[int]) -> tuple[float, float]:
    """Mean negative log-likelihood of the text `ids` after its first token, and of guessing."""
    logits = model(mx.array([ids]))[0].astype(mx.float32)
    own = mx.take_along_axis(logits[:-1], mx.array(ids[1:])[:, None], axis=1)[:, 0]
    mean = (mx.logsumexp(logits[:-1], axis=1) - own).mean()
    loss = float(np.array(mean))
    return (loss if math.isfinite(loss) else math.inf), math.log(logits.shape[1])


def _reordered_rows(facts: Mapping[str, Any]) -> _Change | None:
    """What makes of a model the one it would be, had its rows of q and k been left as they were.

    Both in the wrong order is a mistake that a short text hardly shows: the products of queries
    and keys stay, only the sense of positions is lost.
    """
    family = next(f for f in FAMILIES.values() if f.model_type == facts["architecture"])
    if "attn_q" not in family.layer:
        return None
    half = facts["head_dim"] // 2

    def swapped(array: mx.array) -> mx.array:
        pairs = (2, half) if family.rotated else (half, 2)
        return array.reshape(-1, *pairs, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)

    def change(model: Any) -> None:
        for layer in model.layers:
            for linear in (layer.self_attn.q_proj, layer.self_attn.k_proj):
                for part in ("weight", "scales", "biases", "bias"):
                    if part in linear:
                        linear[part] = swapped(linear[part])

    return change


class _Widened(QuantizedLinear):
    """Expands its weight for each product: on a CPU that is many times quicker than not to."""

    def __call__(self, x: mx.array) -> mx.array:
        weight = mx.dequantize(
            self["weight"],
            self["scales"],
            self.get("biases"),
            group_size=self.group_size,
            bits=self.bits,
            mode=self.mode,
        )
        x = x @ weight.T
        return x + self["bias"] if "bias" in self else x
