"""As `_convert`, for what verifying and collecting garbage answer. Pure."""

from __future__ import annotations

from headrace import types
from headrace._enums import enum_of
from headrace.v1 import model_pb2


def verify_progress(message: model_pb2.VerifyProgress) -> types.VerifyProgress:
    """How far a verification is."""
    return types.VerifyProgress(
        model=message.model, done_bytes=message.done_bytes, total_bytes=message.total_bytes
    )


def verified_model(message: model_pb2.VerifiedModel) -> types.VerifiedModel:
    """What was found of one model."""
    return types.VerifiedModel(
        model=message.model,
        digest=message.digest,
        size_bytes=message.size_bytes,
        damaged=tuple(
            types.DamagedFile(
                file=damaged.file,
                damage=enum_of(
                    types.FileDamage, model_pb2.FileDamage.Name, damaged.damage, "FILE_DAMAGE_"
                ),
                description=damaged.description,
            )
            for damaged in message.damaged
        ),
        remedy=message.remedy,
    )


def garbage(message: model_pb2.Garbage) -> types.Garbage:
    """What belongs to no model."""
    return types.Garbage(
        items=tuple(
            types.GarbageItem(
                kind=enum_of(
                    types.GarbageKind, model_pb2.GarbageKind.Name, item.kind, "GARBAGE_KIND_"
                ),
                name=item.name,
                size_bytes=item.size_bytes,
            )
            for item in message.items
        ),
        freed_bytes=message.freed_bytes,
        downloads_in_use=message.downloads_in_use,
    )
