"""Look at this machine. Best effort: a part that cannot be read is unknown; nothing raises.

Each external tool and each driver has a deadline. Blocking: call it in a thread. What takes a
measurement is not here (`measure`).
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import psutil

from stoker.hardware import cores, parse, tools
from stoker.hardware.compiler import find_compiler
from stoker.hardware.cores import LogicalCpu
from stoker.hardware.facts import CpuFacts, GpuFacts, HardwareFacts, LimitFacts, MemoryFacts
from stoker.hardware.power import power
from stoker.hardware.probe_linux import Linux, with_classes
from stoker.hardware.probe_others import macos_cpu, windows_cpus, windows_gpus
from stoker.schemas import GpuView, ResourcesView


def probe(*, fresh_gpus: bool = False) -> HardwareFacts:
    """Everything but what must be measured.

    What cannot change while the system runs is read once per process. A GPU's free memory can:
    ask for it afresh before you use it, because its tool may take a second.
    """
    if fresh_gpus:
        _nvidia_gpus.cache_clear()
        _windows_gpus.cache_clear()
    memory, limits = memory_now()
    return HardwareFacts(
        system=platform.system().lower(),
        release=platform.release(),
        cpu=_cpu(),
        limits=limits,
        memory=memory,
        gpus=_gpus(),
        power=power.now(),
        compiler=find_compiler(),
    )


def memory_now() -> tuple[MemoryFacts, LimitFacts]:
    """The parts that change: free memory and limits. Takes about a millisecond."""
    allowed = _allowed()
    if sys.platform == "linux":
        linux = Linux()
        memory = linux.memory() or _psutil_memory()
        limits = linux.limits(len(allowed))
    else:
        memory, limits = _psutil_memory(), LimitFacts(len(allowed))
    address_space, data = _process_limits()
    return memory, replace(
        limits,
        affinity_cores=cores.full_speed_cores(_cpu_table(), allowed),
        address_space_bytes=address_space,
        data_bytes=data,
    )


def resources() -> ResourcesView:
    """What the machine uses now; CPU use is that since the last call."""
    memory, limits = memory_now()
    total = memory.total_bytes
    if limits.memory_limit_bytes is not None:
        total = min(total, limits.memory_limit_bytes)
    free = memory.available_bytes
    if limits.memory_headroom_bytes is not None:
        free = min(free, limits.memory_headroom_bytes)
    return ResourcesView(
        cpu_percent=psutil.cpu_percent(interval=None),
        ram_used_bytes=max(0, total - free),
        ram_total_bytes=total,
        gpus=tuple(_gpu_view(gpu) for gpu in _gpus()),
    )


def _gpu_view(gpu: GpuFacts) -> GpuView:
    """NVIDIA's tool is too slow to ask each time what is in use."""
    total, free = gpu.vram_total_bytes, gpu.vram_free_bytes
    fresh = gpu.vendor != "nvidia" and total is not None and free is not None
    used = max(0, (total or 0) - (free or 0)) if fresh else None
    return GpuView(name=gpu.name, vram_used_bytes=used, vram_total_bytes=total)


def disk_free_bytes(folder: Path) -> int | None:
    """Free space for this user where `folder` is or will be; None when unknown."""
    for place in (folder, *folder.parents):
        if place.exists():
            try:
                return shutil.disk_usage(place).free
            except OSError:
                return None
    return None


def _psutil_memory() -> MemoryFacts:
    memory = psutil.virtual_memory()
    return MemoryFacts(memory.total, memory.available)


def _allowed() -> tuple[int, ...]:
    """The CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(os.sched_getaffinity(0))
    affinity = getattr(psutil.Process, "cpu_affinity", None)  # Windows; macOS has none
    if affinity is not None:
        try:
            return tuple(affinity(psutil.Process()))
        except (psutil.Error, OSError):
            pass
    return tuple(range(os.cpu_count() or 1))


def _process_limits() -> tuple[int | None, int | None]:
    """What ulimit allows each process: address space, and data."""
    if sys.platform == "win32":
        return None, None
    import resource

    limits = []
    for which in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
        soft, _ = resource.getrlimit(which)
        limits.append(None if soft == resource.RLIM_INFINITY or soft < 0 else soft)
    return limits[0], limits[1]


@lru_cache(maxsize=1)
def _cpu_table() -> tuple[LogicalCpu, ...]:
    if sys.platform == "linux":
        return Linux().cpus(is_x86=_generic_cpu().is_x86)
    return windows_cpus()


def _generic_cpu() -> CpuFacts:
    logical = os.cpu_count() or 1
    return CpuFacts(
        arch=platform.machine().lower(),
        model=platform.processor() or platform.machine() or "unknown CPU",
        physical_cores=psutil.cpu_count(logical=False) or logical,
        logical_cores=logical,
    )


@lru_cache(maxsize=1)
def _cpu() -> CpuFacts:
    generic = _generic_cpu()
    if sys.platform == "linux":
        return Linux().cpu(generic, _cpu_table())
    if sys.platform == "darwin":
        return macos_cpu(generic)
    return with_classes(generic, _cpu_table())  # Windows tells no flags: unknown, not missing


def _gpus() -> tuple[GpuFacts, ...]:
    if sys.platform == "darwin":
        return _macos_gpus()
    found = _nvidia_gpus()
    nothing: tuple[GpuFacts, ...] = ()
    if sys.platform == "linux":
        cards = tools.within("gpus", Linux().drm_gpus, nothing)
    else:
        cards = _windows_gpus()
    return found + tuple(gpu for gpu in cards if not (found and gpu.vendor == "nvidia"))


@lru_cache(maxsize=1)
def _macos_gpus() -> tuple[GpuFacts, ...]:
    tool = "/usr/sbin/system_profiler"
    return parse.system_profiler(tools.run(tool, "-json", "SPDisplaysDataType") or "")


@lru_cache(maxsize=1)
def _windows_gpus() -> tuple[GpuFacts, ...]:
    nothing: tuple[GpuFacts, ...] = ()
    return tools.within("gpus", windows_gpus, nothing)


@lru_cache(maxsize=1)
def _nvidia_gpus() -> tuple[GpuFacts, ...]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    query = "--query-gpu=name,memory.total,memory.free,driver_version"
    return parse.nvidia_smi(tools.run(tool, query, "--format=csv,noheader,nounits") or "")
