"""What no model can do is refused by its name, and nothing else."""

from __future__ import annotations

import pytest

from headrace.errors import UnsupportedParameter
from headrace.rpc.support import refuse_unsupported
from headrace.v1.completion_pb2 import (
    ChatInput,
    ReasoningOptions,
    StreamCompletionRequest,
    Tool,
    ToolChoice,
)


def choosing(mode: ToolChoice.Mode.ValueType) -> ChatInput:
    return ChatInput(tools=[Tool(name="f")], tool_choice=ToolChoice(mode=mode))


@pytest.mark.parametrize(
    ("field", "request_"),
    [
        ("adapter", StreamCompletionRequest(adapter="a")),
    ],
)
def test_b9_what_no_model_can_do(field: str, request_: StreamCompletionRequest) -> None:
    with pytest.raises(UnsupportedParameter) as raised:
        refuse_unsupported(request_)
    assert raised.value.metadata["field"] == field
    assert [violation.field for violation in raised.value.violations] == [field]


@pytest.mark.parametrize(
    "mode",
    [
        ToolChoice.MODE_UNSPECIFIED,
        ToolChoice.MODE_NONE,
        ToolChoice.MODE_AUTO,
        ToolChoice.MODE_REQUIRED,
        ToolChoice.MODE_ONE,
    ],
)
def test_what_some_model_may_do_is_left_to_its_runner(mode: ToolChoice.Mode.ValueType) -> None:
    refuse_unsupported(
        StreamCompletionRequest(
            chat=choosing(mode), n=2, reasoning=ReasoningOptions(enabled=True, in_text=True)
        )
    )
    refuse_unsupported(StreamCompletionRequest(prompt="x", resume_token_ids=[1]))
    refuse_unsupported(StreamCompletionRequest(json_schema="{}"))
    refuse_unsupported(StreamCompletionRequest(reasoning=ReasoningOptions(max_tokens=1)))
