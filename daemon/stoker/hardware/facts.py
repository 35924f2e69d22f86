"""What is known about this machine: frozen facts, filled by `probe`, read by `tuning` and doctor.

Pure. A fact that could not be found out is None or empty, and never a guess.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CpuFacts:
    """The processor as the system describes it."""

    arch: str  # "x86_64", "aarch64", "arm64": the system's own word, in lower case
    model: str
    physical_cores: int
    logical_cores: int
    performance_cores: int | None = None  # on hybrid CPUs; None when all cores are alike
    flags: frozenset[str] = frozenset()  # lower case, Linux's names; empty means unknown

    @property
    def is_x86(self) -> bool:
        return self.arch in {"x86_64", "amd64", "i386", "i686", "x86"}


@dataclass(frozen=True, slots=True)
class LimitFacts:
    """What this process may use of the machine, which can be less than there is."""

    affinity_cpus: int
    quota_cpus: float | None = None  # the tightest of all enclosing cgroups
    memory_limit_bytes: int | None = None
    memory_headroom_bytes: int | None = None  # limit - usage + file cache that can be dropped


@dataclass(frozen=True, slots=True)
class MemoryFacts:
    """System memory; `available_bytes` counts what the kernel can free without swapping."""

    total_bytes: int
    available_bytes: int


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """One graphics processor; for information until a GPU runtime is installed."""

    name: str
    vendor: str
    vram_total_bytes: int | None = None
    vram_free_bytes: int | None = None
    driver: str | None = None


@dataclass(frozen=True, slots=True)
class HardwareFacts:
    """All of it, at one moment."""

    system: str  # "linux", "darwin", "windows"
    release: str
    cpu: CpuFacts
    limits: LimitFacts
    memory: MemoryFacts
    gpus: tuple[GpuFacts, ...] = ()

    @property
    def effective_cpus(self) -> int:
        """How many threads can really run at once at full speed; at least 1.

        The quota is rounded down: one thread too many makes all of them wait at every barrier
        (4x to 45x slower in containers). SMT siblings and E-cores are left out because on x86
        they slow decoding; the count of physical cores says how many remain.
        """
        bounds = [self.limits.affinity_cpus, self.cpu.physical_cores]
        if self.limits.quota_cpus is not None:
            bounds.append(math.floor(self.limits.quota_cpus))
        if self.cpu.performance_cores is not None:
            bounds.append(self.cpu.performance_cores)
        return max(1, min(bounds))

    @property
    def headroom_bytes(self) -> int:
        """Memory that may still be taken before the system or the cgroup runs short."""
        headroom = self.limits.memory_headroom_bytes
        available = self.memory.available_bytes
        return max(0, available if headroom is None else min(available, headroom))
