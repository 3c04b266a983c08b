"""Models, their runners, and how they come into the store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Literal, TypeAlias

from headrace.types.images import ImageTraits


class ModelKind(StrEnum):
    """What a model is for."""

    TEXT = "text"
    IMAGE = "image"
    EMBEDDING = "embedding"
    ADAPTER = "adapter"
    UNKNOWN = "unknown"


class RunnerState(StrEnum):
    """Where a runner is in its life."""

    STARTING = "starting"
    LOADING = "loading"
    SERVING = "serving"
    STALLED = "stalled"
    DRAINING = "draining"
    DEAD = "dead"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class RunnerReport:
    """How a runner does, as it says itself. Totals count from its start."""

    running: int
    """Requests in its batch."""

    waiting: int
    """Requests that wait in it for a place in the batch."""

    requests_total: int
    """Requests that have ended, for whatever reason."""

    prompt_tokens_total: int
    """Prompt tokens of the requests that it has begun."""

    cached_tokens_total: int
    """Prompt tokens that came out of its prefix cache, part of the prompt tokens."""

    output_tokens_total: int
    """Tokens that it has generated."""

    weights: str
    """Type of the weights in memory, such as "float32"."""

    weights_bytes: int
    """Bytes of the weights."""

    kv_bytes: int
    """Bytes of the KV caches that are there, the prefix cache included."""

    kv_reserved_bytes: int
    """Bytes that running requests have reserved for their KV caches."""

    kv_limit_bytes: int
    """Bytes that requests may reserve."""

    prefix_cache_bytes: int
    """Bytes of the prefix cache."""

    resident_bytes: int
    """Resident memory of its process."""

    uptime: float
    """Seconds that it has been serving."""

    adapters_bytes: int = 0
    """Bytes of the adapters that are loaded, which take of what requests may reserve."""


@dataclass(frozen=True, slots=True)
class Runner:
    """One runner as its controller sees it."""

    id: str
    """Identity, unique for the life of the controller."""

    model: str
    """Name of the model it serves."""

    digest: str
    """Digest of the model it serves."""

    state: RunnerState
    """Where it is in its life."""

    pid: int
    """Process id on the controller's machine."""

    load_fraction: float | None
    """How much of the weights is loaded, 0 to 1. None once serving."""

    active_requests: int
    """Requests that are running or waiting in it."""

    memory_bytes: int
    """Memory set aside for it."""

    expires_in: float | None
    """Seconds until it is unloaded if no request comes. None while busy, and when pinned."""

    pinned: bool
    """Whether it stays until it is unloaded by hand."""

    reason: str = ""
    """Why it goes or has gone, such as "EVICTED" or "SIGNAL". Empty: it stays, or does not say."""

    report: RunnerReport | None = None
    """What it says itself. None while it loads, if it did not answer, and where it was not asked:
    only `list_runners` asks."""


@dataclass(frozen=True, slots=True)
class RunnersSnapshot:
    """The load of a controller at a moment."""

    runners: tuple[Runner, ...]
    """The runners, the oldest first."""

    waiting: Mapping[str, int]
    """How many requests wait for a runner, by the name of their model."""

    memory_budget_bytes: int
    """Memory that all runners together may be set aside."""


@dataclass(frozen=True, slots=True)
class Model:
    """One model of the store."""

    name: str
    """Its name with the tag, such as "smollm2:135m"."""

    kind: ModelKind
    """What it is for."""

    format: str
    """How its files are kept, such as "mlx"."""

    architecture: str
    """The network's architecture, such as "llama"."""

    digest: str
    """Digest of all its files. Names with the same digest share their files."""

    parameters: int
    """Number of weights."""

    tensor_bytes: int
    """Bytes of its tensors, as they are kept."""

    size_bytes: int
    """Bytes of all its files."""

    quantization: str
    """How the weights are quantised, such as "Q4_1". Empty: they are not."""

    context_length: int
    """Tokens that its context holds. 0: unknown."""

    chat_template: bool
    """Whether it has a chat template."""

    license: str
    """Licence, as an SPDX expression where known."""

    source: str
    """Where it came from."""

    created_at: datetime
    """When it came into the store, in UTC."""

    memory_estimate_bytes: int
    """Memory that loading it would set aside."""

    runners: tuple[Runner, ...]
    """Its runners. Empty: not loaded."""

    image: ImageTraits | None = None
    """What it can be asked for. None: it draws no images."""

    embedding_dimensions: int = 0
    """Length of its vectors, where a request does not say. 0: it makes none."""

    memory_estimates: tuple[MemoryEstimate, ...] = ()
    """What loading it would set aside by how much is asked of it, the shorter context first, then
    the fewer requests. Empty: it depends on neither."""

    adapter: AdapterTraits | None = None
    """What it changes of which model. None: it is no adapter."""


@dataclass(frozen=True, slots=True)
class AdapterTraits:
    """What an adapter (LoRA) changes of which model."""

    base: str
    """Name of the model that it was imported over, with the tag."""

    base_digest: str
    """Digest of that model's files. Any model of this digest takes it."""

    rank: int
    """The greatest rank of its matrices."""

    layers: int
    """Layers that it changes."""

    modules: tuple[str, ...]
    """What it changes in them, such as "self_attn.q_proj"."""


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """What loading a model would set aside, were it served so."""

    context_length: int
    """Longest context, in tokens."""

    concurrency: int
    """Requests that are computed together."""

    bytes: int
    """Memory: weights as they would be loaded, KV cache and activations. Not every request has room
    for the whole context in it; further ones wait."""


class TransferPhase(StrEnum):
    """A part of bringing a model into the store."""

    DOWNLOAD = "download"
    VERIFY = "verify"
    CONVERT = "convert"
    STORE = "store"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class TransferProgress:
    """How far a pull or an import is."""

    phase: TransferPhase
    """What is being done."""

    done_bytes: int
    """Bytes of this phase that are done."""

    total_bytes: int | None
    """Bytes of this phase in all. None: unknown."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that has been loaded."""

    runner: Runner
    """The runner that serves it."""

    load_time: float
    """Seconds that the load took. 0 when the model was loaded already."""


@dataclass(frozen=True, slots=True)
class ModelsSnapshot:
    """All models as they are now, in place of all that was known."""

    models: tuple[Model, ...]
    """The models, by name."""


@dataclass(frozen=True, slots=True)
class ModelChanged:
    """A model is new, or something of it or its runners has changed."""

    model: Model
    """The model as it was then. A runner that has ended is in it once, dead and with its reason."""


@dataclass(frozen=True, slots=True)
class ModelDeleted:
    """A model is gone."""

    name: str
    """Its name with the tag."""


@dataclass(frozen=True, slots=True)
class WatchCheckpoint:
    """All that there is to tell has been told; the watch can be resumed from here."""

    resume_token: str
    """For `watch_models`."""


Quantize: TypeAlias = Literal[4, 8, "none"]
"""How an import keeps the matrices of a language model: bits, or in floating point."""
ModelsEvent: TypeAlias = ModelsSnapshot | ModelChanged | ModelDeleted | WatchCheckpoint
"""What a watch tells."""
