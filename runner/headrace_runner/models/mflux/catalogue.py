"""Which of mflux's models can be served, and what each takes.

mflux ignores what a model cannot honour (guidance of a distilled model, a negative prompt of
FLUX.1), so that its signatures do not tell: the table below is made from its sources, version
0.24.0. Models that need an input image, a mask or a control image for every drawing are not in it,
nor are those that want their prompt as JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from headrace.types import ImageTraits

_STRENGTH = 0.4
"""mflux's own default."""
_REFERENCES = 4
"""As many as FLUX.2 klein was trained on."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """A class of mflux. Names are "module:Class", the module below `mflux.models`."""

    name: str
    """What a manifest calls it."""
    model: str
    latents: str
    """Brings latents into the form that the autoencoder decodes."""
    encoder: str = ""
    """Method that encodes prompts. "": the model keeps them in its `prompt_cache`."""
    adapters: str = ""
    """Where LoRA layers go. "": it takes none."""
    takes_strength: bool = False
    """Whether it starts from an input image, by strength."""
    guided_above_one: bool = False
    """Whether it takes any guidance up to 1 for 1, which is none."""
    references: int = 0
    """Input images that it looks at while it draws."""
    initializer: str = ""
    """Module that makes the components, where their shapes may be given."""
    shaped: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Their classes in that module, by component."""
    editing: Architecture | None = None
    """The class that takes the same weights and looks at reference images."""

    def seen(self, references: bool) -> Architecture:
        """The class to draw with: the one that looks at `references`, if it is to.

        Raises LookupError where there is none that does.
        """
        if not references:
            return self
        if self.editing is None:
            raise LookupError(self.name)
        return self.editing


@dataclass(frozen=True, slots=True)
class Base:
    """A model that mflux knows by name, and what it draws with where a request does not say."""

    architecture: Architecture
    steps: int
    guidance: float | None = None
    """None: it was trained to do without, or ignores it."""
    negative_prompt: bool = False
    blank: str | None = None
    """Negative prompt that stands for none."""

    def traits(self, references: bool = False) -> ImageTraits:
        """What the model takes, `references` instead of a strength where it is to."""
        architecture = self.architecture.seen(references)
        return ImageTraits(
            width=1024,
            height=1024,
            size_step=16,
            min_size=64,
            max_size=2048,
            steps=self.steps,
            max_steps=100,
            guidance=self.guidance,
            negative_prompt=self.negative_prompt,
            max_input_images=architecture.references or int(architecture.takes_strength),
            strength=_STRENGTH if architecture.takes_strength else None,
            max_batch=1,
        )


_FLUX1 = Architecture(
    "flux1",
    "flux.variants.txt2img.flux:Flux1",
    "flux.latent_creator.flux_latent_creator:FluxLatentCreator",
    adapters="flux.weights.flux_lora_mapping:FluxLoRAMapping",
    takes_strength=True,
)
_FLUX2_EDIT = Architecture(
    "flux2-klein",
    "flux2.variants.edit.flux2_klein_edit:Flux2KleinEdit",
    "flux2.latent_creator.flux2_latent_creator:Flux2LatentCreator",
    encoder="_encode_prompt_pair",
    guided_above_one=True,
    adapters="flux2.weights.flux2_lora_mapping:Flux2LoRAMapping",
    references=_REFERENCES,
    initializer="flux2.flux2_initializer",
    shaped={"transformer": "Flux2Transformer", "text_encoder": "Qwen3TextEncoder"},
)
_FLUX2 = replace(
    _FLUX2_EDIT,
    model="flux2.variants.txt2img.flux2_klein:Flux2Klein",
    takes_strength=True,
    references=0,
    editing=_FLUX2_EDIT,
)
_FLUX3 = Architecture(
    "flux3-klein",
    "flux3.variants.txt2img.flux3_klein:Flux3Klein",
    "flux3.latent_creator.flux3_latent_creator:Flux3LatentCreator",
    encoder="_encode_prompt",
    adapters="flux3.weights.flux3_lora_mapping:Flux3LoRAMapping",
)
_Z_IMAGE = Architecture(
    "z-image",
    "z_image.variants.z_image:ZImage",
    "z_image.latent_creator.z_image_latent_creator:ZImageLatentCreator",
    encoder="_encode_prompts",
    guided_above_one=True,
    adapters="z_image.weights.z_image_lora_mapping:ZImageLoRAMapping",
    takes_strength=True,
    initializer="z_image.z_image_initializer",
    shaped={"transformer": "ZImageTransformer", "text_encoder": "TextEncoder"},
)
_QWEN = Architecture(
    "qwen-image",
    "qwen.variants.txt2img.qwen_image:QwenImage",
    "qwen.latent_creator.qwen_latent_creator:QwenLatentCreator",
    adapters="qwen.weights.qwen_lora_mapping:QwenLoRAMapping",
    takes_strength=True,
)
_QWEN21 = Architecture(
    "qwen-image-2.1",
    "qwen21.variants.txt2img.qwen_image_21:QwenImage21",
    "qwen21.latent_creator.qwen21_latent_creator:Qwen21LatentCreator",
    encoder="_encode_prompt",
    guided_above_one=True,
    adapters="qwen21.weights.qwen21_lora_mapping:Qwen21LoRAMapping",
    takes_strength=True,
)
_ERNIE = Architecture(
    "ernie-image",
    "ernie_image.variants.txt2img.ernie_image:ErnieImage",
    "ernie_image.latent_creator.ernie_latent_creator:ErnieLatentCreator",
    encoder="_encode_prompts",
    guided_above_one=True,
    adapters="ernie_image.weights.ernie_lora_mapping:ErnieLoRAMapping",
    takes_strength=True,
)
_ANIMA = Architecture(
    "anima",
    "anima.variants.txt2img.anima:Anima",
    "anima.latent_creator.anima_latent_creator:AnimaLatentCreator",
    encoder="_encode_prompt",
    adapters="anima.weights.anima_lora_mapping:AnimaLoRAMapping",
)
_MOSS = Architecture(
    "moss-image",
    "moss_image.variants.txt2img.moss_image:MOSSImage",
    "moss_image.latent_creator.moss_image_latent_creator:MOSSImageLatentCreator",
    encoder="_encode_prompt",
    adapters="moss_image.weights.moss_image_lora_mapping:MOSSImageLoRAMapping",
)

BASES: Mapping[str, Base] = MappingProxyType(
    {
        "schnell": Base(_FLUX1, 4),
        "dev": Base(_FLUX1, 25, 3.5),
        "krea-dev": Base(_FLUX1, 25, 3.5),
        "flux2-klein-4b": Base(_FLUX2, 4),
        "flux2-klein-9b": Base(_FLUX2, 4),
        "flux2-klein-9b-kv": Base(_FLUX2, 4),
        "flux2-klein-base-4b": Base(_FLUX2, 50, 4.0),
        "flux2-klein-base-9b": Base(_FLUX2, 50, 4.0),
        "flux3-image-klein": Base(_FLUX3, 16),
        "flux3-image-klein-base": Base(_FLUX3, 50, 3.5),
        "z-image-turbo": Base(_Z_IMAGE, 9),
        "z-image": Base(_Z_IMAGE, 50, 4.0, negative_prompt=True),
        "qwen-image": Base(_QWEN, 20, 4.0, negative_prompt=True, blank=" "),
        # Without a negative prompt it takes no guidance, whatever is asked for.
        "qwen-image-2.1": Base(_QWEN21, 40, 1.0, negative_prompt=True, blank=" "),
        "ernie-image-turbo": Base(_ERNIE, 8),
        "ernie-image": Base(_ERNIE, 50, 4.0, negative_prompt=True),
        "anima-turbo": Base(_ANIMA, 10),
        "anima-aesthetic": Base(_ANIMA, 30, 4.0, negative_prompt=True),
        "anima-base": Base(_ANIMA, 30, 4.0, negative_prompt=True),
        "moss-image-sft": Base(_MOSS, 50, 3.0, negative_prompt=True),
        "moss-image-base": Base(_MOSS, 50, 3.0, negative_prompt=True),
    }
)
"""By the names that mflux gives them, its keys of `AVAILABLE_MODELS`."""
