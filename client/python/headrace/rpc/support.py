"""What of the contract this version leaves out, asked before a model is loaded for it. Pure."""

from __future__ import annotations

from headrace.errors import UnsupportedParameter
from headrace.v1.completion_pb2 import StreamCompletionRequest


def refuse_unsupported(request: StreamCompletionRequest) -> None:
    """Raises UnsupportedParameter for an option that this version cannot honour."""
    asked = {
        "n": request.n > 1,
        "reasoning": request.HasField("reasoning"),
        "adapter": request.HasField("adapter"),
        "resume_token_ids": bool(request.resume_token_ids),
        "chat.tools": bool(request.chat.tools),
        "chat.tool_choice": request.chat.HasField("tool_choice"),
    }
    if constraint := request.WhichOneof("constraint"):
        asked[constraint] = True
    for field, wanted in asked.items():
        if wanted:
            raise UnsupportedParameter("this version cannot honour it; leave it out", field=field)
