"""The files of an emoji model's directory, and what its config.json says. Never imports MLX."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.errors import ModelCorrupt, UnsupportedModel
from headrace_runner.models.files import read_json, read_text

MODEL_TYPE = "headrace-emoji"
"""What config.json calls such a model under "model_type"."""

CONFIG, WEIGHTS, VOCABULARY, CARD = (
    "config.json",
    "model.safetensors",
    "vocabulary.txt",
    "MODEL_CARD.md",
)


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of the network, as config.json has them under "shape"."""

    words: int
    """Of the vocabulary, without the place for all others."""
    buckets: int
    """Of the n-grams."""
    text_width: int
    text_layers: int
    widths: tuple[int, int]
    """Channels at a quarter and at an eighth of the image's side."""
    embedding: int
    """Of time and caption together."""
    sketch: int
    """Channels of what the caption lays out at the lower level, whatever the noise."""
    heads: int
    groups: int
    """Of channels that are normalised together."""
    patch: int
    """Pixels of a patch's side."""
    image: int
    """Pixels of an image's side."""

    @property
    def lower_side(self) -> int:
        """Places on a side of the lower level."""
        return self.image // self.patch // 2


@dataclass(frozen=True, slots=True)
class Config:
    """What config.json says."""

    shape: Shape
    steps: int
    """Of sampling, where nothing is said."""
    guidance: float
    license: str | None


def is_emoji(directory: Path) -> bool:
    """Whether the model in `directory` says that it is one. Raises ModelCorrupt for a config.json
    that cannot be read."""
    return read_json(directory, CONFIG).get("model_type") == MODEL_TYPE


def read_config(directory: Path) -> Config:
    """Raises ModelCorrupt for a missing or damaged file, UnsupportedModel for another model."""
    config = read_json(directory, CONFIG)
    if not config:
        raise ModelCorrupt(file=CONFIG)
    if config.get("model_type") != MODEL_TYPE:
        kind = str(config.get("model_type", ""))
        raise UnsupportedModel(f"{kind!r} is not {MODEL_TYPE!r}", architecture=kind)
    try:
        return Config(
            _shape(config["shape"]),
            int(config["sampling"]["steps"]),
            float(config["sampling"]["guidance"]),
            config.get("license"),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ModelCorrupt(f"{CONFIG} does not describe an emoji model", file=CONFIG) from error


def _shape(stated: Mapping[str, Any]) -> Shape:
    sizes = {name: int(size) for name, size in stated.items() if name != "widths"}
    high, low = map(int, stated["widths"])
    if min(high, low, *sizes.values()) < 1:
        raise ValueError("a size is less than 1")
    return Shape(**sizes, widths=(high, low))


def read_words(directory: Path, config: Config) -> list[str]:
    """The words of the vocabulary, in order. Raises ModelCorrupt."""
    listed = (read_text(directory, VOCABULARY) or "").split()
    if len(listed) != config.shape.words:
        raise ModelCorrupt(
            f"{VOCABULARY} has {len(listed)} words, not the {config.shape.words} of {CONFIG}",
            file=VOCABULARY,
        )
    return listed
