"""The settings of a controller: one table, from which options, file and docs all follow."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from headrace._target import DEFAULT_TARGET
from headrace.rpc.options import ConnectionLimits
from headrace_server.config import values
from headrace_server.config.values import Kind

Key = tuple[str, str]
"""One setting: the model whose table it is in, or "" for the controller's own; and its key."""
DtypeChoice = Literal["auto", "float32", "int8", "stored"]


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """How one model is served. The fields are settings of the same names."""

    keep_alive: float
    pinned: bool
    context: int | None
    dtype: DtypeChoice
    max_concurrency: int
    replicas: int
    prefix_cache: int | None
    drafts: bool
    adapter: str | None

    @property
    def of_the_runner(self) -> str:
        """Those that a running runner cannot change: who wants others wants another runner."""
        told = (self.context, self.dtype, self.max_concurrency, self.prefix_cache, self.drafts)
        return "/".join(map(str, told))


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Settings of the controller. Times in seconds, memory in bytes."""

    listen: str = DEFAULT_TARGET
    """ "unix:/path" or "host:port"; port 0 takes a free one."""
    metrics_listen: str | None = None
    """ "host:port" of the metrics for Prometheus; None: they are not served."""
    insecure: bool = False
    """Whether addresses beyond this machine are allowed without TLS."""
    tls_cert: Path | None = None
    """The certificate for TLS, with those that lead to its authority, in PEM; None: no TLS."""
    tls_key: Path | None = None
    """Its private key."""
    tls_client_ca: Path | None = None
    """Authorities one of which has to have signed a client's certificate; None: they need none."""
    tokens: Path | None = None
    """The file with the tokens of those who may call; None: everybody may."""
    home: Path = Path("~/.headrace")
    """Where models and caches are kept."""
    memory: int | None = None
    """All runners together; None: 80% of what is available at the start."""
    preload: tuple[str, ...] = ()
    """Models to load at once."""
    blas: str | None = None
    """A BLAS library to preload into runners on a Linux CPU; None: find one."""
    threads: int | None = None
    """CPU cores of a runner; None: all."""
    keep_alive: float = 300.0
    """How long an idle model stays where the request does not say; infinite: for good."""
    pinned: bool = False
    """Whether models stay until they are unloaded by hand, whatever requests say."""
    context: int | None = None
    """Tokens of prompt and output together, at most; None: what each model was made for."""
    dtype: DtypeChoice = "auto"
    """Type of the weights in memory; auto: the faster one that fits."""
    max_concurrency: int = 32
    """Requests that one runner serves at once."""
    replicas: int = 1
    """Runners of one model, at most."""
    prefix_cache: int | None = None
    """Of each runner, to remember earlier prompts in; None: by the model and the memory."""
    drafts: bool = True
    """Whether runners may guess tokens and verify several in a step."""
    adapter: None = None
    """Each model has its own, or none."""
    queue_per_model: int = 64
    """Requests that may wait for one model."""
    queue_total: int = 256
    """Requests that may wait in all."""
    max_stream_time: float = 3600.0
    """The deadline of a call whose client sets none."""
    max_connections: int = 1024
    """Connections at once."""
    streams_per_connection: int = 1024
    """Calls at once of one connection."""
    max_connection_idle: float = 600.0
    """After which a connection without a call is closed; infinite: it stays."""
    max_connection_age: float = math.inf
    """After which a connection takes no more calls; infinite: it goes on."""
    stall_timeout: float = 60.0
    """Time without progress after which a runner counts as stalled."""
    grace: float = 30.0
    """How long running streams may go on after SIGTERM."""
    spare: bool | None = None
    """Whether a runner without a model is kept ready; None: unless memory is short."""
    core_dumps: bool = False
    """Whether a runner that crashes may write its memory to disk."""
    takeover: bool = False
    """Whether to take the address over from the controller that listens there."""
    log_format: Literal["auto", "json", "text"] = "auto"
    log_level: str = "info"
    telemetry_store: int = 64 << 20
    """Of the file with the last log lines and spans; 0: there is none."""
    parent: Literal["stdin"] | None = None
    """Whose end is also the controller's: the process that holds its stdin."""
    ready_fd: int | None = None
    """Where to write a line of JSON once the controller listens."""
    models: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: MappingProxyType({}))
    """What single models have otherwise: fields of ModelOptions, by `name:tag`."""

    @property
    def connection_limits(self) -> ConnectionLimits:
        """What clients may have of its connections."""
        return ConnectionLimits(
            self.max_connections,
            self.streams_per_connection,
            self.max_connection_idle,
            self.max_connection_age,
        )

    def options(self, name: str) -> ModelOptions:
        """How the model of this full name is served."""
        tables = (self.models[name] for name in values.names_of(name) if name in self.models)
        own = next(tables, {})
        return ModelOptions(**{key: own.get(key, getattr(self, key)) for key in _MODEL_FIELDS})


_MODEL_FIELDS = tuple(option.name for option in fields(ModelOptions))
_DEFAULTS = ServerConfig()


@dataclass(frozen=True)
class Setting:
    """One setting."""

    key: str
    """Its name in the file, and in ServerConfig."""
    group: str
    kind: Kind
    help: str
    live: bool = False
    """Whether a change takes effect on SIGHUP; the others need a restart."""
    unset: str = ""
    """What holds where nobody says anything; empty: the default is a plain value."""
    other_variable: str = ""
    """Of the environment, which counts where its own is not set."""
    only_per_model: bool = False
    """Whether it stands in models' tables and nowhere else."""

    @property
    def option(self) -> str:
        """Its name on the command line."""
        return "--" + self.key.replace("_", "-")

    @property
    def variable(self) -> str:
        """Its name in the environment."""
        return f"HEADRACE_{self.key.upper()}"

    @property
    def per_model(self) -> bool:
        """Whether a model's own table may have it."""
        return self.key in _MODEL_FIELDS

    @property
    def default(self) -> Any:
        """Its value where nobody says anything."""
        return getattr(_DEFAULTS, self.key)


SETTINGS = (
    Setting(
        "listen",
        "where",
        values.ADDRESS,
        "host:port or unix:/path; port 0 takes a free one",
        other_variable="HEADRACE_HOST",
    ),
    Setting(
        "metrics_listen",
        "where",
        values.TCP_ADDRESS,
        "host:port where Prometheus finds metrics; port 0 takes a free one",
        unset="not served",
    ),
    Setting("insecure", "where", values.FLAG, "allow an address beyond this machine, without TLS"),
    Setting(
        "tls_cert",
        "security",
        values.FILE,
        "certificate chain in PEM, read again when it changes",
        unset="no TLS",
    ),
    Setting("tls_key", "security", values.FILE, "its private key in PEM", unset="no TLS"),
    Setting(
        "tls_client_ca",
        "security",
        values.FILE,
        "authorities in PEM that have to have signed a client's certificate",
        unset="clients need no certificate",
    ),
    Setting(
        "tokens",
        "security",
        values.FILE,
        "tokens of those who may call, as `headrace token` writes them; read again when it changes",
        unset="everybody may call",
    ),
    Setting(
        "takeover",
        "where",
        values.FLAG,
        "take the address over from the controller that has it, which finishes its streams",
    ),
    Setting("home", "where", values.DIRECTORY, "models and caches"),
    Setting("preload", "models", values.MODELS, "load MODEL at once", live=True, unset="none"),
    Setting(
        "memory",
        "models",
        values.SIZE,
        "of all models together, such as 12GiB",
        live=True,
        unset="80% of what is available at the start",
    ),
    Setting(
        "keep_alive",
        "models",
        values.KEEP_ALIVE,
        "how long an idle model stays, such as 90, 5m, 1h or forever; 0: not at all",
        live=True,
    ),
    Setting(
        "pinned",
        "models",
        values.FLAG,
        "stays until it is unloaded by hand, whatever requests say",
        live=True,
    ),
    Setting(
        "context",
        "models",
        values.TOKENS,
        "tokens of prompt and output together; never more than the model was made for",
        live=True,
        unset="the model's own",
    ),
    Setting(
        "dtype",
        "models",
        values.one_of("auto", "float32", "int8", "stored"),
        "type of the weights in memory; int8: as stored, with products of 8-bit integers on a CPU; "
        "auto: int8 where the kernels for it are, else the faster one of the others that fits",
        live=True,
    ),
    Setting(
        "max_concurrency",
        "models",
        values.COUNT,
        "requests that one runner serves at once",
        live=True,
    ),
    Setting("replicas", "models", values.COUNT, "runners of one model, at most", live=True),
    Setting(
        "prefix_cache",
        "models",
        values.SIZE_OR_NONE,
        "of each runner, for prompts to begin where earlier ones went; 0: none",
        live=True,
        unset="half of the weights, within 10% of what is free",
    ),
    Setting("drafts", "models", values.FLAG, "guess tokens to verify several in a step", live=True),
    Setting(
        "adapter",
        "models",
        values.NAME,
        "adapter (LoRA) of requests that name none",
        live=True,
        unset="none",
        only_per_model=True,
    ),
    Setting("blas", "models", values.LIBRARY, "BLAS library for a Linux CPU", unset="found"),
    Setting("threads", "models", values.COUNT, "CPU cores of a runner", unset="all usable cores"),
    Setting(
        "spare",
        "models",
        values.FLAG,
        "keep a runner without a model ready",
        unset="where the memory is 4 GiB or more",
    ),
    Setting("core_dumps", "models", values.FLAG, "let a runner that crashes write a core file"),
    Setting(
        "queue_per_model",
        "bounds",
        values.COUNT,
        "requests that may wait for one model",
        live=True,
    ),
    Setting("queue_total", "bounds", values.COUNT, "requests that may wait in all", live=True),
    Setting("max_stream_time", "bounds", values.TIME, "for a call without a deadline of its own"),
    Setting("max_connections", "bounds", values.COUNT, "connections at once; one more is closed"),
    Setting(
        "streams_per_connection",
        "bounds",
        values.COUNT,
        "calls at once of one connection; more wait in the client",
    ),
    Setting(
        "max_connection_idle",
        "bounds",
        values.LIFETIME,
        "a connection without a call is closed after so long; forever: never",
    ),
    Setting(
        "max_connection_age",
        "bounds",
        values.LIFETIME,
        "after so long a connection takes no more calls, and ends with those that run",
    ),
    Setting(
        "stall_timeout",
        "bounds",
        values.PATIENCE,
        "a runner without progress for so long is unhealthy",
    ),
    Setting(
        "grace",
        "bounds",
        values.TIME,
        "for running streams when the controller is told to stop",
        live=True,
    ),
    Setting(
        "log_format",
        "output",
        values.one_of("auto", "json", "text"),
        "auto: text on a terminal, JSON elsewhere",
    ),
    Setting(
        "log_level",
        "output",
        values.one_of("debug", "info", "warning", "error"),
        "the least that is logged",
        live=True,
    ),
    Setting(
        "telemetry_store",
        "output",
        values.STORE,
        "of the file with the last log lines and traces; off: none is kept",
    ),
)
GENERAL = tuple(setting for setting in SETTINGS if not setting.only_per_model)
"""Those of the controller, and of models whose tables do not say."""
BY_KEY: Mapping[str, Setting] = MappingProxyType({setting.key: setting for setting in SETTINGS})


def told(config: ServerConfig) -> dict[Key, Any]:
    """The value of every setting, those in models' tables too."""
    found: dict[Key, Any] = {("", s.key): getattr(config, s.key) for s in SETTINGS}
    for model, table in config.models.items():
        found.update({(model, key): value for key, value in table.items()})
    return found
