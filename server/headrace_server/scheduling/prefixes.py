"""Fingerprints of a prompt's growing prefixes, by which requests that begin alike are known."""

from array import array
from collections.abc import Iterator
from hashlib import blake2b

from headrace.v1.completion_pb2 import CompletionInput, StreamCompletionRequest
from headrace_server.scheduling.state import BORDERS, Prefixes


def fingerprints(
    request: StreamCompletionRequest | CompletionInput, adapter: str | None = None
) -> Prefixes:
    """A fingerprint for each border that the prompt reaches, the shortest prefix first.

    Two prompts share a fingerprint when they are the same up to there, and are computed with the
    same adapter, of which `adapter` is the digest. Nothing of a prompt can be told from them.
    """
    borders = iter(BORDERS)
    # The zero ends the digest: no prompt can begin like one.
    hashed = blake2b(f"{adapter or ''}\0".encode(), digest_size=8)
    border, found = next(borders), list[int]()
    length = 0
    for part in _parts(request):
        begin = 0
        while length + len(part) - begin >= border:
            end = begin + border - length
            hashed.update(part[begin:end])
            found.append(int.from_bytes(hashed.digest(), "big"))
            begin, length = end, border
            border = next(borders, 0)
            if not border:
                return tuple(found)
        hashed.update(part[begin:])
        length += len(part) - begin
    return tuple(found)


def _parts(request: StreamCompletionRequest | CompletionInput) -> Iterator[bytes]:
    """The prompt's bytes in the order of the prompt, without any lengths of what comes later."""
    match request.WhichOneof("input"):
        case "chat":
            # Tools stand at the prompt's beginning, in the templates of most models.
            for tool in request.chat.tools:
                yield tool.SerializeToString(deterministic=True)
            for message in request.chat.messages:
                yield bytes([message.role])
                yield message.reasoning.encode()
                yield message.content.encode()
                for call in message.tool_calls:
                    yield call.SerializeToString(deterministic=True)
        case "token_ids":
            yield array("I", request.token_ids.ids).tobytes()
        case _:
            yield request.prompt.encode()
