"""Headrace: a gRPC server for MLX models, and its Python client.

    from headrace import Client

    with Client() as client:
        for piece in client.stream_completion("smollm2:135m", "Once upon a time").text:
            print(piece, end="")

Names are imported when they are first used, so that `import headrace` costs nothing to those who
want a submodule only.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headrace._aio_streams import AsyncCompletionStream as AsyncCompletionStream
    from headrace._aio_streams import AsyncImageStream as AsyncImageStream
    from headrace._aio_streams import AsyncModelWatch as AsyncModelWatch
    from headrace._aio_streams import AsyncTransferStream as AsyncTransferStream
    from headrace._aio_streams import AsyncVerifyStream as AsyncVerifyStream
    from headrace._streams import CompletionStream as CompletionStream
    from headrace._streams import ImageStream as ImageStream
    from headrace._streams import ModelWatch as ModelWatch
    from headrace._streams import TransferStream as TransferStream
    from headrace._streams import VerifyStream as VerifyStream
    from headrace.aio import AsyncClient as AsyncClient
    from headrace.client import Client as Client
    from headrace.errors import HeadraceError as HeadraceError
    from headrace.types import Completed as Completed
    from headrace.types import Completion as Completion
    from headrace.types import Delta as Delta
    from headrace.types import Embeddings as Embeddings
    from headrace.types import FinishReason as FinishReason
    from headrace.types import ImageResult as ImageResult
    from headrace.types import Message as Message
    from headrace.types import Model as Model
    from headrace.types import Progress as Progress
    from headrace.types import Scores as Scores
    from headrace.types import Started as Started
    from headrace.types import Tool as Tool
    from headrace.types import ToolCall as ToolCall

    __version__: str

_HOMES = {
    "AsyncClient": "headrace.aio",
    "AsyncCompletionStream": "headrace._aio_streams",
    "AsyncImageStream": "headrace._aio_streams",
    "AsyncModelWatch": "headrace._aio_streams",
    "AsyncTransferStream": "headrace._aio_streams",
    "AsyncVerifyStream": "headrace._aio_streams",
    "Client": "headrace.client",
    "CompletionStream": "headrace._streams",
    "ImageStream": "headrace._streams",
    "ModelWatch": "headrace._streams",
    "TransferStream": "headrace._streams",
    "VerifyStream": "headrace._streams",
    "HeadraceError": "headrace.errors",
    "Completed": "headrace.types",
    "Completion": "headrace.types",
    "Delta": "headrace.types",
    "Embeddings": "headrace.types",
    "FinishReason": "headrace.types",
    "ImageResult": "headrace.types",
    "Message": "headrace.types",
    "Model": "headrace.types",
    "Progress": "headrace.types",
    "Scores": "headrace.types",
    "Started": "headrace.types",
    "Tool": "headrace.types",
    "ToolCall": "headrace.types",
}

__all__ = [*_HOMES]  # noqa: PLE0604 (all are strings)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("headrace")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
