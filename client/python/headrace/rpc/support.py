"""What of the contract this version leaves out, asked before a model is loaded for it. Pure.

What depends on the model is for its runner to refuse.
"""

from __future__ import annotations

from headrace.errors import UnsupportedParameter
from headrace.v1.completion_pb2 import StreamCompletionRequest, ToolChoice

_REMEDY = "this version cannot honour it; leave it out"
_NO_FORCE = "this version cannot force a tool call; use MODE_AUTO or MODE_NONE"


def refuse_unsupported(request: StreamCompletionRequest) -> None:
    """Raises UnsupportedParameter for an option that this version can honour with no model."""
    if request.HasField("adapter"):
        raise UnsupportedParameter(_REMEDY, field="adapter")
    if request.chat.tool_choice.mode in (ToolChoice.MODE_REQUIRED, ToolChoice.MODE_ONE):
        raise UnsupportedParameter(_NO_FORCE, field="chat.tool_choice.mode")
