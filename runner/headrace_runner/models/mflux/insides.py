"""What Headrace uses of mflux's insides.

mflux is pinned; see constraints.txt. It is imported late: that takes a second, and an extra
installs it. Nothing here reaches for a network.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx.utils import tree_flatten

from headrace.errors import UnsupportedModel
from headrace_runner.models.device import on_cpu

_log = logging.getLogger(__name__)

VERSION = "0.24.0"
INSTALL = "pip install 'headrace[image]', and on Linux pip install --no-deps mflux==" + VERSION

Shapes = dict[str, tuple[int, ...]]
"""Of a component's arrays, by name."""


def resolve(name: str) -> Any:
    """The object that "module:Class" names, below `mflux.models`.

    Raises UnsupportedModel where mflux, or what it needs, is not installed.
    """
    return imported(f"mflux.models.{name}")


def imported(name: str) -> Any:
    """What "module:attribute" names, or the module. Raises UnsupportedModel, as `resolve` does."""
    module, _, attribute = name.partition(":")
    try:
        _prepare()
        found = importlib.import_module(module)
    except ImportError as error:
        raise UnsupportedModel(
            f"models for images need mflux {VERSION}, and {error.name or 'it'} is not installed:"
            f" {INSTALL}",
            architecture="mflux",
        ) from error
    return getattr(found, attribute) if attribute else found


@functools.cache
def _prepare() -> None:
    """Switches off the hub, and the progress bars that would be written to stderr."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    constants = importlib.import_module("huggingface_hub.constants")
    constants.HF_HUB_OFFLINE = True  # type: ignore[attr-defined] # Read when it was imported.
    config = importlib.import_module("mflux.models.common.config.config")
    config.tqdm = functools.partial(config.tqdm, disable=True)  # type: ignore[attr-defined]


def model_config(base: str) -> Any:
    """mflux's own description of the model `base`."""
    return resolve("common.config.model_config:AVAILABLE_MODELS")[base]


@contextlib.contextmanager
def computing(dtype: mx.Dtype | None) -> Iterator[None]:
    """mflux computes in `dtype` within; None: in its own, bfloat16. One model at a time.

    On a CPU nothing is compiled: mflux compiles its step anew for every image, and MLX has the C++
    compiler do it, which takes longer than it saves (measured: 11 to 23 s the first time, and
    nothing of note gained). What comes out is the same, to the bit.
    """
    config = resolve("common.config.model_config:ModelConfig")
    own = config.precision
    interprets = on_cpu()
    config.precision = dtype or own
    if interprets:
        mx.disable_compile()
    try:
        yield
    finally:
        config.precision = own
        if interprets and "MLX_DISABLE_COMPILE" not in os.environ:
            mx.enable_compile()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What mflux prints within goes to the log."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            yield
    finally:
        for line in said.getvalue().splitlines():
            _log.debug("mflux: %s", line)


@contextlib.contextmanager
def shaped(
    initializer: str, classes: Mapping[str, str], shapes: Mapping[str, Mapping[str, Any]]
) -> Iterator[None]:
    """Components made within have `shapes` instead of those that mflux has written down."""
    with contextlib.ExitStack() as stack:
        for component, arguments in shapes.items():
            module = resolve(initializer)
            made = getattr(module, classes[component])
            # mflux passes some of the same arguments itself: these come last.
            stack.enter_context(
                _replaced(
                    module,
                    classes[component],
                    lambda _made=made, _own=arguments, **preset: _made(**{**preset, **_own}),
                )
            )
        yield


Check = Callable[[str, Shapes, Shapes], None]
"""Gets a component's name, the shapes it was made with, and those that are stored."""


@contextlib.contextmanager
def checked(check: Check) -> Iterator[None]:
    """Calls `check` for each component before it takes its weights: mflux takes what it finds."""
    applier = resolve("common.weights.loading.weight_applier:WeightApplier")
    apply = applier.apply_and_quantize

    def checking(*, weights: Any, models: Mapping[str, Any], **rest: Any) -> Any:
        for name, module in models.items():
            stored = weights.components.get(name)
            if stored is not None:
                check(name, _shapes(module.parameters()), _shapes(stored))
        return apply(weights=weights, models=models, **rest)

    with _replaced(applier, "apply_and_quantize", staticmethod(checking)):
        yield


def _shapes(tree: Any) -> Shapes:
    return {name: array.shape for name, array in arrays(tree).items()}


def arrays(tree: Any) -> dict[str, mx.array]:
    """The arrays in nested lists, tuples and dictionaries, by where they are."""
    leaves: Any = tree_flatten(tree)
    return {name: leaf for name, leaf in leaves if isinstance(leaf, mx.array)}


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    own = vars(owner)[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, own)


def seen_as(model: Module, name: str) -> Any:
    """The same model through another class of mflux that takes the same components."""
    other = resolve(name)
    view = other.__new__(other)
    view.__dict__.update(vars(model))
    dict.update(view, model)  # A module is a dict, whose own `update` takes weights alone.
    return view


def attach(transformer: Any, mapping: str, path: str, scale: float) -> None:
    """Puts the adapter in the file at `path` around layers of `transformer`.

    Raises ValueError where it does not fit; some layers may have it then.
    """
    loader = resolve("common.lora.mapping.lora_loader:LoRALoader")
    targets = resolve(mapping).get_mapping()
    with quiet():
        # Baking adapters in would lose the weights they change.
        loader.load_and_apply_lora(targets, transformer, [path], [scale], bake_lora=False)


def adapted(transformer: Any) -> dict[str, Module]:
    """The layers that adapters lie around, by path."""
    lora = resolve("common.lora.layer.linear_lora_layer:LoRALinear")
    lokr = resolve("common.lora.layer.linear_lokr_layer:LoKrLinear")
    fused = resolve("common.lora.layer.fused_linear_lora_layer:FusedLoRALinear")
    found: dict[str, Module] = {}
    for path, module in transformer.named_modules():
        if isinstance(module, fused):
            found[path] = module.base_linear
        elif isinstance(module, lora | lokr):
            found[path] = module.linear
    # Several adapters around one layer lie within one another; the outermost goes.
    return {
        path: layer
        for path, layer in found.items()
        if not any(path.startswith(f"{other}.") for other in found)
    }


def decoded(model: Any, latents: str, now: mx.array, width: int, height: int) -> Any:
    """The image that latents stand for, [height, width, 3], as in mflux's `StepwiseHandler`."""
    unpacked = resolve(latents).unpack_latents(latents=now, height=height, width=width)
    vae = model.vae
    packed = hasattr(vae, "decode_packed_latents") and unpacked.shape[1] > getattr(
        vae, "latent_channels", 32
    )
    image = vae.decode_packed_latents(unpacked) if packed else vae.decode(unpacked)
    return imported("mflux.utils.image_util:ImageUtil").to_pil(image)
