"""The launch plan: every setting of a worker, what it costs in memory, and why. Plain values.

Also what the plan may know beyond formulas: memory from a dry run (`Survey`) and settings from
measurements (`Tuned`). Both are of one model under one runtime.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Source = Literal["rule", "dry-run", "measured", "user"]
Profile = Literal["chat", "coding", "batch", "quiet", "battery"]
KvType = Literal["f16", "q8_0", "q4_0"]


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the user set; None leaves it to the plan."""

    context: int | None = None
    threads: int | None = None
    threads_batch: int | None = None
    parallel: int | None = None
    reserve_bytes: int | None = None
    safe_mode: bool = False  # the engine's extra buffers are not sound here, or not trusted
    no_gpu: bool = False  # the canary found it sound with the processor alone
    profile: Profile = "chat"
    ubatch: int | None = None
    flash_attention: bool | None = None
    kv_type: KvType | None = None
    gpu_layers: int | None = None


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a setting has its value, in words for a person."""

    setting: str
    value: str | int | float | bool | None
    source: Source
    why: str


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """What a worker will use. Weights are file-backed: the kernel may drop and re-read them."""

    weights_bytes: int
    kv_bytes: int
    compute_bytes: int
    runtime_bytes: int
    repack_bytes: int
    cache_bytes: int
    gpu_bytes: int = 0  # on the GPU; not part of the sums below
    surveyed: bool = False  # from the engine's own dry run, not from formulas alone
    correction: float = 1.0  # learnt: what workers of this model really took of `computed_bytes`

    @property
    def computed_bytes(self) -> int:
        """The parts that cannot be dropped, as they were computed."""
        return (
            self.kv_bytes
            + self.compute_bytes
            + self.runtime_bytes
            + self.repack_bytes
            + self.cache_bytes
        )

    @property
    def learnt_bytes(self) -> int:
        """What is added to them, or left off, because of the correction."""
        return round(self.computed_bytes * (self.correction - 1))

    @property
    def anonymous_bytes(self) -> int:
        """What must stay in memory: running out of it gets a process killed."""
        return self.computed_bytes + self.learnt_bytes

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.anonymous_bytes


@dataclass(frozen=True, slots=True)
class SurveyPoint:
    """One dry run: what the engine itself would allocate with these settings."""

    cells: int
    parallel: int  # also `n_outputs_max`
    ubatch: int
    flash_attention: bool
    kv_type: KvType
    compute_bytes: int
    kv_bytes: int | None  # with the recurrent state; None when this engine does not tell


@dataclass(frozen=True, slots=True)
class Survey:
    """Dry runs of one model under one runtime, enough to interpolate between their cells."""

    runtime: str
    weights_bytes: int  # of the file that are mapped
    repack_bytes: int  # copied into layouts for this CPU
    points: tuple[SurveyPoint, ...]


@dataclass(frozen=True, slots=True)
class Trial:
    """The settings that change how fast a model is, but not what it answers."""

    runtime: str
    threads: int
    threads_batch: int
    ubatch: int
    flash_attention: bool
    extra_buffers: bool = True
    gpu_layers: int = 0  # not searched for: as planned


@dataclass(frozen=True, slots=True)
class Speeds:
    """What one trial achieved; medians of repeated runs."""

    prefill_tokens_per_s: float  # of a prompt of 512 tokens
    decode_tokens_per_s: float  # one stream
    batch_tokens_per_s: float  # all of four streams together


@dataclass(frozen=True, slots=True)
class Tuned:
    """The best trial of a measured search, and what the engine's own defaults achieved beside it.

    Valid for one `key` only (tuning.keys): model digest, hardware, limits and power mode.
    """

    key: str
    profile: Profile
    best: Trial
    speeds: Speeds
    baseline: Speeds  # of the untuned plan, in the same session
    trials: int
    seconds: float
    at: str  # RFC 3339
    complete: bool = True  # False: the time was up before every coordinate had been tried


@dataclass(frozen=True, slots=True)
class LaunchPlan:
    """Everything a worker is started with; nothing is left to an engine's own default."""

    model_id: str
    model_path: Path
    mmproj_path: Path | None
    context: int
    parallel: int
    threads: int
    threads_batch: int
    batch: int
    ubatch: int
    n_outputs_max: int
    cache_ram_mib: int
    checkpoints: int
    kv_unified: bool  # all slots in one cache of `cells`; else each in an equal part of its own
    embedding: bool
    pooling: int | None
    extra_buffers: bool
    gpu_layers: int
    memory: MemoryNeed
    reasons: tuple[Reason, ...] = ()
    cells: int = 0  # of the KV cache, of all slots together; 0: as many as `context`
    runtime: str = ""  # name of the runtime to launch; "" is the current one
    flash_attention: bool = True
    kv_type: KvType = "f16"
    cpu_experts: int = 0  # layers whose experts stay on the CPU although the layer is on a GPU
    profile: Profile = "chat"
    conversations: Path | None = None  # folder that its conversations are saved to; None: never

    @property
    def correction(self) -> float:
        """See `MemoryNeed`; here so that it can have a reason as the settings do."""
        return self.memory.correction
