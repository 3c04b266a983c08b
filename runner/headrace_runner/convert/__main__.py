"""`python -m headrace_runner.convert`: one conversion, told as JSON lines on standard output.

    {"event": "progress", "phase": "convert", "done": 1, "total": 2}      bytes
    {"event": "checked", "found": "tried out: …"}                         a language model
    {"event": "done", "facts": {…}, "files": [{"path", "size", "sha256"}, …]}
    {"event": "failed", "reason": "MODEL_CORRUPT", "message": "…", "file": "…", "field": ""}

The last line is "done" with exit code 0 or "failed" with 1. What it reports as done is on the disk
(fsync), under --output alone; it never decides where models live.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.errors import FieldViolation, HeadraceError, InvalidRequest
from headrace.host.offspring import end_with_parent, say

if TYPE_CHECKING:
    from headrace_runner.convert.plan import Quantize


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="headrace_runner.convert", description=__doc__)
    parser.add_argument("--source", type=Path, required=True, help=".gguf file or directory")
    parser.add_argument("--output", type=Path, required=True, help="empty directory to fill")
    parser.add_argument(
        "--parent", choices=["stdin"], help="end at once when standard input is closed"
    )
    parser.add_argument(
        "--quantize",
        choices=["stored", "none", "4", "8"],
        default="stored",
        help="bits of a language model's matrices",
    )
    parser.add_argument(
        "--no-check", action="store_true", help="take a language model without trying it out"
    )
    parser.add_argument("--base", type=Path, help="directory of the model that an adapter is of")
    options = parser.parse_args(arguments)
    if options.parent:
        end_with_parent()
    try:
        _convert(
            options.source,
            options.output,
            options.quantize,
            check=not options.no_check,
            base=options.base,
        )
    except HeadraceError as error:
        say(
            "failed",
            reason=error.reason,
            message=error.message,
            file=error.metadata.get("file", ""),
            field=next((found.field for found in error.violations), ""),
        )
        return 1
    return 0


def _convert(source: Path, output: Path, quantize: str, *, check: bool, base: Path | None) -> None:
    # Here and not above, so that a closed standard input is noticed during the slow imports too.
    import mlx.core as mx

    from headrace_runner.convert.adapters import import_adapter, is_adapter
    from headrace_runner.convert.check import check_model, inventory
    from headrace_runner.convert.directory import import_directory
    from headrace_runner.convert.encoders import check_encoder, import_encoder
    from headrace_runner.convert.gguf import is_gguf
    from headrace_runner.convert.gguf_import import import_gguf
    from headrace_runner.convert.images import check_images, import_images
    from headrace_runner.convert.plan import Quantize
    from headrace_runner.convert.selfcheck import check_text
    from headrace_runner.models import families
    from headrace_runner.models.encoders.layout import is_embedding

    mx.set_default_device(mx.cpu)  # Nothing here is worth a GPU, whose memory a runner may hold.
    asked = Quantize(quantize)

    def report(phase: str, done: int, total: int) -> None:
        say("progress", phase=phase, done=done, total=total)

    def check_language_model(facts: dict[str, Any], *, from_gguf: bool) -> None:
        check_model(output, facts)
        if check:
            say("checked", found=check_text(output, facts, from_gguf=from_gguf))

    try:
        if source.is_dir() and is_adapter(source, asked=base is not None):
            _refuse(asked, "an adapter")
            if base is None:
                raise _of_base(
                    f"{source.name} is an adapter (LoRA); name the model that it belongs to, with "
                    "--base on the command line"
                )
            facts = import_adapter(source, base, output, report)
        elif base is not None:
            raise _of_base(f"{source.name} is no adapter, and only these have one; leave it out")
        elif source.is_dir() and (family := families.find(source)) is not None:
            _refuse(asked, "an image model")
            facts = import_images(source, output, family, report)
            check_images(output, family, facts)
        elif source.is_dir() and is_embedding(source):
            _refuse(asked, "an embedding model")
            facts = import_encoder(source, output, report)
            check_encoder(output, facts)
        elif source.is_dir():
            facts = import_directory(source, output, report, asked)
            check_language_model(facts, from_gguf=False)
        elif is_gguf(source):
            facts = import_gguf(source, output, report, asked)
            check_language_model(facts, from_gguf=True)
        else:
            raise InvalidRequest(
                f"{source.name} is neither a .gguf file nor a model directory; give one of these"
            )
        say("done", facts=facts, files=inventory(output, report))
    except OSError as error:  # Not there, not readable, disk full: the sentence names the file.
        raise InvalidRequest(f"the import failed: {error}") from error


def _of_base(rule: str) -> InvalidRequest:
    return InvalidRequest(violations=[FieldViolation("base", rule)])


def _refuse(asked: Quantize, what: str) -> None:
    if asked.value != "stored":
        raise InvalidRequest(
            f"{what} is not quantised at its import; leave the option out",
            violations=[FieldViolation("quantization", "only language models are quantised")],
        )


if __name__ == "__main__":
    sys.exit(main())
