"""The values that calls take and give: frozen dataclasses without a trace of Protobuf.

Times are seconds as floats, sizes are bytes, tokens are ids in the model's vocabulary. Nothing
here knows how a value travels.
"""

from headrace.types.completion import (
    Completed,
    Completion,
    CompletionEvent,
    Delta,
    FinishReason,
    Progress,
    Started,
    Timings,
    TokenLogprob,
    Usage,
)
from headrace.types.inputs import (
    ChatMessage,
    CompletionOptions,
    HasJsonSchema,
    Message,
    Role,
)
from headrace.types.models import (
    Loaded,
    Model,
    ModelChanged,
    ModelDeleted,
    ModelKind,
    ModelsEvent,
    ModelsSnapshot,
    Runner,
    RunnerReport,
    RunnersSnapshot,
    RunnerState,
    TransferPhase,
    TransferProgress,
    WatchCheckpoint,
)
from headrace.types.tokens import (
    Detokenized,
    RenderedChat,
    TokenCount,
    TokenPiece,
    Tokens,
)

__all__ = [
    "ChatMessage",
    "Completed",
    "Completion",
    "CompletionEvent",
    "CompletionOptions",
    "Delta",
    "Detokenized",
    "FinishReason",
    "HasJsonSchema",
    "Loaded",
    "Message",
    "Model",
    "ModelChanged",
    "ModelDeleted",
    "ModelKind",
    "ModelsEvent",
    "ModelsSnapshot",
    "Progress",
    "RenderedChat",
    "Role",
    "Runner",
    "RunnerReport",
    "RunnerState",
    "RunnersSnapshot",
    "Started",
    "Timings",
    "TokenCount",
    "TokenLogprob",
    "TokenPiece",
    "Tokens",
    "TransferPhase",
    "TransferProgress",
    "Usage",
    "WatchCheckpoint",
]
