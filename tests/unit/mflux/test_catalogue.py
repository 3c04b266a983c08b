"""The table of models against mflux's own tables and signatures."""

import inspect

import pytest

from headrace_runner.models.mflux import insides
from headrace_runner.models.mflux.catalogue import BASES, Architecture, Base

pytestmark = pytest.mark.usefixtures("needs_mflux")

ARCHITECTURES = {base.architecture.model: base.architecture for base in BASES.values()}
ARCHITECTURES["edit"] = BASES["flux2-klein-4b"].architecture.seen(references=True)


@pytest.mark.parametrize(
    "architecture", ARCHITECTURES.values(), ids=lambda a: a.model.split(":")[1]
)
def test_what_is_named_is_there(architecture: Architecture) -> None:
    model = insides.resolve(architecture.model)
    makes = inspect.signature(model).parameters
    draws = inspect.signature(model.generate_image).parameters
    assert {"model_path", "model_config", "quantize"} <= makes.keys()
    assert {"seed", "prompt", "num_inference_steps", "height", "width"} <= draws.keys()
    assert not architecture.takes_strength or {"image_path", "image_strength"} <= draws.keys()
    assert not architecture.references or "image_paths" in draws
    assert not architecture.encoder or callable(getattr(model, architecture.encoder))
    assert ("lora_paths" in makes) == bool(architecture.adapters)
    assert callable(insides.resolve(architecture.latents).unpack_latents)
    if architecture.adapters:
        assert insides.resolve(architecture.adapters).get_mapping()
    for name in architecture.shaped.values():
        assert inspect.isclass(getattr(insides.resolve(architecture.initializer), name))


@pytest.mark.parametrize(("name", "base"), BASES.items(), ids=BASES)
def test_each_is_known_to_mflux(name: str, base: Base) -> None:
    config = insides.model_config(name)
    draws = inspect.signature(insides.resolve(base.architecture.model).generate_image).parameters
    steps = insides.imported("mflux.cli.defaults.defaults:MODEL_INFERENCE_STEPS")
    assert base.steps == steps[name]
    assert base.guidance is None or "guidance" in draws
    # What mflux says it does not take is not taken; of some it does not say.
    assert base.guidance is None or config.supports_guidance is not False
    assert not base.negative_prompt or "negative_prompt" in draws
    assert not base.blank or base.negative_prompt


def test_another_class_for_reference_images_is_flux2s_alone() -> None:
    with pytest.raises(LookupError):
        BASES["z-image"].architecture.seen(references=True)
