"""Taking over adapters: both forms come to the same, and what does not fit is told by name."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.nn.layers.base import Module

from headrace.errors import HeadraceError, InvalidRequest, ModelCorrupt, UnsupportedModel
from headrace_runner.convert import adapters as adapters_module
from headrace_runner.convert.__main__ import main
from headrace_runner.convert.adapters import import_adapter, is_adapter
from headrace_runner.convert.gguf_import import import_gguf
from headrace_runner.models.adapters import CONFIG, WEIGHTS
from headrace_runner.models.insides import load_lazily
from tests.adapters import ATTENTION, EVERYTHING, make, of_directory, with_adapter
from tests.adapters import write_mlx as as_mlx
from tests.adapters import write_peft as as_peft
from tests.unit.engine.tiny import tiny_model

PEFT = "adapter_model.safetensors"


def silent(phase: str, done: int, total: int) -> None:
    pass


@pytest.fixture(scope="module")
def base(tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of two layers, its matrices quantised."""
    directory = tmp_path_factory.mktemp("base")
    import_gguf(tiny_gguf, directory, silent)
    return directory


def take(source: Path, base: Path) -> tuple[dict[str, Any], Path]:
    output = source.parent / "out"
    output.mkdir()
    return import_adapter(source, base, output, silent), output


def files_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def logits(model: Any) -> mx.array:
    found: mx.array = model(mx.array([[5, 9, 40, 7]]))[0]
    mx.eval(found)
    return found


def test_both_forms_come_to_the_same_files_and_mlx_lm_reads_them(
    base: Path, tmp_path: Path
) -> None:
    made = of_directory(base, seed=1, keys=EVERYTHING, layers=1)
    sources = as_mlx(tmp_path / "a" / "mlx", made), as_peft(tmp_path / "b" / "peft", made)
    (facts, stored), (others, other) = (take(source, base) for source in sources)
    assert files_of(stored) == files_of(other)
    assert facts == others
    assert facts["adapter"] == {"rank": 4, "layers": 1, "modules": sorted(EVERYTHING)}
    assert (facts["kind"], facts["architecture"]) == ("adapter", "llama")
    assert facts["parameters"] == sum(tensor.size for tensor in made.tensors.values())
    assert facts["quantization"] == "float32"
    trained, kept = (
        logits(with_adapter(load_lazily(base)[0], directory)) for directory in (sources[0], stored)
    )
    assert mx.array_equal(trained, kept)
    assert not mx.allclose(trained, logits(load_lazily(base)[0]), atol=0.1)


def test_layers_of_peft_may_have_ranks_and_alphas_of_their_own(base: Path, tmp_path: Path) -> None:
    made = of_directory(base, seed=2, rank=4, scale=2.0)
    own = "layers.1.self_attn.q_proj"
    for name in [name for name in made.tensors if f".{own}." in name]:
        whole = made.tensors[name]
        made.tensors[name] = whole[:, :2] if name.endswith("a") else whole[:2]
    source = as_peft(
        tmp_path / "peft",
        made,
        lora_alpha=8,
        rank_pattern={own: 2},
        alpha_pattern={own: 6},
        use_rslora=True,
    )
    facts, output = take(source, base)
    assert facts["adapter"]["rank"] == 4
    scale = json.loads((output / CONFIG).read_text())["lora_parameters"]["scale"]
    stored = mx.load(str(output / WEIGHTS))
    assert isinstance(stored, dict)
    for name, tensor in made.tensors.items():
        wanted = 8 / math.sqrt(4)
        if f".{own}." in name and name.endswith("b"):
            wanted = 6 / math.sqrt(2)
        factor = wanted / scale if name.endswith("b") else 1
        assert mx.allclose(stored[name], tensor * factor), name


def test_a_card_comes_along_with_its_licence(base: Path, tmp_path: Path) -> None:
    source = as_mlx(tmp_path / "mlx", of_directory(base, seed=1))
    (source / "README.md").write_text("---\nlicense: mit\n---\n")
    (source / "0000100_adapters.safetensors").write_bytes(b"of the training")
    facts, output = take(source, base)
    assert facts["license"] == "mit"
    assert sorted(files_of(output)) == ["README.md", CONFIG, WEIGHTS]


def test_an_adapter_is_known_by_its_configuration(base: Path, tmp_path: Path) -> None:
    source = as_mlx(tmp_path / "mlx", of_directory(base, seed=1))
    assert is_adapter(source, asked=False)
    assert not is_adapter(base, asked=True)
    # As some publish it: with the base's configuration beside it.
    (source / "config.json").write_text("{}")
    assert is_adapter(source, asked=True)
    assert not is_adapter(source, asked=False)


def edited(source: Path, edit: Callable[[dict[str, mx.array]], object]) -> Path:
    """With other tensors."""
    file = source / (WEIGHTS if (source / WEIGHTS).exists() else PEFT)
    tensors = mx.load(str(file))
    assert isinstance(tensors, dict)
    edit(tensors)
    mx.eval(tensors)
    mx.save_safetensors(str(file), tensors)
    return source


def added(name: str, *shape: int) -> Callable[[dict[str, mx.array]], object]:
    return lambda tensors: tensors.update({name: mx.zeros(shape)})


Q = "model.layers.0.self_attn.q_proj"
T = f"base_model.model.{Q}"
REFUSED_MLX: list[tuple[str, type[HeadraceError], str, Callable[[Path], object]]] = [
    (
        "another base's layer",
        InvalidRequest,
        r"base: .*'model\.layers\.9\.self_attn\.q_proj\.lora_a' of adapters\.safetensors has no",
        lambda s: edited(s, added("model.layers.9.self_attn.q_proj.lora_a", 64, 4)),
    ),
    (
        "another width",
        InvalidRequest,
        r"base: .*q_proj' takes 64 numbers and gives 64 there, .* 32x4 and 4x64",
        lambda s: edited(s, added(f"{Q}.lora_a", 32, 4)),
    ),
    (
        "two ranks in one layer",
        InvalidRequest,
        r"matrices are 64x2 and 4x64",
        lambda s: edited(s, added(f"{Q}.lora_a", 64, 2)),
    ),
    (
        "embeddings",
        UnsupportedModel,
        r"'model\.embed_tokens' .*mlx_lm\.fuse",
        lambda s: edited(s, added("model.embed_tokens.lora_a", 320, 4)),
    ),
    (
        "whole weights",
        UnsupportedModel,
        r"changes .*q_proj' by .*q_proj\.weight'",
        lambda s: edited(s, added(f"{Q}.weight", 64, 64)),
    ),
    (
        "DoRA by its tensors",
        UnsupportedModel,
        r"DoRA",
        lambda s: edited(s, added(f"{Q}.m", 64)),
    ),
    (
        "half of a pair",
        ModelCorrupt,
        r"no tensor 'model\.layers\.0\.self_attn\.q_proj\.lora_b'",
        lambda s: edited(s, lambda tensors: tensors.pop(f"{Q}.lora_b")),
    ),
    (
        "no matrix",
        ModelCorrupt,
        r"q_proj\.lora_a' is no matrix",
        lambda s: edited(s, added(f"{Q}.lora_a", 64)),
    ),
    (
        "no numbers",
        ModelCorrupt,
        r"q_proj\.lora_a' has values that are no numbers",
        lambda s: edited(s, lambda ts: ts.update({f"{Q}.lora_a": mx.full((64, 4), math.nan)})),
    ),
    (
        "whole numbers",
        ModelCorrupt,
        r"q_proj\.lora_a' is of type I32",
        lambda s: edited(s, lambda ts: ts.update({f"{Q}.lora_a": mx.zeros((64, 4), mx.int32)})),
    ),
    ("nothing", ModelCorrupt, r"holds no tensors", lambda s: edited(s, lambda ts: ts.clear())),
    (
        "cut off",
        ModelCorrupt,
        r"adapters\.safetensors is damaged: it is truncated",
        lambda s: (s / WEIGHTS).write_bytes((s / WEIGHTS).read_bytes()[:-8]),
    ),
    ("no weights", ModelCorrupt, r"neither", lambda s: (s / WEIGHTS).unlink()),
    (
        "a pickle",
        UnsupportedModel,
        r"pickles",
        lambda s: (s / WEIGHTS).rename(s / "adapter_model.bin"),
    ),
    (
        "no JSON",
        ModelCorrupt,
        r"adapter_config.*is no JSON \(.*get the model again",
        lambda s: (s / CONFIG).write_text("{"),
    ),
    ("no scale", ModelCorrupt, r"lora_parameters\.scale", lambda s: (s / CONFIG).write_text("{}")),
]


@pytest.mark.parametrize(
    ("error", "message", "spoil"),
    [case[1:] for case in REFUSED_MLX],
    ids=[case[0] for case in REFUSED_MLX],
)
def test_what_cannot_be_added_is_refused(
    base: Path,
    tmp_path: Path,
    error: type[HeadraceError],
    message: str,
    spoil: Callable[[Path], object],
) -> None:
    source = as_mlx(tmp_path / "mlx", of_directory(base, seed=1, keys=ATTENTION))
    spoil(source)
    with pytest.raises(error, match=message):
        take(source, base)


@pytest.mark.parametrize("kind", ["dora", "full"])
def test_other_kinds_of_training_are_refused(base: Path, tmp_path: Path, kind: str) -> None:
    source = as_mlx(tmp_path / "mlx", of_directory(base, seed=1), fine_tune_type=kind)
    with pytest.raises(UnsupportedModel, match=f"fine_tune_type '{kind}'.*fuse"):
        take(source, base)


REFUSED_PEFT: list[tuple[type[HeadraceError], str, dict[str, Any]]] = [
    (UnsupportedModel, "peft_type 'IA3'", {"peft_type": "IA3"}),
    (UnsupportedModel, "use_dora: .*DoRA", {"use_dora": True}),
    (UnsupportedModel, "fan_in_fan_out", {"fan_in_fan_out": True}),
    (UnsupportedModel, "bias 'all'", {"bias": "all"}),
    (UnsupportedModel, "modules_to_save: .*merge_and_unload", {"modules_to_save": ["lm_head"]}),
    (UnsupportedModel, "target_parameters", {"target_parameters": ["experts.down_proj"]}),
    (UnsupportedModel, "'pissa_niter_4': .*base itself", {"init_lora_weights": "pissa_niter_4"}),
    (UnsupportedModel, r"expression '\.\*q_proj'", {"rank_pattern": {".*q_proj": 4}}),
    (ModelCorrupt, "no 'r' that is a positive number", {"r": 0}),
    (ModelCorrupt, "no 'lora_alpha'", {"lora_alpha": None}),
    (ModelCorrupt, r"rank 8 for 'model\.layers\.\d\S+', and .* has 4", {"r": 8}),
]


@pytest.mark.parametrize(
    ("error", "message", "config"), REFUSED_PEFT, ids=[str(case[2]) for case in REFUSED_PEFT]
)
def test_options_of_peft_that_mean_something_else_are_refused(
    base: Path, tmp_path: Path, error: type[HeadraceError], message: str, config: dict[str, Any]
) -> None:
    source = as_peft(tmp_path / "peft", of_directory(base, seed=1), **config)
    with pytest.raises(error, match=message):
        take(source, base)


@pytest.mark.parametrize(
    ("message", "name", "shape"),
    [
        ("has 'base_model.model.lm_head.weight': .*whole weights", "lm_head.weight", (320, 64)),
        ("DoRA", f"{Q}.lora_magnitude_vector.weight", (64,)),
        ("lora_embedding_A", "model.embed_tokens.lora_embedding_A", (4, 320)),
    ],
)
def test_tensors_of_peft_that_are_no_pair_are_refused(
    base: Path, tmp_path: Path, message: str, name: str, shape: tuple[int, ...]
) -> None:
    source = as_peft(tmp_path / "peft", of_directory(base, seed=1))
    edited(source, added(f"base_model.model.{name}", *shape))
    with pytest.raises(UnsupportedModel, match=message):
        take(source, base)


@pytest.mark.parametrize(
    ("field", "said", "options"),
    [
        ("base", "adapter (LoRA); name the model that it belongs to", ()),
        ("quantization", "an adapter is not quantised", ("--quantize", "4")),
    ],
)
def test_an_adapter_has_a_base_and_is_not_quantised(
    base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    field: str,
    said: str,
    options: tuple[str, ...],
) -> None:
    source = as_mlx(tmp_path / "mlx", of_directory(base, seed=1))
    assert main(["--source", str(source), "--output", str(tmp_path), *options]) == 1
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (last["reason"], last["field"]) == ("INVALID_REQUEST", field)
    assert said in last["message"]


def test_a_model_has_no_base(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--source", str(base), "--output", str(tmp_path), "--base", str(base)]) == 1
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["field"] == "base"
    assert "is no adapter" in last["message"]


def test_names_of_a_wrapped_model_lead_to_its_layers(tmp_path: Path) -> None:
    """Classes may hold their text model under another name than Hugging Face's does."""
    from headrace_runner.convert.peft import read_peft
    from headrace_runner.models.adapters import places_in

    class Wrapped(Module):
        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.language_model = tiny_model()

        @property
        def layers(self) -> Any:
            return self.language_model.layers

    made = make(tiny_model(), seed=3)
    source = as_peft(tmp_path / "peft", made)
    places = places_in(Wrapped())
    found, _ = read_peft(source, places)
    assert found.keys() == {f"language_model.{name}" for name in made.tensors}
    # Those of a part that sees are none of them, though they are called alike.
    edited(source, _moved("model.layers", "vision_tower.layers"))
    found, _ = read_peft(source, places)
    assert {name.partition(".")[0] for name in found} == {"vision_tower"}
    # And no layer gets two.
    edited(source, _moved("vision_tower.layers", "model.layers"))
    edited(
        source,
        lambda tensors: tensors.update(
            {
                name.replace("model.layers", "model.text_model.layers"): tensor
                for name, tensor in tensors.items()
            }
        ),
    )
    with pytest.raises(ModelCorrupt, match=r"another tensor belong to the same layer"):
        read_peft(source, places)


def _moved(old: str, new: str) -> Callable[[dict[str, mx.array]], object]:
    def move(tensors: dict[str, mx.array]) -> None:
        for name in list(tensors):
            tensors[name.replace(f".{old}", f".{new}")] = tensors.pop(name)

    return move


class Turned(Module):
    """Sees the tokens of a pass first, and then its inputs."""

    def __init__(self, inner: Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.inner = inner

    def __call__(self, x: mx.array) -> mx.array:
        turned: mx.array = self.inner(x.swapaxes(0, 1)).swapaxes(0, 1)
        return turned


def test_a_layer_that_mixes_the_inputs_of_a_pass_is_refused(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(directory: Path) -> tuple[Any, dict[str, Any]]:
        model, config = load_lazily(directory)
        model.layers[1].mlp = Turned(model.layers[1].mlp)
        return model, config

    monkeypatch.setattr(adapters_module, "load_lazily", load)
    made = make(load(base)[0], seed=1, keys=("mlp.inner.up_proj",))
    with pytest.raises(UnsupportedModel, match=r"1\.mlp\.inner\.up_proj mixes .*`mlx_lm\.fuse`"):
        take(as_mlx(tmp_path / "mlx", made), base)
