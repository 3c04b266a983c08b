"""Vectors as the contract's message. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from headrace.v1.common_pb2 import Usage
from headrace.v1.embedding_pb2 import Embedding, EmbedResponse
from headrace_runner.models.encoders.encoder import Vectors
from headrace_runner.services.embedding_inputs import Input, Wanted

_SHORTEST = 1e-12
"""A vector that is shorter has no direction, and is not made longer than its digits allow."""


def response(
    vectors: Vectors, inputs: Sequence[Input], wanted: Wanted, digest: str
) -> EmbedResponse:
    """The answer to a request. `vectors`: [inputs, hidden], not scaled.

    A vector that is cut is scaled after that, as Kusupati et al. 2022 do.
    """
    shaped = shaped_as(vectors, wanted)
    return EmbedResponse(
        embeddings=[
            Embedding(
                values=vector.tolist(),
                prompt_tokens=len(given.tokens),
                truncated=given.truncated,
            )
            for given, vector in zip(inputs, shaped, strict=True)
        ],
        dimensions=wanted.dimensions,
        normalized=wanted.normalize,
        usage=Usage(prompt_tokens=sum(len(given.tokens) for given in inputs)),
        digest=digest,
    )


def shaped_as(vectors: Vectors, wanted: Wanted) -> Vectors:
    """Vectors of the length that is wanted, scaled to 1 if they are to be. [rows, dimensions]"""
    cut = vectors[:, : wanted.dimensions]
    if not wanted.normalize:
        return cut
    lengths = np.linalg.norm(cut.astype(np.float64), axis=1, keepdims=True)
    scaled: Vectors = (cut / np.maximum(lengths, _SHORTEST)).astype(np.float32)
    return scaled
