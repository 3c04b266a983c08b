"""What the store and the scheduler know, as messages of the contract. Pure."""

from __future__ import annotations

import math
from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp

from headrace.v1.common_pb2 import ModelKind, RunnerState, RunnerStatus
from headrace.v1.model_pb2 import Model as ModelMessage
from headrace.v1.model_pb2 import TransferPhase, TransferProgress
from headrace_server.relay import duration
from headrace_server.runners.lifecycle import State
from headrace_server.scheduling.planner import Model
from headrace_server.scheduling.state import Phase, Slot
from headrace_server.scheduling.ticket import Life
from headrace_server.store import Manifest, Progress

_KINDS = {
    "text": ModelKind.MODEL_KIND_TEXT,
    "image": ModelKind.MODEL_KIND_IMAGE,
    "embedding": ModelKind.MODEL_KIND_EMBEDDING,
}
_STATES = {
    State.STARTING: RunnerState.RUNNER_STATE_STARTING,
    State.LOADING: RunnerState.RUNNER_STATE_LOADING,
    State.SERVING: RunnerState.RUNNER_STATE_SERVING,
    State.STALLED: RunnerState.RUNNER_STATE_STALLED,
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


def model_message(model: Model, runners: list[RunnerStatus]) -> ModelMessage:
    """A model of the store, and its runners."""
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
        runners=runners,
    )


def runner_status(slot: Slot, life: Life, now: float) -> RunnerStatus:
    """A runner as its controller sees it."""
    runner = life.runner
    state = _STATES[runner.state if runner is not None else State.STARTING]
    if slot.phase in (Phase.RETIRING, Phase.STOPPING) and state != RunnerState.RUNNER_STATE_DEAD:
        state = RunnerState.RUNNER_STATE_DRAINING
    status = RunnerStatus(
        id=slot.runner,
        model=life.wanted.name,
        digest=slot.key,
        state=state,
        pid=(runner.pid if runner is not None else None) or 0,
        active_requests=len(slot.leases),
        memory_bytes=slot.memory,
        pinned=slot.pinned,
    )
    if life.loaded_at is None:
        status.load_fraction = runner.fraction if runner is not None else 0.0
    if math.isfinite(slot.expires_at):
        status.expires_in.CopyFrom(duration(max(0.0, slot.expires_at - now)))
    return status


def transfer_progress(progress: Progress) -> TransferProgress:
    """How far a pull or an import is."""
    return TransferProgress(
        phase=_PHASES.get(progress.phase, TransferPhase.TRANSFER_PHASE_UNSPECIFIED),
        done_bytes=progress.done,
        total_bytes=progress.total or None,
    )


def _created_at(manifest: Manifest) -> Timestamp:
    created = Timestamp()
    created.FromDatetime(datetime.fromisoformat(manifest.created_at))
    return created
