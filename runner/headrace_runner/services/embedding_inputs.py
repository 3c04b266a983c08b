"""What a request for embeddings asks for, checked against the model. Pure.

Encoding may take seconds: call `inputs_of` from a worker thread.
"""

from __future__ import annotations

from dataclasses import dataclass

from headrace.errors import ContextLengthExceeded, UnsupportedParameter
from headrace.rpc.options import MAX_MESSAGE_BYTES
from headrace.v1.embedding_pb2 import EmbeddingInput, EmbedRequest
from headrace_runner.models.chat import invalid_field
from headrace_runner.models.encoders.inputs import TextEncoder
from headrace_runner.models.encoders.layout import EncoderTraits

_OVERHEAD = 32
"""Bytes of a vector's message beside its numbers, at most."""
_MESSAGE_OVERHEAD = 4096
"""Bytes of an answer beside its vectors, at most."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """How the vectors are to be."""

    dimensions: int
    normalize: bool


@dataclass(frozen=True, slots=True)
class Input:
    """One input as the model computes it."""

    tokens: tuple[int, ...]
    truncated: bool


def wanted_of(request: EmbedRequest, traits: EncoderTraits) -> Wanted:
    """How the vectors are to be.

    Raises UnsupportedParameter for a length that the model's vectors cannot have, and
    InvalidRequest for more vectors than a message can carry.
    """
    dimensions = request.dimensions if request.HasField("dimensions") else traits.dimensions
    if dimensions != traits.dimensions:
        _check_length(dimensions, traits)
    most = (MAX_MESSAGE_BYTES - _MESSAGE_OVERHEAD) // (4 * dimensions + _OVERHEAD)
    if len(request.inputs) > most:
        raise invalid_field(
            "inputs",
            f"are {len(request.inputs)}, and a message carries {most} vectors of {dimensions} "
            "numbers at most; ask in several requests",
        )
    return Wanted(dimensions, request.normalize if request.HasField("normalize") else True)


def _check_length(dimensions: int, traits: EncoderTraits) -> None:
    own, lengths = traits.dimensions, traits.shortened_to
    if lengths is None:
        remedy = f"the model's vectors have {own} numbers and cannot be cut; leave it out"
    elif dimensions > traits.shape.hidden:
        remedy = f"the model's vectors have at most {traits.shape.hidden} numbers"
    elif lengths and dimensions not in (*lengths, traits.shape.hidden):
        remedy = f"the model was trained for {', '.join(map(str, lengths))}; take one of these"
    else:
        return
    raise UnsupportedParameter(remedy, field="dimensions")


def inputs_of(
    request: EmbedRequest, texts: TextEncoder, traits: EncoderTraits, longest: int
) -> list[Input]:
    """The tokens of each input, `longest` at most.

    Raises ContextLengthExceeded for an input that is longer and not to be cut, InvalidRequest for
    tokens that are none of the model's.
    """
    return [
        _input(given, f"inputs[{index}]", texts, traits, longest, truncate=request.truncate)
        for index, given in enumerate(request.inputs)
    ]


def _input(
    given: EmbeddingInput,
    field: str,
    texts: TextEncoder,
    traits: EncoderTraits,
    longest: int,
    *,
    truncate: bool,
) -> Input:
    if given.WhichOneof("input") == "token_ids":
        tokens = list(given.token_ids.ids)
        _check_tokens(tokens, f"{field}.token_ids.ids", traits.shape.vocabulary)
        cut = tokens[:longest]
    else:
        tokens = texts.encode(given.text)
        if not tokens:
            raise invalid_field(f"{field}.text", "has no token in this model's vocabulary")
        cut = tokens if len(tokens) <= longest else texts.cut(tokens, longest)
    if len(tokens) > longest and not truncate:
        raise ContextLengthExceeded(limit=longest, actual=len(tokens), field=field)
    return Input(tuple(cut), truncated=len(tokens) > longest)


def _check_tokens(tokens: list[int], field: str, vocabulary: int) -> None:
    if not tokens:
        raise invalid_field(field, "must have at least one token")
    for index, token in enumerate(tokens):
        if token >= vocabulary:
            raise invalid_field(
                f"{field}[{index}]",
                f"must be below {vocabulary}, the size of the vocabulary; is {token}",
            )
