"""Turns a GGUF file into an MLX model directory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx

from headrace_runner.convert.facts import dumps, read_facts
from headrace_runner.convert.gguf import read_gguf
from headrace_runner.convert.gguf_model import GgufModel
from headrace_runner.convert.plan import Quantize
from headrace_runner.convert.progress import Meter, Report
from headrace_runner.convert.shards import write_shards
from headrace_runner.convert.tokenizer import GgufTokenizer, read_tokenizer
from headrace_runner.models.safetensors import damaged


def import_gguf(
    source: Path, output: Path, report: Report, quantize: Quantize = Quantize.AS_STORED
) -> dict[str, Any]:
    """Convert the file `source` into `output` and return the model's facts.

    Raises:
        UnsupportedModel: an architecture, tensor type or tokenizer that is not read here.
        ModelCorrupt: the file is damaged.
    """
    gguf = read_gguf(source)
    model = GgufModel(gguf, quantize)
    tokenizer = read_tokenizer(gguf)
    config = model.config()
    if tokenizer.tokenizer.get_vocab_size() > config["vocab_size"]:
        raise damaged(source, "it has more tokens than embeddings")
    config |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_ids}
    (output / "config.json").write_text(dumps(config), encoding="utf-8")
    _write_tokenizer(output, tokenizer)
    write_shards(output, _tensors(model, report))
    return read_facts(output, model.quantization, gguf.text("general.license"))


def _tensors(model: GgufModel, report: Report) -> Iterator[tuple[str, mx.array]]:
    meter = Meter(report, "convert", sum(tensor.nbytes for tensor in model.tensors))
    for tensor in model.tensors:
        yield from model.weights(tensor)
        meter.advance(tensor.nbytes)


def _write_tokenizer(output: Path, tokenizer: GgufTokenizer) -> None:
    tokenizer.tokenizer.save(str(output / "tokenizer.json"))
    (output / "tokenizer_config.json").write_text(dumps(tokenizer.config), encoding="utf-8")
    if tokenizer.chat_template is not None:
        (output / "chat_template.jinja").write_text(tokenizer.chat_template, encoding="utf-8")
