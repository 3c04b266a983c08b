"""B8: what just fits into a context, and what does not."""

from __future__ import annotations

import grpc
import pytest

from headrace.errors import ContextLengthExceeded, InvalidRequest
from headrace.v1.completion_pb2 import FinishReason, StreamCompletionRequest
from tests.integration.runner.api import ENDLESS, MODEL, Answer, Api, connected, prompt, tokens
from tests.integration.runner.conftest import ServeTiny


def assert_cut(answer: Answer, output_tokens: int) -> None:
    assert answer.choice.finish_reason == FinishReason.FINISH_REASON_LENGTH
    assert len(answer.token_ids) == answer.choice.output_tokens == output_tokens


async def test_b8_one_token_is_enough(tiny: Api) -> None:
    assert_cut(await tiny.complete(tokens([5], 1, stop=ENDLESS)), 1)
    assert_cut(await tiny.complete(prompt("the quick brown fox", 1, stop=ENDLESS)), 1)


async def test_b8_an_empty_prompt_is_refused(tiny: Api) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await tiny.complete(prompt(""))
    assert [violation.field for violation in caught.value.violations] == ["prompt"]


async def test_b8_the_end_of_the_context(serve_tiny: ServeTiny) -> None:
    with serve_tiny("--context", "64") as child:
        async with connected(child.address) as api:
            assert (await api.describe()).limits.context_length == 64
            # Prompt and output fill the context; the last token drawn needs no place in it.
            assert_cut(await api.complete(tokens([5] * 60, 100, stop=ENDLESS)), 5)
            assert_cut(await api.complete(tokens([5] * 64, 100, stop=ENDLESS)), 1)
            unsaid = StreamCompletionRequest(model=MODEL, stop=ENDLESS)
            unsaid.token_ids.ids.extend([5] * 50)
            assert_cut(await api.complete(unsaid), 15)
            with pytest.raises(ContextLengthExceeded) as caught:
                await api.complete(tokens([5] * 65, 1))
            assert caught.value.code == grpc.StatusCode.INVALID_ARGUMENT
            assert caught.value.metadata == {"limit": "64", "actual": "65"}
            assert_cut(await api.complete(tokens([5] * 64, 1, stop=ENDLESS)), 1)
