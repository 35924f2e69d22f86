"""Machines made up for tests."""

from __future__ import annotations

from stoker.hardware.facts import (
    CompilerFacts,
    CpuFacts,
    GpuFacts,
    HardwareFacts,
    LimitFacts,
    MemoryFacts,
    PowerFacts,
)

GIB = 1024**3
BASELINE = frozenset(("avx2", "fma", "f16c", "bmi2"))


def machine(
    *,
    cores: int = 8,
    logical: int | None = None,
    performance: int | None = None,
    arch: str = "x86_64",
    flags: frozenset[str] = BASELINE,
    affinity: int | None = None,
    quota: float | None = None,
    total: int = 16 * GIB,
    available: int | None = None,
    limit: int | None = None,
    headroom: int | None = None,
    gpus: tuple[GpuFacts, ...] = (),
    affinity_cores: int | None = None,
    address_space: int | None = None,
    data: int | None = None,
    power: PowerFacts | None = None,
    bandwidth: int | None = None,
    disk_speed: int | None = None,
    compiler: CompilerFacts | None = None,
) -> HardwareFacts:
    """A healthy 8-core machine with 16 GiB, unless told otherwise."""
    threads = logical or cores
    return HardwareFacts(
        system="linux",
        release="6.1",
        cpu=CpuFacts(arch, "Test CPU", cores, threads, performance, flags),
        limits=LimitFacts(
            threads if affinity is None else affinity,
            quota,
            limit,
            headroom,
            affinity_cores,
            address_space,
            data,
        ),
        memory=MemoryFacts(total, total if available is None else available),
        gpus=gpus,
        power=power or PowerFacts(),
        bandwidth_bytes_per_s=bandwidth,
        disk_read_bytes_per_s=disk_speed,
        compiler=compiler,
    )
