"""A runner on a real model whose products are of 8-bit integers."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from headrace.v1.completion_pb2 import LogprobsOptions, SamplingOptions, StreamCompletionRequest
from headrace_runner.engine.text.flat_layout import FlatLayout
from headrace_runner.engine.text.layout import Piece, as_tokens
from headrace_runner.engine.text.layouts import choose_layout
from headrace_runner.models.load import load
from headrace_runner.models.tokenizer import Tokenizer
from tests.integration.runner.api import ENDLESS, MODEL, Api, chat, connected, prompt
from tests.integration.runner.child import Child, serving
from tests.integration.runner.conftest import ServeTiny
from tests.integration.runner.test_smollm2 import REFERENCE, REFERENCE_ANSWER

kernels: Any = pytest.importorskip(
    "headrace_kernels", reason="the kernels are not built: make kernels"
)


@pytest.fixture(scope="module")
def int8_runner(model_home: Path, smollm2_dir: Path) -> Iterator[Child]:
    """To it every prompt is new, and every token gets its own step."""
    # No type is asked for: this is the one for it.
    arguments = ("--name", MODEL, "--prefix-cache", "0", "--no-drafts")
    with serving(model_home, smollm2_dir, *arguments) as child:
        yield child
        assert child.process.poll() is None, child.log


@pytest.fixture
async def int8(int8_runner: Child) -> AsyncIterator[Api]:
    async with connected(int8_runner.address) as api:
        yield api
        await api.idle()


async def test_the_weights_stay_small_and_the_answer_is_the_reference(
    int8: Api, int8_runner: Child
) -> None:
    answer = await int8.complete(chat(REFERENCE, 12))
    assert answer.text.startswith(REFERENCE_ANSWER)
    assert '"weights": "4-bit int8"' in int8_runner.log
    # As float32 they would take 538 MB.
    assert (await int8.describe()).memory.weights_bytes < 100e6


async def test_a_stream_goes_on_with_the_very_same_tokens(int8: Api) -> None:
    """Beside others, and after it was cut anywhere."""
    request = prompt(
        "The old lighthouse keeper said:", 32, stop=ENDLESS, logprobs=LogprobsOptions(enabled=True)
    )
    whole = await int8.complete(request)
    later = []
    for cut in (1, 7, 16, 31):
        resumed = StreamCompletionRequest()
        resumed.CopyFrom(request)
        resumed.resume_token_ids.extend(whole.token_ids[:cut])
        later.append(resumed)
    others = [
        prompt("Neighbour " * i, 16, sampling=SamplingOptions(seed=i), stop=ENDLESS)
        for i in range(1, 6)
    ]
    answers = await asyncio.gather(*map(int8.complete, [*others, request, *later]))
    assert answers[5].token_ids == whole.token_ids
    for cut, answer in zip((1, 7, 16, 31), answers[6:], strict=True):
        assert answer.token_ids == whole.token_ids[cut:]


async def test_it_goes_on_with_them_on_a_cpu_with_other_instructions(
    int8: Api, model_home: Path, smollm2_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = prompt("A recipe for bread begins with", 24, stop=ENDLESS)
    whole = await int8.complete(request)
    request.resume_token_ids.extend(whole.token_ids[:8])
    monkeypatch.setenv("HEADRACE_KERNELS", kernels.paths()[-1])
    with serving(model_home, smollm2_dir, "--name", MODEL, "--dtype", "int8") as child:
        async with connected(child.address) as api:
            assert (await api.complete(request)).token_ids == whole.token_ids[8:]


def test_the_perplexity_of_a_text_is_within_a_hundredth(smollm2_dir: Path) -> None:
    """As it is served: with the layout that is chosen, which rounds keys and values."""
    # Long, since over 200 tokens any other rounding makes a hundredth of difference.
    text = (Path(__file__).parents[3] / "LICENSE").read_text()
    ids = Tokenizer.load(smollm2_dir).encode(text, add_special=False)[:1500]
    assert len(ids) == 1500

    def perplexity(dtype: str) -> float:
        model = load(smollm2_dir, dtype, lambda fraction: None).model  # type: ignore[arg-type]
        layout = choose_layout(model, on_cpu=True, prefix_bytes=0)
        assert isinstance(layout, FlatLayout)
        state = layout.begin(as_tokens(ids), [], beyond=len(ids))
        logits, _ = layout.score([Piece(state, ids, wanted=len(ids))])
        chosen = mx.take_along_axis(logits[:-1], mx.array(ids[1:])[:, None], axis=1)[:, 0]
        surprise: Any = (mx.logsumexp(logits[:-1], axis=1) - chosen).mean().item()
        return math.exp(surprise)

    assert perplexity("int8") == pytest.approx(perplexity("float32"), rel=0.01)


async def test_a_model_that_is_not_quantised_is_loaded_as_ever(serve_tiny: ServeTiny) -> None:
    with serve_tiny("--dtype", "int8") as child:
        assert "--dtype int8: the model is not quantised to 4 or 8 bits" in child.log
        async with connected(child.address) as api:
            assert (await api.complete(prompt("abc", 4, stop=ENDLESS))).choice.output_tokens == 4


async def test_without_the_kernels_the_weights_are_widened(
    model_home: Path, smollm2_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_KERNELS", "off")
    with serving(model_home, smollm2_dir, "--name", MODEL, "--dtype", "int8") as child:
        assert "--dtype int8: HEADRACE_KERNELS is off" in child.log
        async with connected(child.address) as api:
            assert (await api.describe()).memory.weights_bytes > 500e6
