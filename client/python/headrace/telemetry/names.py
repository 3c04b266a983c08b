"""Names of spans, attributes and metrics, in one place.

RPC follows OpenTelemetry's semantic conventions 1.44; GenAI those in development, whose names may
still change. Prompt and output text have no name here: they are not recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from opentelemetry.metrics import CallbackOptions, Counter, Histogram, Meter, Observation

Observe = Callable[[CallbackOptions], Iterable[Observation]]


@dataclass(frozen=True, slots=True)
class HistogramSpec:
    """A histogram's name and buckets."""

    name: str
    description: str
    boundaries: tuple[float, ...]
    unit: str = "s"

    def create(self, meter: Meter) -> Histogram:
        """Make the instrument."""
        return meter.create_histogram(
            self.name,
            unit=self.unit,
            description=self.description,
            explicit_bucket_boundaries_advisory=self.boundaries,
        )


@dataclass(frozen=True, slots=True)
class CounterSpec:
    """A sum that only grows."""

    name: str
    description: str
    unit: str

    def create(self, meter: Meter) -> Counter:
        """Make the instrument."""
        return meter.create_counter(self.name, unit=self.unit, description=self.description)

    def observe(self, meter: Meter, callback: Observe) -> None:
        """Have the sum read whenever it is exported."""
        meter.create_observable_counter(
            self.name, [callback], unit=self.unit, description=self.description
        )


@dataclass(frozen=True, slots=True)
class LevelSpec:
    """A sum that grows and falls."""

    name: str
    description: str
    unit: str

    def observe(self, meter: Meter, callback: Observe) -> None:
        """Have the sum read whenever it is exported."""
        meter.create_observable_up_down_counter(
            self.name, [callback], unit=self.unit, description=self.description
        )


RPC_SYSTEM_NAME: Final = "rpc.system.name"
RPC_METHOD: Final = "rpc.method"
RPC_STATUS_CODE: Final = "rpc.response.status_code"
ERROR_TYPE: Final = "error.type"
SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"
NETWORK_PEER_ADDRESS: Final = "network.peer.address"
NETWORK_PEER_PORT: Final = "network.peer.port"

_RPC_BOUNDARIES: Final = (
    *(0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0),
)
RPC_SERVER_DURATION: Final = HistogramSpec(
    "rpc.server.call.duration", "Duration of an incoming call.", _RPC_BOUNDARIES
)
RPC_CLIENT_DURATION: Final = HistogramSpec(
    "rpc.client.call.duration", "Duration of an outgoing call.", _RPC_BOUNDARIES
)

GEN_AI_PROVIDER: Final = "mlx"
GEN_AI_PROVIDER_NAME: Final = "gen_ai.provider.name"
GEN_AI_OPERATION_NAME: Final = "gen_ai.operation.name"
GEN_AI_REQUEST_MODEL: Final = "gen_ai.request.model"
GEN_AI_REQUEST_MAX_TOKENS: Final = "gen_ai.request.max_tokens"
GEN_AI_REQUEST_TEMPERATURE: Final = "gen_ai.request.temperature"
GEN_AI_REQUEST_TOP_P: Final = "gen_ai.request.top_p"
GEN_AI_REQUEST_TOP_K: Final = "gen_ai.request.top_k"
GEN_AI_REQUEST_SEED: Final = "gen_ai.request.seed"
GEN_AI_RESPONSE_ID: Final = "gen_ai.response.id"
GEN_AI_RESPONSE_MODEL: Final = "gen_ai.response.model"
GEN_AI_RESPONSE_FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
GEN_AI_EMBEDDINGS_DIMENSION_COUNT: Final = "gen_ai.embeddings.dimension.count"
GEN_AI_USAGE_INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
GEN_AI_USAGE_OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"

OPERATION_CHAT: Final = "chat"
OPERATION_TEXT_COMPLETION: Final = "text_completion"
OPERATION_GENERATE_CONTENT: Final = "generate_content"
OPERATION_EMBEDDINGS: Final = "embeddings"
OPERATION_SCORE: Final = "score"
"""No name of the conventions', which have none for it."""

GEN_AI_REQUEST_DURATION: Final = HistogramSpec(
    "gen_ai.server.request.duration",
    "Duration of a request, from its arrival to its last token.",
    tuple(0.01 * 2**power for power in range(14)),
)
GEN_AI_TIME_TO_FIRST_TOKEN: Final = HistogramSpec(
    "gen_ai.server.time_to_first_token",
    "Time from a request's arrival to its first token.",
    (
        *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
        *(1.0, 2.5, 5.0, 7.5, 10.0),
    ),
)
GEN_AI_TIME_PER_OUTPUT_TOKEN: Final = HistogramSpec(
    "gen_ai.server.time_per_output_token",
    "Time per output token after the first.",
    (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5),
)

SPAN_QUEUE: Final = "headrace.queue"
SPAN_LOAD: Final = "headrace.load"
SPAN_LOAD_WAIT: Final = "headrace.load.wait"
"""Of one who waits for a load that another has caused, and that it links to."""
SPAN_LOAD_IMPORTS: Final = "headrace.load.imports"
SPAN_LOAD_PREPARE: Final = "headrace.load.prepare"
SPAN_LOAD_WEIGHTS: Final = "headrace.load.weights"
SPAN_LOAD_WARM_UP: Final = "headrace.load.warm_up"
SPAN_PREFILL: Final = "headrace.prefill"
SPAN_PREFILL_CHUNK: Final = "headrace.prefill.chunk"
SPAN_DECODE: Final = "headrace.decode"
SPAN_IMAGE_ENCODING: Final = "headrace.image.encoding"
SPAN_IMAGE_DENOISING: Final = "headrace.image.denoising"
SPAN_IMAGE_DECODING: Final = "headrace.image.decoding"
SPAN_IMAGE_WRITING: Final = "headrace.image.writing"
SPAN_EMBEDDING: Final = "headrace.embedding"
SPAN_SCORE: Final = "headrace.score"

EVENT_FIRST_TOKEN: Final = "headrace.first_token"
EVENT_RUNNER_DIED: Final = "headrace.runner.died"

EXCEPTION_MESSAGE: Final = "exception.message"
EXCEPTION_STACKTRACE: Final = "exception.stacktrace"

HEADRACE_ATTEMPT: Final = "headrace.attempt.number"
"""1 for the first runner that a call is relayed to."""
HEADRACE_ERROR_REASON: Final = "headrace.error.reason"
"""Of a call that ended in a typed error, also where that is no fault of its server."""
HEADRACE_ERROR_DETAILS: Final = "headrace.error.details"
"""Names and numbers that the contract documents for the reason; never a prompt or an output."""
HEADRACE_MODEL_DIGEST: Final = "headrace.model.digest"
HEADRACE_RUNNER_ID: Final = "headrace.runner.id"
HEADRACE_RUNNER_SPARE: Final = "headrace.runner.spare"
"""Whether the process was there before it was wanted."""
HEADRACE_RUNNER_MEMORY: Final = "headrace.runner.memory"
"""Bytes that the controller counts it for."""
HEADRACE_RUNNER_CAUSE_OF_DEATH: Final = "headrace.runner.cause_of_death"
HEADRACE_RUNNER_LAST_WORDS: Final = "headrace.runner.last_words"
"""What it printed outside its log just before its end."""
HEADRACE_QUEUE_POSITION: Final = "headrace.queue.position"
"""Requests for the same model that were ahead when it came."""
HEADRACE_QUEUE_RUNNING: Final = "headrace.queue.running"
"""Requests for the same model that had a runner when it came, where it did not get one at once."""
HEADRACE_RESUMED: Final = "headrace.stream.resumed"
"""Moves to another runner."""
HEADRACE_RESUMED_TOKENS: Final = "headrace.stream.resumed_tokens"
"""Output tokens that earlier runners have given."""
HEADRACE_IMAGES_SENT: Final = "headrace.stream.images"
"""Images that the client was sent whole."""
HEADRACE_WEIGHTS: Final = "headrace.weights.type"
HEADRACE_WEIGHTS_BYTES: Final = "headrace.weights.bytes"
HEADRACE_PREFILL_TOKENS: Final = "headrace.prefill.tokens"
"""Prompt tokens that were computed."""
HEADRACE_PREFILL_CACHED_TOKENS: Final = "headrace.prefill.cached_tokens"
"""Prompt tokens that the prefix cache had."""
HEADRACE_PREFILL_CHUNKS: Final = "headrace.prefill.chunks"
"""Passes of the model that a span stands for."""

HEADRACE_IMAGE_WIDTH: Final = "headrace.image.width"
HEADRACE_IMAGE_HEIGHT: Final = "headrace.image.height"
HEADRACE_IMAGE_STEPS: Final = "headrace.image.steps"
HEADRACE_IMAGE_COUNT: Final = "headrace.image.count"
"""Images that were asked for."""
HEADRACE_IMAGE_INPUTS: Final = "headrace.image.inputs"
HEADRACE_IMAGE_TOGETHER: Final = "headrace.image.together"
"""Images that a phase worked on, those of other requests included."""

HEADRACE_EMBEDDING_INPUTS: Final = "headrace.embedding.inputs"
HEADRACE_EMBEDDING_BATCHES: Final = "headrace.embedding.batches"
HEADRACE_SCORE_CONTINUATIONS: Final = "headrace.score.continuations"
HEADRACE_SCORE_PASSES: Final = "headrace.score.passes"
"""Batches that the inputs were computed in, those shared with other requests included."""

HEADRACE_MODEL_NAME: Final = "headrace.model.name"
HEADRACE_RUNNER_STATE: Final = "headrace.runner.state"
HEADRACE_UNLOAD_REASON: Final = "headrace.unload.reason"
GEN_AI_TOKEN_TYPE: Final = "gen_ai.token.type"
TOKEN_TYPE_INPUT: Final = "input"
TOKEN_TYPE_OUTPUT: Final = "output"

# Of one runner: exported by itself, and shown by its controller for each.

ENGINE_RUNNING: Final = LevelSpec("headrace.engine.running", "Requests in the batch.", "{request}")
ENGINE_WAITING: Final = LevelSpec(
    "headrace.engine.waiting", "Requests that wait for a place in the batch.", "{request}"
)
ENGINE_REQUESTS: Final = CounterSpec(
    "headrace.engine.requests", "Requests ended, for whatever reason.", "{request}"
)
ENGINE_TOKENS: Final = CounterSpec(
    "headrace.engine.tokens",
    "Prompt tokens of requests begun (input), cached ones included, and tokens generated (output).",
    "{token}",
)
ENGINE_PREFIX_CACHE_TOKENS: Final = CounterSpec(
    "headrace.engine.prefix_cache.tokens",
    "Prompt tokens that came out of the prefix cache.",
    "{token}",
)
ENGINE_PREFIX_CACHE_LOOKUPS: Final = CounterSpec(
    "headrace.engine.prefix_cache.lookups", "Prompts begun.", "{prompt}"
)
ENGINE_PREFIX_CACHE_HITS: Final = CounterSpec(
    "headrace.engine.prefix_cache.hits",
    "Prompts whose beginning the prefix cache knew.",
    "{prompt}",
)
ENGINE_PREFIX_CACHE_SIZE: Final = LevelSpec(
    "headrace.engine.prefix_cache.size", "KV caches of earlier prompts and outputs.", "By"
)
ENGINE_KV_SIZE: Final = LevelSpec(
    "headrace.engine.kv.size", "KV caches, the prefix cache included.", "By"
)
ENGINE_KV_RESERVED: Final = LevelSpec(
    "headrace.engine.kv.reserved", "What running requests have reserved for KV caches.", "By"
)
ENGINE_KV_LIMIT: Final = LevelSpec(
    "headrace.engine.kv.limit", "The most that requests may reserve for KV caches.", "By"
)
ENGINE_MEMORY_WEIGHTS: Final = LevelSpec("headrace.engine.memory.weights", "Weights.", "By")
ENGINE_MEMORY_ADAPTERS: Final = LevelSpec(
    "headrace.engine.memory.adapters", "Adapters that are loaded.", "By"
)
ENGINE_MEMORY_ACTIVE: Final = LevelSpec(
    "headrace.engine.memory.active", "All that MLX has in use.", "By"
)
ENGINE_MEMORY_REUSABLE: Final = LevelSpec(
    "headrace.engine.memory.reusable", "What MLX keeps for reuse.", "By"
)
ENGINE_MEMORY_RESIDENT: Final = LevelSpec(
    "headrace.engine.memory.resident", "Resident memory of the runner's process.", "By"
)
ENGINE_STEP_DURATION: Final = HistogramSpec(
    "headrace.engine.step.duration",
    "Duration of a step, which gives every row its next token.",
    (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
ENGINE_BATCH_SIZE: Final = HistogramSpec(
    "headrace.engine.batch.size",
    "Rows in the batch, of each step.",
    (1.0, 2.0, 4.0, 8.0, 16.0, 24.0, 32.0, 48.0, 64.0, 128.0),
    "{row}",
)

# Of the controller.

RUNNING: Final = LevelSpec("headrace.running", "Calls that have a runner.", "{call}")
WAITING: Final = LevelSpec("headrace.waiting", "Calls that wait for a runner.", "{call}")
QUEUE_LIMIT: Final = LevelSpec("headrace.queue.limit", "Calls that may wait in all.", "{call}")
QUEUE_DURATION: Final = HistogramSpec(
    "headrace.queue.duration",
    "Time that a call waited for a runner, loads included.",
    (0.001, 0.01, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0),
)
REFUSALS: Final = CounterSpec("headrace.refusals", "Calls that were given no runner.", "{call}")
RUNNERS: Final = LevelSpec("headrace.runners", "Runners by where they are in life.", "{runner}")
LOAD_DURATION: Final = HistogramSpec(
    "headrace.load.duration",
    "Time from the order to load a model until it serves, or has failed.",
    (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0),
)
UNLOADS: Final = CounterSpec("headrace.unloads", "Runners that were told to stop.", "{runner}")
CRASHES: Final = CounterSpec("headrace.crashes", "Runners that ended by themselves.", "{runner}")
RESUMES: Final = CounterSpec(
    "headrace.resumes", "Moves of a call to another runner after it lost one.", "{move}"
)
TOKENS: Final = CounterSpec(
    "headrace.tokens", "Tokens of prompts (input), and tokens sent to clients (output).", "{token}"
)
IMAGES: Final = CounterSpec("headrace.images", "Images sent whole to clients.", "{image}")
CIRCUITS_OPEN: Final = LevelSpec(
    "headrace.circuits.open", "Models that are not loaded since they crashed too often.", "{model}"
)
MEMORY_LIMIT: Final = LevelSpec(
    "headrace.memory.limit", "What all runners together may hold.", "By"
)
MEMORY_HELD: Final = LevelSpec(
    "headrace.memory.held", "What runners are counted with, estimated or reported.", "By"
)
MEMORY_SHORTAGE: Final = LevelSpec(
    "headrace.memory.shortage", "What the machine lacks to what has to stay free on it.", "By"
)
RUNNER_MEMORY: Final = LevelSpec("headrace.runner.memory", "What one runner is counted with.", "By")
