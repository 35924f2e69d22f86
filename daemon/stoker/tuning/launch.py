"""The launch plan: every setting of a worker, what it costs in memory, and why. Plain values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Source = Literal["rule", "dry-run", "measured", "user"]


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the user set; None leaves it to the plan."""

    context: int | None = None
    threads: int | None = None
    parallel: int | None = None
    reserve_bytes: int | None = None
    safe_mode: bool = False  # the canary found that the engine's extra buffers are not sound here


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

    @property
    def anonymous_bytes(self) -> int:
        """What must stay in memory: running out of it gets a process killed."""
        return (
            self.kv_bytes
            + self.compute_bytes
            + self.runtime_bytes
            + self.repack_bytes
            + self.cache_bytes
        )

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.anonymous_bytes


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
    kv_unified: bool
    embedding: bool
    pooling: int | None
    extra_buffers: bool
    gpu_layers: int
    memory: MemoryNeed
    reasons: tuple[Reason, ...] = ()
    cells: int = 0  # of the KV cache, shared by all slots; 0: as many as `context`
