"""Small encoders for tests, and what they have to give: the same arithmetic in NumPy and float64.

`python -m tests.encoders DIR` prints the reference vectors of a real model that tests compare with.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from headrace_runner.models.encoders.architectures import read_shape, tensors_of

Array = NDArray[np.float64]

WORDS = [
    *("the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", "sun", "rain", "is"),
    *("not", "and", "or", "very", "big", "red", "one", "two"),
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
HIDDEN = 24
CONTEXT = 20
CONFIG: dict[str, Any] = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "hidden_size": HIDDEN,
    "intermediate_size": 40,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "pad_token_id": 0,
    "type_vocab_size": 2,
    "vocab_size": 30,
}
_FLAGS = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
}


def save_encoder(
    directory: Path, pooling: str = "mean", files: dict[str, Any] | None = None, **config: Any
) -> Path:
    """A model directory as sentence-transformers lays it out, of random weights.

    `files` replace or add JSON files by their paths; `config` changes config.json.
    """
    directory.mkdir(parents=True, exist_ok=True)
    settings = CONFIG | config
    shape = read_shape(settings)
    random = np.random.default_rng(7)
    tensors: dict[str, NDArray[Any]] = {
        name: random.normal(0, 0.4, size).astype(np.float32)
        for name, size in tensors_of(shape).items()
    }
    # Of other tasks, and of older versions of the library that saved it.
    tensors["pooler.dense.weight"] = np.zeros((shape.hidden, shape.hidden), np.float32)
    tensors["embeddings.position_ids"] = np.arange(shape.positions)
    save_file(tensors, directory / "model.safetensors")
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    written: dict[str, Any] = {
        "config.json": settings,
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(modules)
        ],
        "1_Pooling/config.json": {
            "word_embedding_dimension": shape.hidden,
            **{flag: mode == pooling for mode, flag in _FLAGS.items()},
        },
        "sentence_bert_config.json": {"max_seq_length": CONTEXT, "do_lower_case": False},
        "tokenizer_config.json": {"cls_token": "[CLS]", "sep_token": "[SEP]"},
        **(files or {}),
    }
    for name, value in written.items():
        path = directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(value))
    tokenizer().save(str(directory / "tokenizer.json"))
    return directory


def tokenizer() -> Tokenizer:
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    frame = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=frame)
    return made


def reference(directory: Path, tokens: Sequence[int], pooling: str = "mean") -> Array:
    """The vector of one text, not scaled, as Devlin et al. 2018 define it. Of BERT's with the
    activation "gelu"; RoBERTa's positions begin after the padding token's."""
    config = json.loads((directory / "config.json").read_text())
    stored = load_file(directory / "model.safetensors")
    w = {name: tensor.astype(np.float64) for name, tensor in stored.items()}
    epsilon = config["layer_norm_eps"]
    heads, first = config["num_attention_heads"], 0
    if config["model_type"] != "bert":
        first = config["pad_token_id"] + 1

    def linear(x: Array, name: str) -> Array:
        product: Array = x @ w[f"{name}.weight"].T + w[f"{name}.bias"]
        return product

    def norm(x: Array, name: str) -> Array:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)
        found: Array = scaled * w[f"{name}.weight"] + w[f"{name}.bias"]
        return found

    x = w["embeddings.word_embeddings.weight"][list(tokens)]
    x = x + w["embeddings.position_embeddings.weight"][first : first + len(tokens)]
    x = norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    for number in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{number}"
        parts = []
        for part in ("query", "key", "value"):
            found = linear(x, f"{layer}.attention.self.{part}")
            parts.append(found.reshape(len(tokens), heads, -1).swapaxes(0, 1))
        query, key, value = parts
        scores = query @ key.swapaxes(1, 2) / math.sqrt(query.shape[-1])
        exponentials = np.exp(scores - scores.max(-1, keepdims=True))
        found = exponentials / exponentials.sum(-1, keepdims=True) @ value
        found = found.swapaxes(0, 1).reshape(len(tokens), -1)
        found = linear(found, f"{layer}.attention.output.dense")
        x = norm(x + found, f"{layer}.attention.output.LayerNorm")
        inner = linear(x, f"{layer}.intermediate.dense")
        inner = inner * 0.5 * (1 + np.vectorize(math.erf)(inner / math.sqrt(2)))
        x = norm(x + linear(inner, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
    pooled: dict[str, Array] = {"cls": x[0], "mean": x.mean(0), "max": x.max(0)}
    return pooled[pooling]


TEXTS = [
    "The weather is lovely today.",
    "It's so sunny outside!",
    "He drove to the stadium.",
    " ",
    "Das Wetter ist heute schön. 今日はいい天気ですね。 Погода сегодня чудесная 🌞",
    "A river carries sand and stones to the sea, and its bed changes every year. " * 30,
]
"""Of the real model's reference: the last is far over its context and is cut."""


def main(directory: Path) -> None:
    """Print the reference of a real model. Its tokens are made by transformers, to be independent
    of the tokenizer here."""
    from transformers import AutoTokenizer

    longest = json.loads((directory / "sentence_bert_config.json").read_text())["max_seq_length"]
    tokenizer = AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
    rows = tokenizer(TEXTS, truncation=True, max_length=longest)["input_ids"]
    vectors = np.array([reference(directory, row) for row in rows])
    norms = np.linalg.norm(vectors, axis=1)
    scaled = vectors / norms[:, None]
    told = {
        "tokens": [len(row) for row in rows],
        "norms": [round(float(norm), 6) for norm in norms],
        "first": [[round(float(x), 6) for x in vector[:16]] for vector in scaled],
        "cosines": [[round(float(x), 6) for x in line] for line in scaled @ scaled.T],
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
