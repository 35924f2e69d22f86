"""Wire types shared by the control API and its clients. Imports only pydantic and `types`.

The shapes are stable: fields are added, never renamed or removed (docs/api.md). Sizes are bytes,
times are seconds or RFC 3339 in UTC.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, Strict

from stoker.types import Capability, ModelState, PullState

API_VERSION = 1


class Wire(BaseModel):
    """Base: immutable, and tolerant of fields that a newer daemon sends."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class ErrorView(Wire):
    code: str
    message: str
    hint: str
    facts: dict[str, object] = Field(default_factory=dict)


# --- status ----------------------------------------------------------------------------------


class DaemonView(Wire):
    version: str
    api_version: int = API_VERSION
    pid: int
    uptime_s: float
    home: str
    update: str | None = None  # a newer version; known only when the user turned the check on


class ServerView(Wire):
    enabled: bool
    base_url: str
    lan: bool = False


class MemoryView(Wire):
    predicted_bytes: int
    resident_bytes: int | None
    peak_bytes: int | None = None  # the most this worker ever took
    correction: float | None = None  # predictions are multiplied by it; learnt from peaks


class ModelView(Wire):
    """A model of the store and, when it has one, its worker."""

    id: str
    state: ModelState
    engine: str | None = None
    runtime: str | None = None
    pid: int | None = None
    context: int | None = None
    parallel: int | None = None
    memory: MemoryView | None = None
    tokens_per_s: float | None = None
    in_flight: int = 0
    queued: int = 0
    expires_in_s: float | None = None
    load_s: float | None = None  # how long its last load took
    expected_load_s: float | None = None  # how long the next one will take, about
    loading_s: float | None = None  # how long it has been loading; None when it is not
    default: bool = False  # requests that name no model go there
    pinned: bool = False  # never evicted, never unloaded for being idle
    priority: int = 0
    kv_used: float | None = None  # share of its conversation memory, 0 to 1; None: not known
    rung: int = 0  # of the crash ladder; 0: nothing is held back
    error: ErrorView | None = None


class GpuView(Wire):
    name: str
    vram_used_bytes: int | None = None
    vram_total_bytes: int | None = None


class ResourcesView(Wire):
    cpu_percent: float
    ram_used_bytes: int
    ram_total_bytes: int
    gpus: tuple[GpuView, ...] = ()


class PullView(Wire):
    id: str
    reference: str
    model: str | None = None
    state: PullState
    bytes_done: int = 0
    bytes_total: int | None = None
    bytes_per_s: float = 0.0
    eta_s: float | None = None
    note: str | None = None
    error: ErrorView | None = None


class UpstreamView(Wire):
    """Another server whose models are served here."""

    name: str
    base_url: str
    state: Literal["unknown", "up", "down"]
    models: tuple[str, ...] = ()  # as they are listed here: NAME/MODEL
    in_flight: int = 0
    latency_s: float | None = None  # of the last check
    error: ErrorView | None = None  # why it is down


class StatusView(Wire):
    daemon: DaemonView
    server: ServerView
    models: tuple[ModelView, ...]
    resources: ResourcesView
    pulls: tuple[PullView, ...] = ()
    problems: tuple[str, ...] = ()  # what is wrong and what to do about it, a line each
    default: str | None = None  # where requests go that name no model
    upstreams: tuple[UpstreamView, ...] = ()


# --- the store -------------------------------------------------------------------------------


class FileView(Wire):
    name: str
    role: str
    sha256: str
    bytes: int


class VerdictView(Wire):
    """One verdict with its evidence; there is never one green tick for all."""

    verdict: Literal["ok", "warn", "failed", "unknown"]
    detail: str
    evidence: dict[str, object] = Field(default_factory=dict)
    at: AwareDatetime | None = None


class TrustView(Wire):
    integrity: VerdictView
    structure: VerdictView
    hub_scan: VerdictView
    template: VerdictView


class StoredModelView(Wire):
    id: str
    source: str
    revision: str | None
    files: tuple[FileView, ...]
    bytes: int
    verified_at: AwareDatetime | None
    trust: TrustView
    pinned: bool = False
    capabilities: tuple[Capability, ...] = ()
    architecture: str | None = None
    parameters: int | None = None
    quantization: str | None = None
    context_length: int | None = None
    licence: str | None = None


class VerifyView(Wire):
    """The result for one file of one model."""

    id: str
    file: str
    sha256: str
    ok: bool
    finding: str | None = None


class VerifyProgress(Wire):
    """One line of the verify stream: progress, or the result for one file."""

    bytes_done: int
    bytes_total: int
    result: VerifyView | None = None


class RemovedView(Wire):
    id: str
    bytes_freed: int


class FreedView(Wire):
    """What "free memory now" did: the idle models that were unloaded, and their memory."""

    models: tuple[str, ...]
    bytes_freed: int


class OfferView(Wire):
    """A model of the catalogue, judged for this machine at this moment."""

    name: str
    title: str
    summary: str
    licence: str
    bytes: int  # to download
    memory_bytes: int  # to run, with a context of 8,192 tokens
    fits: bool  # in the memory that is free now
    quick: bool  # with this machine's processor
    stored: bool


class DoneView(Wire):
    """The answer of a call that has nothing else to say."""

    done: Literal[True] = True


# --- runtimes and tuning ---------------------------------------------------------------------


class RuntimeView(Wire):
    """A runtime that is installed, being installed, or offered for this machine."""

    name: str  # "xllamacpp-2026.10.11549", "llama-cpp-python-0.3.36-avx512"; the kind when offered
    kind: Literal["builtin", "native", "vulkan", "cuda", "rocm", "metal", "path"]
    state: Literal["offered", "installing", "testing", "ready", "failed"]
    version: str | None = None
    variant: str | None = None  # what it was compiled for
    current: bool = False
    previous: bool = False  # what `runtime rollback` goes back to
    bytes: int | None = None
    progress: float | None = None  # 0 to 1, while installing
    note: str | None = None  # what it is doing, why it is offered, or why it was not taken
    speedup: float | None = None  # measured against the one before: geometric mean of the speeds
    error: ErrorView | None = None


class RuntimesView(Wire):
    held: bool  # the user wants no change by itself
    runtimes: tuple[RuntimeView, ...]


class SpeedsView(Wire):
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    batch_tokens_per_s: float  # of four streams together


class TuneView(Wire):
    """The measured search for one model."""

    model: str
    state: Literal["none", "waiting", "running", "paused", "done", "failed", "cancelled"]
    profile: str
    trials: int = 0
    spent_s: float = 0.0
    budget_s: float = 0.0
    note: str | None = None  # what it waits for, or what it tries now
    settings: dict[str, str | int | bool] | None = None  # the best so far
    speeds: SpeedsView | None = None
    baseline: SpeedsView | None = None  # of the settings before, in the same session
    measured_at: AwareDatetime | None = None
    error: ErrorView | None = None


# --- requests --------------------------------------------------------------------------------


class PullRequest(Wire):
    model_config = ConfigDict(frozen=True, extra="forbid")

    reference: Annotated[str, Field(min_length=1, max_length=1024)]
    name: Annotated[str, Field(max_length=96)] | None = None


class LoadRequest(Wire):
    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Annotated[str, Field(min_length=1, max_length=300)]
    keep_alive_s: Annotated[float, Field(ge=-1, allow_inf_nan=False)] | None = None
    pin: bool | None = None  # None: as it is


class PinRequest(Wire):
    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Annotated[str, Field(min_length=1, max_length=300)]
    pinned: Annotated[bool, Strict()] = True


class ModelRequest(Wire):
    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Annotated[str, Field(min_length=1, max_length=300)]


class ServerRequest(Wire):
    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: Annotated[bool, Strict()]  # "no" and 0 are nonsense


class VerifyRequest(Wire):
    model_config = ConfigDict(frozen=True, extra="forbid")

    models: tuple[str, ...] = ()


# --- events ----------------------------------------------------------------------------------


class Snapshot(Wire):
    """Always the first event of a stream, and sent again when a slow client lost some."""

    type: Literal["snapshot"] = "snapshot"
    status: StatusView


class ModelChanged(Wire):
    type: Literal["model"] = "model"
    model: ModelView


class PullChanged(Wire):
    type: Literal["pull"] = "pull"
    pull: PullView


class ResourcesSampled(Wire):
    type: Literal["resources"] = "resources"
    resources: ResourcesView


class StoreChanged(Wire):
    """A model was added, removed or found damaged."""

    type: Literal["store"] = "store"
    id: str
    change: Literal["added", "removed", "damaged", "verified"]


class ServerChanged(Wire):
    """The endpoint was switched on or off."""

    type: Literal["server"] = "server"
    server: ServerView


class DaemonChanged(Wire):
    """A newer version was found."""

    type: Literal["daemon"] = "daemon"
    daemon: DaemonView


class DefaultChanged(Wire):
    """Requests that name no model go to another one now."""

    type: Literal["default"] = "default"
    model: str | None


class UpstreamChanged(Wire):
    """Another server went up or down, or has other models."""

    type: Literal["upstream"] = "upstream"
    upstream: UpstreamView


class RuntimeChanged(Wire):
    """A runtime is being installed, was installed, removed, or became the current one."""

    type: Literal["runtime"] = "runtime"
    runtime: RuntimeView


class TuneChanged(Wire):
    type: Literal["tune"] = "tune"
    tune: TuneView


class Goodbye(Wire):
    type: Literal["goodbye"] = "goodbye"


Event = Annotated[
    Snapshot
    | ModelChanged
    | PullChanged
    | ResourcesSampled
    | StoreChanged
    | ServerChanged
    | DaemonChanged
    | DefaultChanged
    | UpstreamChanged
    | RuntimeChanged
    | TuneChanged
    | Goodbye,
    Field(discriminator="type"),
]
