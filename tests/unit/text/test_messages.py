"""The engine's events become messages, and nothing of them is left out."""

from __future__ import annotations

import time

from headrace.v1.completion_pb2 import ChoiceResult, FinishReason, ToolCallPart
from headrace_runner.engine.text import parts
from headrace_runner.engine.text.request import ChoiceEnd, Delta, Finish, Finished
from headrace_runner.models.tokenizer import Tokenizer
from headrace_runner.services.messages import completed, delta


def test_a_delta_has_everything_of_its_choice(smollm2: Tokenizer) -> None:
    event = Delta(
        choice=2,
        text="a",
        reasoning="b",
        tool_calls=[parts.ToolCallPart(0, "{}", "call_1", "f"), parts.ToolCallPart(1, '{"x"')],
        token_ids=[5, 6],
        output_tokens=7,
    )
    message = delta(event, smollm2)
    assert (message.choice, message.text, message.reasoning) == (2, "a", "b")
    assert list(message.tool_calls) == [
        ToolCallPart(index=0, id="call_1", name="f", arguments_json="{}"),
        ToolCallPart(index=1, arguments_json='{"x"'),
    ]
    assert not message.tool_calls[1].HasField("id")
    assert (list(message.token_ids), message.output_tokens) == ([5, 6], 7)


def test_the_end_of_several_choices() -> None:
    ends = (
        ChoiceEnd(Finish.STOP, "END", 3),
        ChoiceEnd(Finish.END_OF_TEXT, 0, 4),
        ChoiceEnd(Finish.TOOL_CALLS, None, 5),
        ChoiceEnd(Finish.LENGTH, None, 6),
    )
    arrived = time.perf_counter_ns()
    event = Finished(ends, arrived + 1000, arrived + 3000, arrived + 7000)
    message = completed(event, 20, 12, arrived)
    assert list(message.choices) == [
        ChoiceResult(
            index=0,
            finish_reason=FinishReason.FINISH_REASON_STOP,
            stop_string="END",
            output_tokens=3,
        ),
        ChoiceResult(
            index=1,
            finish_reason=FinishReason.FINISH_REASON_END_OF_TEXT,
            stop_token_id=0,
            output_tokens=4,
        ),
        ChoiceResult(index=2, finish_reason=FinishReason.FINISH_REASON_TOOL_CALLS, output_tokens=5),
        ChoiceResult(index=3, finish_reason=FinishReason.FINISH_REASON_LENGTH, output_tokens=6),
    ]
    usage = message.usage
    assert (usage.prompt_tokens, usage.cached_tokens, usage.output_tokens) == (20, 12, 18)
    timings = message.timings
    assert (timings.queue.nanos, timings.prefill.nanos, timings.decode.nanos) == (1000, 2000, 4000)
