"""What an image was made with, as the text that its file carries. Pure.

The form is the one that AUTOMATIC1111's web UI writes and most viewers read: the prompt, the
negative prompt, and one line of settings.
https://github.com/AUTOMATIC1111/stable-diffusion-webui/blob/master/modules/infotext_utils.py
"""

from __future__ import annotations

import json

from headrace_runner.models.pipeline import Drawing


def parameters(drawing: Drawing, model: str) -> str:
    """The text for one image of the model called `model`."""
    settings = {"Steps": str(drawing.steps)}
    if drawing.guidance is not None:
        settings["CFG scale"] = _number(drawing.guidance)
    settings["Seed"] = str(drawing.seed)
    settings["Size"] = f"{drawing.width}x{drawing.height}"
    settings["Model"] = model
    if drawing.strength is not None and drawing.input_images:
        # Theirs says how much is made anew, ours how much is kept.
        settings["Denoising strength"] = _number(1 - drawing.strength)
    if drawing.loras:
        settings["Loras"] = " ".join(f"{name}:{_number(scale)}" for name, scale in drawing.loras)
    lines = [drawing.prompt]
    if drawing.negative_prompt:
        lines.append(f"Negative prompt: {drawing.negative_prompt}")
    lines.append(", ".join(f"{key}: {_quoted(value)}" for key, value in settings.items()))
    return "\n".join(lines)


def _number(value: float) -> str:
    """The contract's floats have 24 bits: 0.1 is to be read as it was written."""
    return f"{value:.6g}"


def _quoted(value: str) -> str:
    special = any(sign in value for sign in ',:"\n')
    return json.dumps(value, ensure_ascii=False) if special else value
