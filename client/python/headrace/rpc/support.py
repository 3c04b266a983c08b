"""What of the contract this version leaves out, asked before a model is loaded for it. Pure.

What depends on the model is for its runner to refuse.
"""

from __future__ import annotations

from headrace.errors import UnsupportedParameter
from headrace.v1.completion_pb2 import StreamCompletionRequest

_REMEDY = "this version cannot honour it; leave it out"


def refuse_unsupported(request: StreamCompletionRequest) -> None:
    """Raises UnsupportedParameter for an option that this version can honour with no model."""
    if request.HasField("adapter"):
        raise UnsupportedParameter(_REMEDY, field="adapter")
