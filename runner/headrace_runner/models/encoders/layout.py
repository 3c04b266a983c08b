"""What the directory of an embedding model says: the layout of sentence-transformers.

    modules.json                      the parts: a transformer, a pooling, perhaps a scaling
    1_Pooling/config.json             how the tokens' vectors become one
    sentence_bert_config.json         tokens that a text is cut to
    config_sentence_transformers.json dimensions, prompts

As sentence-transformers 2 to 5 write it (Reimers & Gurevych 2019, arXiv:1908.10084). An encoder
without modules.json is pooled by the mean, as that library does. Never imports MLX.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast, get_args

from headrace.errors import ModelCorrupt, UnsupportedModel
from headrace_runner.models.encoders.architectures import Shape, is_known, read_shape
from headrace_runner.models.files import read_json, read_text

Pooling: TypeAlias = Literal["mean", "cls", "max"]

MODULES = "modules.json"
_SETTINGS = "config_sentence_transformers.json"
_MODES: Mapping[str, Pooling] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
}


@dataclass(frozen=True, slots=True)
class EncoderTraits:
    """What an embedding model takes, and what it does where nothing is said."""

    shape: Shape
    pooling: Pooling
    context_length: int
    """Tokens of an input, those around the text included."""
    dimensions: int
    """Length of a vector where a request does not say."""
    shortened_to: tuple[int, ...] | None
    """Lengths that a vector may be cut to; empty: any; None: the model was not trained for it."""
    lower_case: bool
    """Whether texts are put into lower case before they are tokenized."""


def is_embedding(directory: Path) -> bool:
    """Whether the model in `directory` makes vectors, even if no runner can compute it.

    Raises ModelCorrupt for files that cannot be read.
    """
    if any(kind == "Pooling" for kind, _ in _modules(directory)):
        return True
    return is_known(read_json(directory, "config.json"))


def read_traits(directory: Path) -> EncoderTraits:
    """What the files in `directory` say. Raises UnsupportedModel and ModelCorrupt."""
    config = read_json(directory, "config.json")
    if "model_type" not in config:
        raise ModelCorrupt("config.json is missing, or names no model type", file="config.json")
    pooling_file = _check_modules(directory)
    shape = read_shape(config)
    settings = read_json(directory, _SETTINGS)
    _refuse_prompt(settings)
    text = read_json(directory, "sentence_bert_config.json")
    longest = _positive(text, "max_seq_length", "sentence_bert_config.json") or shape.longest
    dimensions, shortened = _dimensions(config, settings, shape)
    return EncoderTraits(
        shape=shape,
        pooling="mean" if pooling_file is None else _pooling(directory, pooling_file, shape),
        context_length=min(longest, shape.longest),
        dimensions=dimensions,
        shortened_to=shortened,
        lower_case=bool(text.get("do_lower_case")),
    )


def files_of(directory: Path) -> list[Path]:
    """The small files that say how an embedding model is used, of those that are there."""
    names = [MODULES, _SETTINGS, "sentence_bert_config.json", "vocab.txt"]
    names += [f"{path}/config.json" for kind, path in _modules(directory) if kind == "Pooling"]
    return [path for name in names if (path := directory / name).is_file()]


def _modules(directory: Path) -> list[tuple[str, str]]:
    """The parts of the model: the last word of each one's type, and its folder."""
    text = read_text(directory, MODULES)
    if text is None:
        return []
    try:
        return [
            (str(module["type"]).rpartition(".")[2], str(module["path"]))
            for module in json.loads(text)
        ]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ModelCorrupt("modules.json lists no modules", file=MODULES) from error


def _check_modules(directory: Path) -> str | None:
    """The file that says how to pool; None where no modules are listed."""
    modules = _modules(directory)
    kinds = [kind for kind, _ in modules]
    if not modules:
        return None
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise UnsupportedModel(
            f"its modules are {', '.join(kinds)}; a runner computes Transformer, Pooling and "
            "perhaps Normalize, in this order"
        )
    paths = [path for _, path in modules]
    if paths[0]:
        raise UnsupportedModel(
            f"its transformer lies in {paths[0]}; a runner looks for it beside modules.json"
        )
    if not paths[1] or Path(paths[1]).is_absolute() or ".." in Path(paths[1]).parts:
        raise ModelCorrupt("modules.json names no folder of its own for Pooling", file=MODULES)
    return f"{paths[1]}/config.json"


def _pooling(directory: Path, file: str, shape: Shape) -> Pooling:
    config = read_json(directory, file)
    if not config:
        raise ModelCorrupt(f"{file} is missing, or empty", file=file)
    if "pooling_mode" in config:
        named = config["pooling_mode"]
        modes = list(named) if isinstance(named, list) else [named]
    else:
        flags = [key for key, value in config.items() if key.startswith("pooling_mode_") and value]
        modes = [_MODES.get(flag, flag) for flag in flags]
    if len(modes) != 1 or modes[0] not in get_args(Pooling):
        raise UnsupportedModel(
            f"it pools by {' and '.join(map(str, modes)) or 'nothing'}; "
            f"a runner knows {', '.join(get_args(Pooling))}, one of them"
        )
    width = config.get("word_embedding_dimension", config.get("embedding_dimension", shape.hidden))
    if width != shape.hidden:
        raise ModelCorrupt(
            f"{file} is for vectors of {width} numbers, and the encoder's have {shape.hidden}",
            file=file,
        )
    return cast("Pooling", modes[0])


def _refuse_prompt(settings: Mapping[str, Any]) -> None:
    """A prompt that is put before every text would change what the vectors mean."""
    name = settings.get("default_prompt_name")
    prompts = settings.get("prompts")
    if name is not None and isinstance(prompts, Mapping) and prompts.get(name):
        raise UnsupportedModel(
            f"the prompt {name!r} is put before every text by default, which is not done here; "
            f"take default_prompt_name out of {_SETTINGS} and put it there yourself"
        )


def _dimensions(
    config: Mapping[str, Any], settings: Mapping[str, Any], shape: Shape
) -> tuple[int, tuple[int, ...] | None]:
    """The length of a vector, and those that it may be cut to (Kusupati et al. 2022,
    "Matryoshka Representation Learning", arXiv:2205.13147)."""
    told = _positive(settings, "truncate_dim", _SETTINGS)
    if told > shape.hidden:
        raise ModelCorrupt(f"truncate_dim is beyond {shape.hidden}", file=_SETTINGS)
    listed = config.get("matryoshka_dimensions")
    if isinstance(listed, list) and listed:
        lengths = sorted({n for n in listed if isinstance(n, int) and 0 < n <= shape.hidden})
        return told or shape.hidden, tuple(lengths)
    any_length = bool(told) or config.get("is_matryoshka") is True
    return told or shape.hidden, () if any_length else None


def _positive(config: Mapping[str, Any], key: str, file: str) -> int:
    """A whole number of 1 or more; 0 where none is given."""
    value = config.get(key)
    if value is None:
        return 0
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ModelCorrupt(f"{key} in {file} must be a whole number of 1 or more", file=file)
    return value
