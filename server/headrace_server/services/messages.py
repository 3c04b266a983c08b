"""What the store and the scheduler know, as messages of the contract. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import fields
from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp

from headrace import types
from headrace.v1.common_pb2 import ModelKind, RunnerState, RunnerStatus
from headrace.v1.model_pb2 import (
    AdapterTraits,
    DamagedFile,
    FileDamage,
    GarbageItem,
    ImageTraits,
    MemoryEstimate,
    StreamVerifyModelsResponse,
    TransferPhase,
    TransferProgress,
    VerifiedModel,
    VerifyProgress,
)
from headrace.v1.model_pb2 import Garbage as GarbageMessage
from headrace.v1.model_pb2 import GarbageKind as GarbageKindMessage
from headrace.v1.model_pb2 import Model as ModelMessage
from headrace_server.events.views import RunnerView
from headrace_server.relay import duration
from headrace_server.runners.lifecycle import State
from headrace_server.scheduling.planner import Model
from headrace_server.store import (
    AdapterFacts,
    DamageKind,
    Garbage,
    GarbageKind,
    ImageFacts,
    Manifest,
    Progress,
    Reading,
    Verified,
)

_KINDS = {
    "text": ModelKind.MODEL_KIND_TEXT,
    "image": ModelKind.MODEL_KIND_IMAGE,
    "embedding": ModelKind.MODEL_KIND_EMBEDDING,
    "adapter": ModelKind.MODEL_KIND_ADAPTER,
}
_IMAGE_TRAITS = fields(types.ImageTraits)
"""Called as the message's fields are."""
_STATES = {
    State.STARTING: RunnerState.RUNNER_STATE_STARTING,
    State.LOADING: RunnerState.RUNNER_STATE_LOADING,
    State.SERVING: RunnerState.RUNNER_STATE_SERVING,
    State.STALLED: RunnerState.RUNNER_STATE_STALLED,
    State.DRAINING: RunnerState.RUNNER_STATE_DRAINING,
    State.FAILING: RunnerState.RUNNER_STATE_DRAINING,
    State.STOPPING: RunnerState.RUNNER_STATE_DRAINING,
    State.DEAD: RunnerState.RUNNER_STATE_DEAD,
}
_PHASES = {
    "download": TransferPhase.TRANSFER_PHASE_DOWNLOAD,
    "verify": TransferPhase.TRANSFER_PHASE_VERIFY,
    "check": TransferPhase.TRANSFER_PHASE_VERIFY,
    "read": TransferPhase.TRANSFER_PHASE_CONVERT,
    "convert": TransferPhase.TRANSFER_PHASE_CONVERT,
    "write": TransferPhase.TRANSFER_PHASE_STORE,
    "store": TransferPhase.TRANSFER_PHASE_STORE,
}

_DAMAGES: dict[DamageKind, FileDamage.ValueType] = {
    "missing": FileDamage.FILE_DAMAGE_MISSING,
    "size": FileDamage.FILE_DAMAGE_SIZE,
    "checksum": FileDamage.FILE_DAMAGE_CHECKSUM,
    "unreadable": FileDamage.FILE_DAMAGE_UNREADABLE,
    "manifest": FileDamage.FILE_DAMAGE_MANIFEST,
}
_GARBAGE: dict[GarbageKind, GarbageKindMessage.ValueType] = {
    "snapshot": GarbageKindMessage.GARBAGE_KIND_SNAPSHOT,
    "blob": GarbageKindMessage.GARBAGE_KIND_BLOB,
    "download": GarbageKindMessage.GARBAGE_KIND_DOWNLOAD,
    "unfinished": GarbageKindMessage.GARBAGE_KIND_UNFINISHED,
    "duplicate": GarbageKindMessage.GARBAGE_KIND_DUPLICATE,
}


def model_message(model: Model, runners: Iterable[RunnerView], now: float) -> ModelMessage:
    """A model of the store and its runners. `now`: on the scheduler's clock."""
    manifest = model.manifest
    return ModelMessage(
        name=manifest.full_name,
        kind=_KINDS.get(manifest.kind, ModelKind.MODEL_KIND_UNSPECIFIED),
        format=manifest.format,
        architecture=manifest.architecture,
        digest=manifest.digest,
        parameters=manifest.parameters,
        tensor_bytes=manifest.tensor_bytes,
        size_bytes=manifest.size,
        quantization=manifest.quantization,
        context_length=manifest.context_length,
        chat_template=manifest.has_chat_template,
        license=manifest.license or "",
        source=manifest.source,
        created_at=_created_at(manifest),
        memory_estimate_bytes=model.needs,
        runners=[runner_status(runner, now) for runner in runners],
        image=_traits(manifest.image),
        embedding_dimensions=manifest.embedding.dimensions if manifest.embedding else 0,
        memory_estimates=[
            MemoryEstimate(
                context_length=estimate.context,
                concurrency=estimate.concurrency,
                bytes=estimate.needs,
            )
            for estimate in model.estimates
        ],
        adapter=_adapter(manifest.adapter),
    )


def _adapter(adapter: AdapterFacts | None) -> AdapterTraits | None:
    if adapter is None:
        return None
    return AdapterTraits(
        base=adapter.base,
        base_digest=f"sha256:{adapter.base_digest}",
        rank=adapter.rank,
        layers=adapter.layers,
        modules=adapter.modules,
    )


def _traits(image: ImageFacts | None) -> ImageTraits | None:
    if image is None:
        return None
    return ImageTraits(**{trait.name: getattr(image, trait.name) for trait in _IMAGE_TRAITS})


def runner_status(runner: RunnerView, now: float) -> RunnerStatus:
    """A runner as its controller sees it."""
    status = RunnerStatus(
        id=runner.id,
        model=runner.model,
        digest=runner.digest,
        state=_STATES[runner.state],
        pid=runner.pid,
        active_requests=runner.requests,
        memory_bytes=runner.memory,
        pinned=runner.pinned,
        reason=runner.why,
    )
    if runner.fraction is not None:
        status.load_fraction = runner.fraction
    if math.isfinite(runner.expires_at):
        status.expires_in.CopyFrom(duration(max(0.0, runner.expires_at - now)))
    return status


def transfer_progress(progress: Progress) -> TransferProgress:
    """How far a pull or an import is."""
    return TransferProgress(
        phase=_PHASES.get(progress.phase, TransferPhase.TRANSFER_PHASE_UNSPECIFIED),
        done_bytes=progress.done,
        total_bytes=progress.total or None,
    )


def verify_response(step: Reading | Verified) -> StreamVerifyModelsResponse:
    """How far a verification is, or what was found of a model."""
    if isinstance(step, Reading):
        progress = VerifyProgress(model=step.model, done_bytes=step.done, total_bytes=step.total)
        return StreamVerifyModelsResponse(progress=progress)
    damaged = [
        DamagedFile(file=damage.file, damage=_DAMAGES[damage.kind], description=damage.what)
        for damage in step.damages
    ]
    return StreamVerifyModelsResponse(
        verified=VerifiedModel(
            model=step.model,
            digest=step.digest,
            size_bytes=step.size,
            damaged=damaged,
            remedy=step.remedy,
        )
    )


def garbage_message(garbage: Garbage) -> GarbageMessage:
    """What takes room and belongs to no model."""
    return GarbageMessage(
        items=[
            GarbageItem(kind=_GARBAGE[item.kind], name=item.name, size_bytes=item.size)
            for item in garbage.items
        ],
        freed_bytes=garbage.size,
        downloads_in_use=garbage.downloads_in_use,
    )


def _created_at(manifest: Manifest) -> Timestamp:
    created = Timestamp()
    created.FromDatetime(datetime.fromisoformat(manifest.created_at))
    return created
