"""Adapters in one batch: each row's output is that of mlx-lm's own model with its adapter alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.nn.layers.base import Module
from mlx.nn.layers.quantized import quantize

from headrace.errors import HeadraceError, InsufficientMemory, ModelCorrupt, UnsupportedParameter
from headrace_runner.engine.stream import EventStream
from headrace_runner.engine.text import adapters as adapters_module
from headrace_runner.engine.text import layouts as layouts_module
from headrace_runner.engine.text import stream as stream_module
from headrace_runner.engine.text.adapters import AdapterRef
from headrace_runner.engine.text.batch import TextBatch
from headrace_runner.engine.text.engine import TextEngine
from headrace_runner.engine.text.logprobs import Logprobs
from headrace_runner.engine.text.request import (
    Delta,
    Event,
    Finished,
    Scored,
    ScoringRequest,
    Started,
)
from headrace_runner.engine.text.rows import Drawn, NewRow
from headrace_runner.engine.text.sampling import SamplingParams
from headrace_runner.engine.text.scoring import Scorer
from headrace_runner.models import lora as lora_module
from headrace_runner.models.adapters import read_shapes
from headrace_runner.models.load import LoadedModel
from headrace_runner.models.lora import Mixture
from headrace_runner.models.tokenizer import Tokenizer
from tests.adapters import by_hand, make, with_adapter, write_mlx
from tests.unit.engine.engines import (
    ENDLESS,
    NO_MEMORY,
    a_step_ahead,
    first_token,
    read,
    request,
    running,
    tokens_of,
)
from tests.unit.engine.test_drafts import REPEATED, Guessing
from tests.unit.engine.tiny import GREEDY, alone, loader, tiny_model

KEYS = {
    "a": ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj", "conv.in_proj", "mlp.gate"),
    "b": ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj", "feed_forward.w1", "mlp.gate"),
    "c": ("self_attn.q_proj", "self_attn.out_proj", "mlp.down_proj", "feed_forward.w1"),
}
KEYS = {name: (*keys, "mixer.x_proj", "mixer.dt_proj") for name, keys in KEYS.items()}
"""Some layers are changed by one of them, some by several."""
SAMPLED = SamplingParams(seed=5, temperature=0.7, top_p=0.9)
PROMPTS = ([1, 2, 3], [1, 2, 3, 4] * 9, [7], [200, 3] * 4)
Load = Callable[[], LoadedModel]


def write(folder: Path, model: Any) -> dict[str, AdapterRef]:
    """Three adapters of a model, of different layers; the ranks of two are the same."""
    refs = {}
    for seed, (name, keys) in enumerate(KEYS.items()):
        rank, layers = (4, 4, 7)[seed], 2 if seed else 1
        made = make(model, seed=seed, rank=rank, keys=keys, layers=layers)
        refs[name] = AdapterRef(name, name, write_mlx(folder / name, made))
    return refs


@pytest.fixture(scope="module")
def refs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, AdapterRef]:
    """Adapters of the tiny llama."""
    return write(tmp_path_factory.mktemp("adapters"), tiny_model())


@pytest.fixture(scope="module")
def adapted(refs: dict[str, AdapterRef]) -> dict[str | None, Any]:
    """The tiny llama with each of them put in by mlx-lm, and without."""
    found: dict[str | None, Any] = {
        n: with_adapter(tiny_model(), r.directory) for n, r in refs.items()
    }
    return found | {None: tiny_model()}


def quantised() -> Any:
    model = tiny_model()
    quantize(model, group_size=32, bits=4)
    mx.eval(model.parameters())
    return model


@pytest.mark.parametrize("ahead", [False, True], ids=["read at once", "a step ahead"])
@pytest.mark.parametrize(
    "build",
    [
        tiny_model,
        *(partial(tiny_model, name) for name in ("gemma3_text", "lfm2", "olmoe", "mamba")),
        quantised,
    ],
    ids=["llama", "gemma3_text", "lfm2", "olmoe", "mamba", "quantised"],
)
async def test_each_row_of_a_mixed_batch_has_its_own_adapter(
    tokenizer: Tokenizer, tmp_path: Path, build: Callable[[], Any], ahead: bool
) -> None:
    refs = write(tmp_path, build())
    load = a_step_ahead(loader(build)) if ahead else loader(build)
    names = [None, "a", "b", "c"]
    asked = [(name, prompt) for prompt in PROMPTS for name in names]
    async with running(tokenizer, load, max_rows=16) as engine:
        streams = [
            engine.submit(request(prompt, 12, adapter=refs.get(name or "")))
            for name, prompt in asked
        ]
        found = [tokens_of(events) for events in await asyncio.gather(*map(read, streams))]
        assert engine.stats.adapters_bytes > 0
    models = {None: build()} | {n: with_adapter(build(), r.directory) for n, r in refs.items()}
    expected = [by_hand(models[name], prompt, 12) for name, prompt in asked]
    assert found == expected
    # Each adapter shows.
    assert len({str(expected[place :: len(names)]) for place in range(len(names))}) == len(names)


async def test_log_probabilities_are_those_of_the_adapted_model(
    tokenizer: Tokenizer, refs: dict[str, AdapterRef], adapted: dict[str | None, Any]
) -> None:
    async with running(tokenizer, loader()) as engine:
        streams = {
            name: engine.submit(request([5, 6, 7], 8, top_logprobs=2, adapter=refs.get(name or "")))
            for name in adapted
        }
        for name, stream in streams.items():
            events = await read(stream)
            tokens = [5, 6, 7, *tokens_of(events)]
            found: list[Logprobs] = [
                each for event in events if isinstance(event, Delta) for each in event.logprobs
            ]
            logits = adapted[name](mx.array([tokens[:-1]]))[0, 2:]
            wanted = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
            for place, each in enumerate(found):
                own = wanted[place, tokens[3 + place]].item()
                assert each.token == pytest.approx(own, abs=1e-3)


async def test_a_row_goes_on_where_another_runner_was(
    tokenizer: Tokenizer, refs: dict[str, AdapterRef], adapted: dict[str | None, Any]
) -> None:
    whole = alone(adapted["b"], [1, 2, 3], SAMPLED, 20)
    async with running(tokenizer, loader()) as engine:
        beside = engine.submit(request([1, 2, 3], ENDLESS, adapter=refs["a"]))
        await first_token(beside)
        resumed = request(
            [1, 2, 3], 20, sampling=SAMPLED, adapter=refs["b"], resume=(tuple(whole[:9]),)
        )
        assert tokens_of(await read(engine.submit(resumed))) == whole[9:]
        beside.close()


def cached(events: list[Event]) -> int:
    (started,) = (event for event in events if isinstance(event, Started))
    return started.cached_tokens


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text"])
async def test_what_is_remembered_is_for_those_of_the_same_adapter(
    tokenizer: Tokenizer, tmp_path: Path, architecture: str
) -> None:
    refs = write(tmp_path, tiny_model(architecture))
    prompt = [1, 2, 3, 4, 5] * 6
    async with running(
        tokenizer, loader(lambda: tiny_model(architecture)), prefix_bytes=1 << 24, adapters=1
    ) as engine:
        for name, length in ((None, 0), ("a", 0), ("b", 0), ("a", 29), (None, 29), ("b", 29)):
            asked = request(prompt, 6, adapter=refs.get(name or ""))
            events = await read(engine.submit(asked))
            assert cached(events) == length, name
            model = tiny_model(architecture)
            if name is not None:
                model = with_adapter(model, refs[name].directory)
            assert tokens_of(events) == by_hand(model, prompt, 6)


def test_guesses_change_no_token_of_an_adapter(
    refs: dict[str, AdapterRef], adapted: dict[str | None, Any]
) -> None:
    model, mixture = tiny_model(), Mixture()
    layout = layouts_module.choose_layout(model, on_cpu=True, prefix_bytes=0, mixture=mixture)
    adapters_module.Adapters(model, mixture, most=1, in_float32=True).hold(1, refs["a"])
    batch = Guessing(layout, prefill_chunk=16, ahead=False, drafts=True)
    batch.add(REPEATED, [NewRow(1, GREEDY, adapter="a")])
    drawn: list[Drawn] = []
    while len(drawn) < 40:
        drawn += batch.step()[1]
    assert [draw.token for draw in drawn][:40] == alone(adapted["a"], REPEATED, GREEDY, 40)


async def test_scores_are_those_of_the_adapted_model(
    tokenizer: Tokenizer, refs: dict[str, AdapterRef], adapted: dict[str | None, Any]
) -> None:
    prompt, continuations = [1, 2, 3], ((9, 8, 7), (4,), tuple(range(40)))
    async with running(tokenizer, loader()) as engine:
        beside = engine.submit(request([1, 2, 3], ENDLESS, adapter=refs["c"]))
        await first_token(beside)
        streams = {
            name: engine.submit(
                ScoringRequest("s", prompt, continuations, adapter=refs.get(name or ""))
            )
            for name in adapted
        }
        for name, stream in streams.items():
            (scored,) = (event for event in await read(stream) if isinstance(event, Scored))
            for given, score in zip(continuations, scored.scores, strict=True):
                tokens = mx.array([*prompt, *given])
                logits = adapted[name](tokens[None])[0, len(prompt) - 1 : -1]
                wanted = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
                own = mx.take_along_axis(wanted, tokens[len(prompt) :, None], axis=-1)[:, 0]
                found = [each.token for each in score.logprobs]
                assert found == pytest.approx(own.tolist(), abs=1e-3), name
        beside.close()


async def test_the_least_recently_used_one_goes_and_a_busy_one_never(
    tokenizer: Tokenizer, refs: dict[str, AdapterRef], adapted: dict[str | None, Any]
) -> None:
    async def answer(engine: TextEngine, name: str) -> None:
        events = await read(engine.submit(request([1, 2], 5, adapter=refs[name])))
        assert tokens_of(events) == by_hand(adapted[name], [1, 2], 5)

    async with running(tokenizer, loader(), adapters=2) as engine:
        for name, there in (("a", "a"), ("b", "ab"), ("a", "ab"), ("c", "ac"), ("b", "bc")):
            await answer(engine, name)
            assert engine.stats.adapters_bytes == size(refs[each] for each in there), name
        # Two are in use: a third one waits, and gets the place of the first that is not.
        busy = [engine.submit(request([1], ENDLESS, adapter=refs[name])) for name in "bc"]
        begun = [await some(stream, 1) for stream in busy]
        third = engine.submit(request([1, 2], 5, adapter=refs["a"]))
        later = [await some(stream, 20) for stream in busy]
        assert not await third.wait(0)
        assert (engine.running, engine.waiting) == (2, 1)
        for name, first, rest in zip("bc", begun, later, strict=True):
            assert first + rest == by_hand(adapted[name], [1], len(first + rest))
        busy[0].close()
        assert tokens_of(await read(third)) == by_hand(adapted["a"], [1, 2], 5)
        assert engine.stats.adapters_bytes == size([refs["a"], refs["c"]])
        busy[1].close()


async def some(stream: EventStream[Event], count: int) -> list[int]:
    """The next tokens of a stream, so many at least."""
    found: list[int] = []
    async for event in stream:
        found += event.token_ids if isinstance(event, Delta) else ()
        if len(found) >= count:
            break
    return found


def size(refs: Iterable[AdapterRef]) -> int:
    """Bytes of adapters in memory, in float32."""
    shapes = (found for ref in refs for found in read_shapes(ref.directory).values())
    return 4 * sum(each.a.elements + each.b.elements for each in shapes)


async def test_one_whose_reader_is_behind_keeps_nobody_from_its_place(
    tokenizer: Tokenizer,
    refs: dict[str, AdapterRef],
    adapted: dict[str | None, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stream_module, "BEHIND", 30)
    async with running(tokenizer, loader(), adapters=1) as engine:
        slow = engine.submit(request([1, 2], 100, adapter=refs["a"]))
        other = await read(engine.submit(request([1, 2], 10, adapter=refs["b"])))
        assert tokens_of(other) == by_hand(adapted["b"], [1, 2], 10)
        assert tokens_of(await read(slow)) == by_hand(adapted["a"], [1, 2], 100)


ROW = 2 * 2 * 2 * 16 * 4
"""Bytes of a token: keys and values, layers, heads, dimensions."""


async def test_they_take_of_what_requests_may_reserve(
    tokenizer: Tokenizer, refs: dict[str, AdapterRef]
) -> None:
    taken = size([refs["a"]])
    async with running(tokenizer, loader(), kv_bytes=2000 * ROW + taken // 2) as engine:
        await read(engine.submit(request([1, 2], 8, adapter=refs["a"])))
        assert engine.stats.adapters_bytes == taken
        # It is idle, and goes for two requests that fit without it alone.
        both = [engine.submit(request([1, 2], 998)) for _ in range(2)]
        for stream in both:
            await some(stream, 20)
        assert (engine.running, engine.waiting, engine.stats.adapters_bytes) == (2, 0, 0)
        for stream in both:
            stream.close()
        # One that is needed makes the second wait.
        first = engine.submit(request([1, 2], 998, adapter=refs["a"]))
        second = engine.submit(request([1, 2], 998))
        await some(first, 20)
        assert (engine.running, engine.waiting) == (1, 1)
        assert not await second.wait(0)
        first.close()
        await some(second, 20)
        second.close()


async def test_one_request_after_another_leaves_no_more_than_the_limit(
    tokenizer: Tokenizer, refs: dict[str, AdapterRef]
) -> None:
    # The last one is too large even alone, and computed as nothing could end to make it fit.
    limit = 9 * ROW + max(size([ref]) for ref in refs.values())
    async with running(tokenizer, loader(), kv_bytes=limit) as engine:
        for ref in refs.values():
            events = await read(engine.submit(request([1, 2], 8, adapter=ref)))
            assert isinstance(events[-1], Finished)
            assert engine.stats.adapters_bytes == size([ref])


def no_memory(*_: object) -> Any:
    raise RuntimeError(NO_MEMORY)


async def test_where_memory_is_short_idle_ones_go_and_one_request_ends(
    tokenizer: Tokenizer,
    refs: dict[str, AdapterRef],
    adapted: dict[str | None, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step, score = TextBatch.step, Scorer.step
    short = 0

    def fail(once: Callable[..., Any]) -> Callable[..., Any]:
        def call(mine: Any, *args: Any, **options: Any) -> Any:
            nonlocal short
            if short and (once is score or len(mine) == 2):
                short -= 1
                no_memory()
            return once(mine, *args, **options)

        return call

    async with running(tokenizer, loader()) as engine:
        for name in "ab":
            await read(engine.submit(request([1, 2], 5, adapter=refs[name])))
        assert engine.stats.adapters_bytes == size([refs["a"], refs["b"]])
        short = 1
        with monkeypatch.context() as patched:
            # Not even what would give memory back finds any.
            patched.setattr(lora_module, "_stacked", no_memory)
            patched.setattr(TextBatch, "step", fail(step))
            first = engine.submit(request([1, 2], 60, adapter=refs["b"]))
            error = await failure(engine.submit(request([3], ENDLESS)))
        assert isinstance(error, InsufficientMemory)
        assert tokens_of(await read(first)) == by_hand(adapted["b"], [1, 2], 60)
        # The next one finds the gaps closed, and what was given up is read anew.
        again = await read(engine.submit(request([1, 2], 5, adapter=refs["a"])))
        assert tokens_of(again) == by_hand(adapted["a"], [1, 2], 5)
        assert engine.stats.adapters_bytes == size([refs["a"], refs["b"]])
        short = 1
        with monkeypatch.context() as patched:
            patched.setattr(lora_module, "_stacked", no_memory)
            patched.setattr(Scorer, "step", fail(score))
            asked = ScoringRequest("s", [1], ((2,),))
            assert isinstance(await failure(engine.submit(asked)), InsufficientMemory)
        await read(engine.submit(request([1, 2], 2)))
        assert engine.stats.adapters_bytes == 0


@pytest.mark.parametrize("calls", range(4))
def test_one_that_is_given_up_or_added_in_part_is_never_used(
    refs: dict[str, AdapterRef],
    adapted: dict[str | None, Any],
    monkeypatch: pytest.MonkeyPatch,
    calls: int,
) -> None:
    model, mixture = tiny_model(), Mixture()
    held = adapters_module.Adapters(model, mixture, most=3, in_float32=True)
    stacked, left = lora_module._stacked, calls

    def fail(pairs: Any) -> Any:
        nonlocal left
        left -= 1
        return stacked(pairs) if left >= 0 else no_memory()

    def check(name: str) -> None:
        tokens = mx.array([[5, 6, 7], [1, 2, 3]])
        with mixture.of([(name, 1), (None, 1)]):
            found = model(tokens)
        wanted = mx.concatenate([adapted[name](tokens[:1]), adapted[None](tokens[1:])])
        assert mx.allclose(found, wanted, atol=1e-3), name

    held.hold(1, refs["a"])
    held.hold(2, refs["b"])
    held.free(2)
    with monkeypatch.context() as patched:
        patched.setattr(lora_module, "_stacked", fail)
        assert held.give_up_one()
        check("a")
        assert held.nbytes >= size([refs["a"]])
        with pytest.raises(RuntimeError, match="Unable to allocate"):
            held.hold(2, refs["b"])
        assert held.needs(refs["b"]) == size([refs["b"]])
        check("a")
    held.close_gaps()
    assert held.nbytes == size([refs["a"]])
    held.hold(2, refs["b"])
    for name in "ab":
        check(name)
    assert held.nbytes == size([refs["a"], refs["b"]])


def test_types_stay_as_they_are_stored(tmp_path: Path) -> None:
    model = tiny_model()
    held = adapters_module.Adapters(model, Mixture(), most=3, in_float32=False)
    for owner, kind in enumerate((mx.float16, mx.bfloat16)):
        made = make(model, seed=owner)
        tensors = {name: tensor.astype(kind) for name, tensor in made.tensors.items()}
        name = str(kind)
        made = replace(made, tensors=tensors)
        ref = AdapterRef(name, name, write_mlx(tmp_path / name, made))
        before, needed = held.nbytes, held.needs(ref)
        held.hold(owner, ref)
        assert held.nbytes - before == needed == size([ref]) // 2


class Turned(Module):
    """Sees the tokens of a pass first, and then its inputs."""

    def __init__(self, inner: Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.inner = inner

    def __call__(self, x: mx.array) -> mx.array:
        turned: mx.array = self.inner(x.swapaxes(0, 1))
        return turned.swapaxes(0, 1)


def turned() -> Any:
    model = tiny_model()
    model.layers[1].mlp = Turned(model.layers[1].mlp)
    return model


async def test_one_of_a_layer_that_mixes_inputs_ends_its_request_alone(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    made = make(turned(), seed=1, keys=("self_attn.q_proj", "mlp.inner.down_proj"))
    mixing = AdapterRef("mixing", "mixing", write_mlx(tmp_path / "mixing", made))
    async with running(tokenizer, loader(turned)) as engine:
        beside = engine.submit(request([1, 2], 30))
        await first_token(beside)
        error = await failure(engine.submit(request([1, 2], adapter=mixing)))
        assert isinstance(error, UnsupportedParameter)
        assert "mixing cannot be applied to single requests: model.layers.1.mlp" in error.message
        assert isinstance((await read(beside))[-1], Finished)
        events = await read(engine.submit(request([1, 2], 8)))
        assert tokens_of(events) == by_hand(tiny_model(), [1, 2], 8)


async def failure(stream: EventStream[Event]) -> HeadraceError:
    """What a stream that fails at once ends with."""
    with pytest.raises(HeadraceError) as caught:
        await read(stream)
    return caught.value


async def test_one_that_cannot_be_used_ends_its_request_alone(
    tokenizer: Tokenizer,
    refs: dict[str, AdapterRef],
    adapted: dict[str | None, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wide = make(tiny_model(hidden_size=128), seed=1, keys=("self_attn.q_proj",))
    misfit = AdapterRef("wide", "wide", write_mlx(tmp_path / "wide", wide))
    broken = AdapterRef("broken", "broken", write_mlx(tmp_path / "broken", wide))
    weights = broken.directory / "adapters.safetensors"
    weights.write_bytes(weights.read_bytes()[:-3])
    async with running(tokenizer, loader()) as engine:
        beside = engine.submit(request([1, 2], 60, adapter=refs["a"]))
        await first_token(beside)
        error = await failure(engine.submit(request([1], adapter=misfit)))
        assert isinstance(error, UnsupportedParameter)
        assert "wide does not fit this model: see its model.layers" in error.message
        gone = AdapterRef("gone", "gone", tmp_path / "gone")
        for ref in (broken, gone):
            error = await failure(engine.submit(request([1], adapter=ref)))
            assert isinstance(error, ModelCorrupt)
            assert error.metadata["file"] == "adapters.safetensors"
        asked = ScoringRequest("s", [1], ((2,),), adapter=gone)
        assert isinstance(await failure(engine.submit(asked)), ModelCorrupt)

        with monkeypatch.context() as patched:
            patched.setattr(adapters_module.Adapters, "_read", no_memory)
            error = await failure(engine.submit(request([1], adapter=refs["b"])))
        assert isinstance(error, InsufficientMemory)
        events = await read(engine.submit(request([1, 2], 5, adapter=refs["b"])))
        assert tokens_of(events) == by_hand(adapted["b"], [1, 2], 5)
        await read(beside)
