"""What is known about this machine: frozen facts, filled by `probe`, read by `tuning` and doctor.

Pure. A fact that could not be found out is None or empty, and never a guess.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

_MIB: Final = 1024 * 1024
# What a worker maps beside the model, measured with 1, 2 and 8 engine threads: libraries and the
# stacks of 32 HTTP threads, and per engine thread a stack and an arena of malloc. A limit on data
# (RLIMIT_DATA) counts what is writable only.
_ADDRESS_OVERHEAD: Final = (700 * _MIB, 85 * _MIB)  # in all, and for each engine thread
_DATA_OVERHEAD: Final = (340 * _MIB, 16 * _MIB)


@dataclass(frozen=True, slots=True)
class CpuFacts:
    """The processor as the system describes it."""

    arch: str  # "x86_64", "aarch64", "arm64": the system's own word, in lower case
    model: str
    physical_cores: int
    logical_cores: int
    performance_cores: int | None = None  # on hybrid CPUs; None when all cores are alike
    flags: frozenset[str] = frozenset()  # lower case, Linux's names; empty means unknown
    core_classes: tuple[int, ...] = ()  # cores of each kind, the fastest first; () when alike

    @property
    def is_x86(self) -> bool:
        return self.arch in {"x86_64", "amd64", "i386", "i686", "x86"}


@dataclass(frozen=True, slots=True)
class LimitFacts:
    """What this process may use of the machine, which can be less than there is."""

    affinity_cpus: int
    quota_cpus: float | None = None  # the tightest of all enclosing cgroups
    memory_limit_bytes: int | None = None  # likewise
    memory_headroom_bytes: int | None = None  # limit - usage + file cache that can be dropped
    affinity_cores: int | None = None  # full-speed cores behind those CPUs; None when unknown
    address_space_bytes: int | None = None  # of each process (RLIMIT_AS); None: as much as it wants
    data_bytes: int | None = None  # likewise, of what it can write to (RLIMIT_DATA)


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
    unified: bool | None = None  # it shares the system's memory; None when unknown


@dataclass(frozen=True, slots=True)
class PowerFacts:
    """What may slow the machine down, or should: all None on a server that tells nothing."""

    on_battery: bool | None = None
    percent: float | None = None  # of the battery
    saver: bool | None = None  # the user or the system chose to save power
    throttled: bool | None = None  # the processor is held back because it is hot


@dataclass(frozen=True, slots=True)
class CompilerFacts:
    """A C++ compiler that answered when asked for its version."""

    path: str
    name: str  # "gcc", "clang", "apple clang", "msvc", or the program's own name
    version: str


@dataclass(frozen=True, slots=True)
class HardwareFacts:
    """All of it, at one moment."""

    system: str  # "linux", "darwin", "windows"
    release: str
    cpu: CpuFacts
    limits: LimitFacts
    memory: MemoryFacts
    gpus: tuple[GpuFacts, ...] = ()
    power: PowerFacts = field(default_factory=PowerFacts)
    bandwidth_bytes_per_s: int | None = None  # memory reads, all effective CPUs together; measured
    disk_read_bytes_per_s: int | None = None  # of the disk with the models; measured
    compiler: CompilerFacts | None = None

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
        if self.limits.affinity_cores is not None:
            bounds.append(self.limits.affinity_cores)
        elif self.cpu.performance_cores is not None:
            bounds.append(self.cpu.performance_cores)
        return max(1, min(bounds))

    @property
    def system_headroom_bytes(self) -> int:
        """Memory that all programs may still take before the system or the cgroup runs short."""
        headroom = self.limits.memory_headroom_bytes
        available = self.memory.available_bytes
        return max(0, available if headroom is None else min(available, headroom))

    @property
    def headroom_bytes(self) -> int:
        """The same, for one worker: `ulimit` may allow each process less.

        Against its own limit a worker only fails to allocate; the others get it killed.
        """
        limits, threads = self.limits, self.effective_cpus
        bounds = [self.system_headroom_bytes]
        for limit, (fixed, per_thread) in (
            (limits.address_space_bytes, _ADDRESS_OVERHEAD),
            (limits.data_bytes, _DATA_OVERHEAD),
        ):
            if limit is not None:
                bounds.append(limit - fixed - per_thread * threads)
        return max(0, min(bounds))
