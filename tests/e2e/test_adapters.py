"""Adapters of SmolLM2 through a controller: named by requests, mixed in one runner, and resumed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import psutil
import pytest
from mlx_lm.tuner.utils import linear_to_lora_layers, remove_lora_layers

from headrace import AsyncClient
from headrace.errors import (
    InvalidRequest,
    ModelInUse,
    UnsupportedCapability,
    UnsupportedModel,
    UnsupportedParameter,
)
from headrace.types import Completion, Delta, ModelKind
from headrace_runner.models.insides import dequantized, load_lazily
from headrace_server.store import ImportOptions, Store
from tests.adapters import ATTENTION, EVERYTHING, of_directory, with_adapter, write_mlx, write_peft
from tests.e2e.harness import MODEL, PATIENCE, Controller, borrow_home, headrace
from tests.e2e.pages import examples, first_line, run_example

PROMPT = "The old lighthouse keeper said:"
TOKENS = 12
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": TOKENS, "ignore_eos": True}
ADAPTERS = ("pirate:latest", "crew/sailor:2")
SETTINGS = f"""
[models."{MODEL}"]
adapter = "pirate"
"""


@pytest.fixture(scope="module")
def sources(model_home: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An adapter in mlx-lm's form, and another one in PEFT's."""
    folder, store = tmp_path_factory.mktemp("adapters"), Store(model_home)
    base = store.path(store.get(MODEL))
    one = of_directory(base, seed=1, rank=8, keys=ATTENTION, strength=1.0)
    other = of_directory(base, seed=2, rank=4, keys=EVERYTHING, layers=8)
    return write_mlx(folder / "pirate", one), write_peft(folder / "sailor", other)


@pytest.fixture(scope="module")
def adapted_home(
    model_home: Path, sources: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    home = borrow_home(model_home, tmp_path_factory.mktemp("adapted") / "home")
    for source, name in zip(sources, ADAPTERS, strict=True):
        importing = Store(home).import_model(source, name, options=ImportOptions(base=MODEL))
        asyncio.run(importing)
    return home


@pytest.fixture(scope="module")
def adapted(adapted_home: Path) -> Iterator[Controller]:
    """A controller whose SmolLM2 has two adapters. In float32, as mlx-lm computes it."""
    with Controller(adapted_home, "--preload", MODEL, "--dtype", "float32") as running:
        yield running


@pytest.fixture
async def client(adapted: Controller) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(adapted.target, timeout=PATIENCE) as made:
        yield made


def reference(home: Path) -> Any:
    """SmolLM2 in float32, as mlx-lm computes it."""
    store = Store(home)
    model, _ = load_lazily(store.path(store.get(MODEL)))
    model.set_dtype(mx.float32)
    return dequantized(model)


def logprobs_by(model: Any, answer: Completion, prompt: list[int]) -> list[float]:
    """What a model gives the tokens of an answer; sees that each is its likeliest."""
    tokens = [*prompt, *answer.token_ids]
    logits = model(mx.array([tokens[:-1]]))[0, len(prompt) - 1 :]
    assert mx.argmax(logits, axis=-1).tolist() == list(answer.token_ids)
    found = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    own = mx.take_along_axis(found, mx.array(answer.token_ids)[:, None], axis=-1)
    return own[:, 0].tolist()  # type: ignore[return-value]


@pytest.mark.timeout(300)
async def test_two_adapters_and_none_share_a_runner_and_write_as_in_mlx_lm(
    client: AsyncClient, adapted: Controller, adapted_home: Path, sources: tuple[Path, Path]
) -> None:
    names = ("", *ADAPTERS)

    async def ask(name: str) -> Completion:
        return await client.complete(MODEL, PROMPT, adapter=name, logprobs=True, **GREEDY)

    together = await asyncio.gather(*map(ask, [*names, *names]))
    prompt = [*(await client.tokenize(MODEL, PROMPT)).token_ids]
    for name, answer, again in zip(names, together, together[3:], strict=False):
        assert answer.started.adapter == name
        assert (answer.text, answer.token_ids) == (again.text, again.token_ids)
        alone = await ask(name)
        assert alone.token_ids == answer.token_ids
    assert len({answer.text for answer in together}) == 3
    assert len(adapted.runners()) == 1
    (listed,) = (await client.list_runners()).runners
    assert listed.report is not None
    assert listed.report.adapters_bytes > 1 << 20
    # The PEFT one is compared as what the import made of it, which mlx-lm reads.
    store = Store(adapted_home)
    stored = store.path(store.get(ADAPTERS[1]))
    model = reference(adapted_home)
    for source, answer in zip((None, sources[0], stored), together, strict=False):
        if source is not None:
            model = with_adapter(remove_lora_layers(model), source)
        wanted = logprobs_by(model, answer, prompt)
        assert [each.logprob for each in answer.logprobs] == pytest.approx(wanted, abs=1e-3)


async def test_scores_are_with_an_adapter_too(client: AsyncClient) -> None:
    scores = [
        (await client.score(MODEL, PROMPT, continuations=[" hello"], adapter=name))
        .scores[0]
        .logprob
        for name in ("", *ADAPTERS)
    ]
    assert len({round(score, 2) for score in scores}) == 3


@pytest.mark.slow
async def test_a_stream_goes_on_with_its_adapter_when_its_runner_is_killed(
    client: AsyncClient,
) -> None:
    options: dict[str, Any] = {"temperature": 0.8, "seed": 3, "max_tokens": 40, "ignore_eos": True}
    whole = await client.complete(MODEL, PROMPT, adapter="pirate", **options)
    plain = await client.complete(MODEL, PROMPT, **options)
    assert whole.text != plain.text
    (runner,) = (await client.list_runners()).runners
    stream = client.stream_completion(MODEL, PROMPT, adapter="pirate", **options)
    async with stream:
        async for event in stream:
            if isinstance(event, Delta) and event.output_tokens > 5:
                psutil.Process(runner.pid).kill()
                break
        async for _ in stream:
            pass
        resumed = await stream.collect()
    assert resumed.completed.resumed == 1
    assert (resumed.text, resumed.token_ids) == (whole.text, whole.token_ids)


async def test_what_is_no_adapter_of_the_model_is_refused(client: AsyncClient) -> None:
    for name, told in {
        "pirat": r"smollm2:135m has no adapter 'pirat'; did you mean pirate:latest",
        "zebra": r"it has crew/sailor:2, pirate:latest",
        MODEL: r"is a model and no adapter",
    }.items():
        with pytest.raises(UnsupportedParameter, match=told) as caught:
            await client.complete(MODEL, PROMPT, adapter=name, max_tokens=1)
        assert caught.value.metadata["field"] == "adapter"
    with pytest.raises(InvalidRequest, match="no model name"):
        await client.complete(MODEL, PROMPT, adapter="../pirate", max_tokens=1)
    with pytest.raises(
        UnsupportedCapability, match=r"pirate:latest is an adapter of smollm2:135m;"
    ):
        await client.complete("pirate", PROMPT, max_tokens=1)
    with pytest.raises(UnsupportedCapability, match=r"ask smollm2:135m"):
        await client.load_model("pirate")


async def test_the_store_lists_them_and_keeps_their_base(client: AsyncClient) -> None:
    models = {model.name: model for model in await client.list_models()}
    base, pirate = models[MODEL], models["pirate:latest"]
    assert pirate.kind is ModelKind.ADAPTER
    assert pirate.adapter is not None
    assert (pirate.adapter.base, pirate.adapter.base_digest) == (MODEL, base.digest)
    assert (pirate.adapter.rank, pirate.adapter.layers) == (8, 30)
    assert pirate.adapter.modules == ATTENTION
    assert pirate.memory_estimates == ()
    assert base.adapter is None
    with pytest.raises(ModelInUse, match=r"has adapters that need it: crew/sailor:2, pirate:lat"):
        await client.delete_model(MODEL)
    assert (await client.get_model(MODEL)).runners  # It was not even unloaded.


@pytest.mark.slow
def test_the_command_line_imports_shows_and_asks(
    adapted: Controller, sources: tuple[Path, Path]
) -> None:
    refused = headrace(adapted, "import", str(sources[0]), "third", check=False)
    assert refused.returncode != 0
    assert "pirate is an adapter (LoRA); name the model that it belongs to" in refused.stderr
    headrace(adapted, "import", str(sources[0]), "third", "--base", MODEL)
    shown = headrace(adapted, "show", "third").stdout
    assert "smollm2:135m" in shown
    assert "self_attn.q_proj, self_attn.v_proj of 30 layers" in shown
    assert "adapter" in headrace(adapted, "list").stdout
    options = ("--temperature", "0", "--max-tokens", "8", "--json", "--raw")
    answers = [
        json.loads(headrace(adapted, "run", MODEL, PROMPT, *options, *more).stdout)
        for more in ((), ("--adapter", "third"), ("--adapter", "pirate"))
    ]
    assert [answer["adapter"] for answer in answers] == [None, "third", "pirate"]
    texts = [answer["text"] for answer in answers]
    assert texts[1] == texts[2] != texts[0]
    headrace(adapted, "rm", "third")


@pytest.mark.parametrize("example", examples("adapters.md"), ids=first_line)
def test_the_examples_of_the_docs_run(adapted: Controller, example: str) -> None:
    run_example(adapted, example)


@pytest.mark.slow
async def test_the_settings_may_name_one(adapted_home: Path, tmp_path: Path) -> None:
    home = borrow_home(adapted_home, tmp_path / "home")
    (home / "config.toml").write_text(SETTINGS)
    with Controller(home) as controller:
        async with AsyncClient(controller.target, timeout=PATIENCE) as client:
            answers = {
                name: await client.complete(MODEL, PROMPT, adapter=name, **GREEDY)
                for name in (None, "", "pirate", "crew/sailor:2")
            }
            assert answers[None].started.adapter == "pirate:latest"
            assert answers[None].text == answers["pirate"].text
            assert len({answer.text for answer in answers.values()}) == 3
            scores = [
                (await client.score(MODEL, PROMPT, continuations=[" a"], adapter=name)).scores
                for name in (None, "pirate", "")
            ]
            assert scores[0] == scores[1] != scores[2]
            await client.delete_model("pirate")
            with pytest.raises(UnsupportedParameter, match=r"settings name one, but .* no adapter"):
                await client.complete(MODEL, PROMPT, max_tokens=1)
            assert len(controller.runners()) == 1


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_what_mlx_lm_has_trained_is_served_as_mlx_lm_does(
    client: AsyncClient, adapted_home: Path, tmp_path: Path
) -> None:
    sentence = "Arr, the kraken ate my parrot and the ship's biscuits, matey!"
    words = [*(await client.tokenize(MODEL, sentence)).token_ids]
    source = await asyncio.to_thread(_train, adapted_home, words, tmp_path / "trained")
    await client.import_model(source, "trained", base=MODEL).collect()
    first, rest = words[:4], words[4:]
    asked: dict[str, Any] = {"token_ids": first, "temperature": 0, "max_tokens": len(rest)}
    answer = await client.complete(MODEL, adapter="trained", logprobs=True, **asked)
    assert (await client.complete(MODEL, **asked)).text != answer.text
    # It has learnt the sentence, by the words that were to come.
    scores = [
        (await client.score(MODEL, token_ids=first, continuations=[rest], adapter=name)).scores[0]
        for name in ("", "trained")
    ]
    assert scores[1].logprob > scores[0].logprob + len(rest)
    wanted = logprobs_by(with_adapter(reference(adapted_home), source), answer, first)
    assert [each.logprob for each in answer.logprobs] == pytest.approx(wanted, abs=1e-3)
    for kind in ("dora", "full"):
        other = write_mlx(
            tmp_path / kind,
            of_directory(Store(adapted_home).path(Store(adapted_home).get(MODEL)), seed=1),
            fine_tune_type=kind,
        )
        with pytest.raises(UnsupportedModel, match=kind):
            await client.import_model(other, "other", base=MODEL).collect()


def _train(home: Path, words: list[int], output: Path) -> Path:
    """Some steps of mlx-lm's own training, on one sentence."""
    from mlx.optimizers import Adam
    from mlx_lm.tuner.trainer import TrainingArgs, train

    model = reference(home)
    model.freeze()
    parameters = {"rank": 8, "scale": 10.0, "dropout": 0.0}
    linear_to_lora_layers(model, 4, parameters)
    output.mkdir()
    file = output / "adapters.safetensors"
    told = {"fine_tune_type": "lora", "num_layers": 4, "lora_parameters": parameters}
    (output / "adapter_config.json").write_text(json.dumps(told))
    arguments = TrainingArgs(
        batch_size=1,
        iters=10,
        val_batches=0,
        steps_per_report=10,
        steps_per_eval=10_000,
        steps_per_save=10_000,
        max_seq_length=64,
        adapter_file=str(file),
    )
    train(model, Adam(learning_rate=1e-3), [(words, 0)], None, arguments)
    return output
