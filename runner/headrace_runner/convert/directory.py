"""Takes over an MLX or Hugging Face model directory: checks it and copies what mlx-lm reads.

Never follows a configuration that brings its own code, and never opens a pickle.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from headrace.errors import FieldViolation, InvalidRequest, ModelCorrupt, UnsupportedModel
from headrace_runner.convert.facts import read_facts
from headrace_runner.convert.plan import Quantize
from headrace_runner.convert.progress import Meter, Report
from headrace_runner.convert.quantized import write_quantized
from headrace_runner.models.architectures import model_class_exists
from headrace_runner.models.files import read_json
from headrace_runner.models.safetensors import INDEX, damaged, read_tensors

_CHUNK_BYTES = 8 << 20
_FILES = (
    "model*.safetensors",
    "model.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "hf_quant_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "README.md",
    "LICENSE*",
)
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def import_directory(
    source: Path, output: Path, report: Report, quantize: Quantize = Quantize.AS_STORED
) -> dict[str, Any]:
    """Copy the model in `source` to `output`, quantised if asked, and return its facts.

    Raises:
        InvalidRequest: `source` is no model directory, or is quantised already and other bits
            are asked for.
        UnsupportedModel: mlx-lm has no class for it, or it needs its own code or a pickle.
        ModelCorrupt: a file is damaged.
    """
    if not (source / "config.json").is_file():
        raise InvalidRequest(
            f"{source.name} is no model directory: it has no config.json; give a .gguf file or a"
            " directory in the MLX or Hugging Face layout"
        )
    config = read_json(source, "config.json")
    _check_config(config)
    if quantize is not Quantize.AS_STORED and _is_quantized(config):
        raise InvalidRequest(
            f"{source.name} is quantised already; import it as it is, or the model's unquantised"
            " directory",
            violations=[FieldViolation("quantization", "the model is quantised already")],
        )
    files = sorted({path for pattern in _FILES for path in source.glob(pattern)})
    if not any(path.suffix == ".safetensors" for path in files):
        raise no_weights(source)
    read_tensors(source)
    if quantize.bits is not None:
        written = ("config.json", INDEX)
        files = [p for p in files if p.suffix != ".safetensors" and p.name not in written]
    meter = Meter(report, "store", sum(path.stat().st_size for path in files))
    for path in files:
        copy(path, output / path.name, meter)
    if quantize.bits is not None:
        write_quantized(source, output, quantize.bits, report)
    return read_facts(output)


def _is_quantized(config: dict[str, Any]) -> bool:
    return any(config.get(key) for key in ("quantization", "quantization_config"))


def _check_config(config: dict[str, Any]) -> None:
    if not isinstance(config.get("model_type"), str):
        raise damaged(Path("config.json"), "it names no model_type")
    if "model_file" in config:
        raise UnsupportedModel(
            "the model brings its own code (model_file in config.json), which is never run"
        )
    if not model_class_exists(config):
        raise UnsupportedModel(
            f"the installed mlx-lm does not know the architecture {config['model_type']!r}",
            architecture=config["model_type"],
        )


def no_weights(source: Path) -> UnsupportedModel | ModelCorrupt:
    """The error for a directory that has no safetensors file."""
    if any(path for pattern in _PICKLES for path in source.glob(pattern)):
        return UnsupportedModel(
            "the weights are pickles, which are never loaded; take the model's safetensors files"
        )
    return ModelCorrupt("the directory has no model*.safetensors file", file="model.safetensors")


def copy(source: Path, target: Path, meter: Meter) -> None:
    """Copy one file, counting its bytes."""
    with source.open("rb") as reader, target.open("wb") as writer:
        while chunk := reader.read(_CHUNK_BYTES):
            writer.write(chunk)
            meter.advance(len(chunk))
