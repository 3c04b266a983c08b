"""Turns the messages of answers into the SDK's own types. Pure; raises nothing of its own."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC

from google.protobuf.duration_pb2 import Duration

from headrace import types
from headrace._enums import enum_of as _enum
from headrace.v1 import (
    common_pb2,
    completion_pb2,
    embedding_pb2,
    image_pb2,
    model_pb2,
    runner_pb2,
    score_pb2,
    tokenize_pb2,
)


def completion_event(
    message: completion_pb2.StreamCompletionResponse,
) -> types.CompletionEvent | None:
    """One event of a completion; None for a kind that this version does not know."""
    match message.WhichOneof("event"):
        case "delta":
            return _delta(message.delta)
        case "progress":
            return _progress(message.progress)
        case "started":
            return _started(message.started)
        case "completed":
            return _completed(message.completed)
        case None:
            return None


def tokens(message: tokenize_pb2.TokenizeResponse) -> types.Tokens:
    """The tokens of a text."""
    return types.Tokens(
        token_ids=tuple(message.token_ids),
        pieces=tuple(
            types.TokenPiece(token_id=p.token_id, piece=p.piece, start=p.start, end=p.end)
            for p in message.pieces
        ),
    )


def detokenized(message: tokenize_pb2.DetokenizeResponse) -> types.Detokenized:
    """The text of tokens."""
    return types.Detokenized(data=message.data, text=message.text)


def rendered_chat(message: tokenize_pb2.RenderChatResponse) -> types.RenderedChat:
    """A chat as a prompt."""
    return types.RenderedChat(prompt=message.prompt, token_ids=tuple(message.token_ids))


def token_count(message: tokenize_pb2.CountTokensResponse) -> types.TokenCount:
    """How long a prompt is."""
    return types.TokenCount(
        token_count=message.token_count, context_length=message.context_length, fits=message.fits
    )


def embeddings(message: embedding_pb2.EmbedResponse) -> types.Embeddings:
    """The vectors of texts."""
    return types.Embeddings(
        vectors=[list(embedding.values) for embedding in message.embeddings],
        dimensions=message.dimensions,
        normalized=message.normalized,
        prompt_tokens=tuple(embedding.prompt_tokens for embedding in message.embeddings),
        truncated=tuple(embedding.truncated for embedding in message.embeddings),
        usage=_usage(message.usage),
        digest=message.digest,
    )


def scores(message: score_pb2.ScoreResponse) -> types.Scores:
    """How likely continuations are."""
    return types.Scores(
        scores=tuple(
            types.ContinuationScore(
                logprob=score.logprob,
                token_ids=tuple(score.token_ids),
                is_greedy=score.is_greedy,
                logprobs=tuple(_logprob(entry) for entry in score.logprobs),
            )
            for score in message.scores
        ),
        usage=_usage(message.usage),
        timings=_timings(message.timings),
        digest=message.digest,
    )


def model(message: model_pb2.Model) -> types.Model:
    """One model of the store."""
    return types.Model(
        name=message.name,
        kind=_enum(types.ModelKind, common_pb2.ModelKind.Name, message.kind, "MODEL_KIND_"),
        format=message.format,
        architecture=message.architecture,
        digest=message.digest,
        parameters=message.parameters,
        tensor_bytes=message.tensor_bytes,
        size_bytes=message.size_bytes,
        quantization=message.quantization,
        context_length=message.context_length,
        chat_template=message.chat_template,
        license=message.license,
        source=message.source,
        created_at=message.created_at.ToDatetime(tzinfo=UTC),
        memory_estimate_bytes=message.memory_estimate_bytes,
        runners=tuple(runner(status) for status in message.runners),
        image=_traits(message.image) if message.HasField("image") else None,
        embedding_dimensions=message.embedding_dimensions,
        memory_estimates=tuple(
            types.MemoryEstimate(
                context_length=estimate.context_length,
                concurrency=estimate.concurrency,
                bytes=estimate.bytes,
            )
            for estimate in message.memory_estimates
        ),
        adapter=_adapter(message.adapter) if message.HasField("adapter") else None,
    )


def _adapter(message: model_pb2.AdapterTraits) -> types.AdapterTraits:
    return types.AdapterTraits(
        base=message.base,
        base_digest=message.base_digest,
        rank=message.rank,
        layers=message.layers,
        modules=tuple(message.modules),
    )


def image_event(message: image_pb2.StreamImageResponse) -> types.ImageEvent | None:
    """One event of a stream of images; None for a kind that this version does not know."""
    match message.WhichOneof("event"):
        case "progress":
            return _image_progress(message.progress)
        case "chunk":
            chunk = message.chunk
            return types.ImageChunk(index=chunk.index, offset=chunk.offset, data=chunk.data)
        case "preview":
            preview = message.preview
            return types.ImagePreview(
                index=preview.index,
                step=preview.step,
                media_type=preview.media_type,
                data=preview.data,
            )
        case "started":
            return _image_started(message.started)
        case "completed":
            completed = message.completed
            return types.ImageCompleted(
                timings=_timings(completed.timings), resumed=completed.resumed
            )
        case None:
            return None


def image_result(message: image_pb2.ImageResult, data: bytes) -> types.ImageResult:
    """One file, of its description and its bytes."""
    return types.ImageResult(
        index=message.index,
        seed=message.seed,
        width=message.width,
        height=message.height,
        media_type=message.media_type,
        sha256=message.sha256,
        data=data,
    )


def runner(message: common_pb2.RunnerStatus) -> types.Runner:
    """One runner as its controller sees it."""
    return types.Runner(
        id=message.id,
        model=message.model,
        digest=message.digest,
        state=_enum(types.RunnerState, common_pb2.RunnerState.Name, message.state, "RUNNER_STATE_"),
        pid=message.pid,
        load_fraction=message.load_fraction if message.HasField("load_fraction") else None,
        active_requests=message.active_requests,
        memory_bytes=message.memory_bytes,
        expires_in=_seconds(message.expires_in) if message.HasField("expires_in") else None,
        pinned=message.pinned,
        reason=message.reason,
    )


def runners_snapshot(message: model_pb2.ListRunnersResponse) -> types.RunnersSnapshot:
    """The load of a controller."""
    return types.RunnersSnapshot(
        runners=tuple(
            replace(
                runner(listed.status),
                report=_report(listed.report) if listed.HasField("report") else None,
            )
            for listed in message.runners
        ),
        waiting={queue.model: queue.waiting for queue in message.queues},
        memory_budget_bytes=message.memory_budget_bytes,
    )


def models_event(message: model_pb2.WatchModelsResponse) -> types.ModelsEvent | None:
    """One event of a watch; None for one that this version does not know."""
    match message.WhichOneof("event"):
        case "snapshot":
            return types.ModelsSnapshot(tuple(model(item) for item in message.snapshot.models))
        case "changed":
            return types.ModelChanged(model(message.changed))
        case "deleted":
            return types.ModelDeleted(message.deleted)
        case "checkpoint":
            return types.WatchCheckpoint(message.checkpoint.resume_token)
        case _:
            return None


def transfer_progress(message: model_pb2.TransferProgress) -> types.TransferProgress:
    """How far a pull or an import is."""
    return types.TransferProgress(
        phase=_enum(
            types.TransferPhase, model_pb2.TransferPhase.Name, message.phase, "TRANSFER_PHASE_"
        ),
        done_bytes=message.done_bytes,
        total_bytes=message.total_bytes if message.HasField("total_bytes") else None,
    )


def loaded(message: model_pb2.LoadModelResponse) -> types.Loaded:
    """A model that has been loaded."""
    return types.Loaded(runner=runner(message.runner), load_time=_seconds(message.load_time))


def _report(message: runner_pb2.Runner) -> types.RunnerReport:
    load, memory = message.load, message.memory
    return types.RunnerReport(
        running=load.running,
        waiting=load.waiting,
        requests_total=load.requests_total,
        prompt_tokens_total=load.prompt_tokens_total,
        cached_tokens_total=load.cached_tokens_total,
        output_tokens_total=load.output_tokens_total,
        weights=message.weights,
        weights_bytes=memory.weights_bytes,
        kv_bytes=memory.kv_bytes,
        kv_reserved_bytes=memory.kv_reserved_bytes,
        kv_limit_bytes=memory.kv_limit_bytes,
        prefix_cache_bytes=memory.prefix_cache_bytes,
        resident_bytes=memory.resident_bytes,
        uptime=_seconds(message.uptime),
        adapters_bytes=memory.adapters_bytes,
    )


def _started(message: completion_pb2.CompletionStarted) -> types.Started:
    return types.Started(
        id=message.id,
        model=message.model,
        digest=message.digest,
        runner=message.runner,
        prompt_tokens=message.prompt_tokens,
        cached_tokens=message.cached_tokens,
        seed=message.seed,
        adapter=message.adapter,
    )


def _progress(message: completion_pb2.CompletionProgress) -> types.Progress:
    known = {field.name: value for field, value in message.ListFields()}
    return types.Progress(
        queue_position=known.get("queue_position"),
        load_fraction=known.get("load_fraction"),
        prompt_tokens_done=known.get("prompt_tokens_done"),
        prompt_tokens_total=known.get("prompt_tokens_total"),
    )


def _image_started(message: image_pb2.ImageStarted) -> types.ImageStarted:
    return types.ImageStarted(
        id=message.id,
        model=message.model,
        digest=message.digest,
        runner=message.runner,
        seed=message.seed,
        width=message.width,
        height=message.height,
        steps=message.steps,
    )


def _image_progress(message: image_pb2.ImageProgress) -> types.ImageProgress:
    known = {field.name: value for field, value in message.ListFields()}
    return types.ImageProgress(
        phase=_enum(types.ImagePhase, image_pb2.ImagePhase.Name, message.phase, "IMAGE_PHASE_"),
        index=message.index,
        step=known.get("step"),
        total=known.get("total"),
        queue_position=known.get("queue_position"),
        load_fraction=known.get("load_fraction"),
        remaining=_seconds(message.remaining) if "remaining" in known else None,
    )


def _traits(message: model_pb2.ImageTraits) -> types.ImageTraits:
    return types.ImageTraits(
        width=message.width,
        height=message.height,
        size_step=message.size_step,
        min_size=message.min_size,
        max_size=message.max_size,
        steps=message.steps,
        max_steps=message.max_steps,
        guidance=message.guidance if message.HasField("guidance") else None,
        negative_prompt=message.negative_prompt,
        max_input_images=message.max_input_images,
        strength=message.strength if message.HasField("strength") else None,
        max_batch=message.max_batch,
    )


def _delta(message: completion_pb2.CompletionDelta) -> types.Delta:
    return types.Delta(
        text=message.text,
        reasoning=message.reasoning,
        token_ids=tuple(message.token_ids),
        logprobs=tuple(_logprob(entry) for entry in message.logprobs),
        output_tokens=message.output_tokens,
        tool_calls=tuple(_tool_call_part(part) for part in message.tool_calls),
    )


def _tool_call_part(message: completion_pb2.ToolCallPart) -> types.ToolCallPart:
    return types.ToolCallPart(
        index=message.index,
        arguments_json=message.arguments_json,
        id=message.id if message.HasField("id") else None,
        name=message.name if message.HasField("name") else None,
    )


def _logprob(message: completion_pb2.TokenLogprob) -> types.TokenLogprob:
    return types.TokenLogprob(
        token_id=message.token_id,
        logprob=message.logprob,
        piece=message.piece,
        top=tuple(_logprob(entry) for entry in message.top),
    )


def _completed(message: completion_pb2.CompletionCompleted) -> types.Completed:
    # The SDK asks for one choice; without any the default message reads as UNKNOWN.
    choice = message.choices[0] if message.choices else completion_pb2.ChoiceResult()
    matched = choice.WhichOneof("matched")
    return types.Completed(
        finish_reason=_enum(
            types.FinishReason,
            completion_pb2.FinishReason.Name,
            choice.finish_reason,
            "FINISH_REASON_",
        ),
        matched=getattr(choice, matched) if matched else None,
        usage=_usage(message.usage),
        timings=_timings(message.timings),
        resumed=message.resumed,
    )


def _usage(message: common_pb2.Usage) -> types.Usage:
    return types.Usage(
        prompt_tokens=message.prompt_tokens,
        cached_tokens=message.cached_tokens,
        output_tokens=message.output_tokens,
    )


def _timings(message: common_pb2.Timings) -> types.Timings:
    return types.Timings(
        queue=_seconds(message.queue),
        load=_seconds(message.load),
        prefill=_seconds(message.prefill),
        decode=_seconds(message.decode),
        total=_seconds(message.total),
    )


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1e9
