"""Wire types of what Stoker knows about this machine: plans, recommendations, requests for them.

Beside `schemas`, which holds what clients that only watch need. The same rules hold for both.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, Strict

from stoker.schemas import Wire

Label = Literal["measured", "calibrated", "estimated"]  # how much a predicted number can be trusted
ProfileName = Literal["chat", "coding", "batch", "quiet", "battery"]
Use = Literal["chat", "coding", "embedding", "rerank", "vision", "speech"]
KvTypeName = Literal["f16", "q8_0", "q4_0"]
ModelName = Annotated[str, Field(min_length=1, max_length=300)]

# --- plans -----------------------------------------------------------------------------------


class PlanRequest(Wire):
    """A plan for a stored model; every setting that is given is tried as if the user had set it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelName
    profile: ProfileName | None = None
    context: Annotated[int, Field(ge=256)] | None = None
    parallel: Annotated[int, Field(ge=1, le=64)] | None = None
    threads: Annotated[int, Field(ge=1)] | None = None
    ubatch: Annotated[int, Field(ge=32, le=4096)] | None = None
    kv_type: KvTypeName | None = None
    gpu_layers: Annotated[int, Field(ge=0)] | None = None


class ReasonView(Wire):
    setting: str
    value: str | int | float | bool | None
    source: Literal["rule", "dry-run", "measured", "user"]
    why: str


class PlanMemoryView(Wire):
    """What the worker will use, part by part; `total_bytes` is their sum."""

    weights_bytes: int
    kv_bytes: int
    compute_bytes: int
    runtime_bytes: int
    repack_bytes: int
    cache_bytes: int
    total_bytes: int
    usable_bytes: int  # what may be used now, with what the plan's `evicts` give back
    reserved_bytes: int  # what stays free for other programs
    label: Label  # "calibrated" from a dry run, "estimated" from formulas
    learnt_bytes: int = 0  # more, or less, than computed: what its workers really took
    gpu_bytes: int = 0  # on the GPU; not part of the total


class GainView(Wire):
    """What the user would get from a change that Stoker cannot make alone."""

    change: Literal["memory", "quantization", "runtime", "tune", "quota", "gpu"]
    text: str  # one sentence, with numbers
    command: str | None = None  # what does it


class PlanSpeedView(Wire):
    """Tokens per second; None where nothing on this machine tells."""

    decode_tokens_per_s: float
    prefill_tokens_per_s: float | None = None
    batch_tokens_per_s: float | None = None  # of four streams together
    label: Label


class PlanView(Wire):
    """What a load would choose now, were the model not loaded."""

    model: str
    profile: ProfileName
    runtime: str
    settings: dict[str, str | int | float | bool | None]
    memory: PlanMemoryView
    reasons: tuple[ReasonView, ...]
    speed: PlanSpeedView | None = None
    gains: tuple[GainView, ...] = ()
    evicts: tuple[str, ...] = ()  # the models that the load would unload first
    waits: bool = False  # until requests that run on some of them have ended
    loaded: bool = False  # with exactly these settings


# --- recommendations -------------------------------------------------------------------------


class PredictionView(Wire):
    """Numbers for a model that may not be here yet, one answer at a time."""

    decode_tokens_per_s: float
    label: Label
    prefill_tokens_per_s: float | None = None  # None while no model was measured here
    prefill_label: Label | None = None


class RecommendationView(Wire):
    name: str
    title: str
    summary: str
    use: Use
    licence: str
    source: str  # "owner/repo:QUANT" or the package
    bytes: int  # to download
    memory_bytes: int  # to run, with a context of 8,192 tokens
    quantization: str
    speed: PredictionView | None  # None: it writes nothing, or nothing is known of its speed
    fits: bool  # in the memory that models may ever have here
    fits_now: bool  # in what is free of it
    quick: bool
    stored: bool
    pinned: bool  # the digest is known beforehand; else it comes from the Hub at pull
    why: str  # one sentence for a person


# --- tuning and runtimes ---------------------------------------------------------------------


class TuneRequest(Wire):
    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelName
    seconds: Annotated[float, Field(gt=0, le=3600)] | None = None
    again: Annotated[bool, Strict()] = False  # also when there are tuned settings


class RuntimeInstallRequest(Wire):
    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["native", "vulkan", "cuda", "rocm", "metal"]
    force: Annotated[bool, Strict()] = False  # keep it although it is not faster


class HoldRequest(Wire):
    model_config = ConfigDict(frozen=True, extra="forbid")

    held: Annotated[bool, Strict()]


class TakenView(Wire):
    """How many models' tuned settings were taken from a file."""

    taken: int


class RuntimeRequest(Wire):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(min_length=1, max_length=120)]
