"""Look at this machine. Best effort: a part that cannot be read is unknown; nothing raises.

Each external tool has a deadline. Blocking: call it in a thread.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Final

import psutil
import structlog

from stoker.hardware import parse
from stoker.hardware.facts import CpuFacts, GpuFacts, HardwareFacts, LimitFacts, MemoryFacts
from stoker.hardware.probe_linux import Linux
from stoker.schemas import GpuView, ResourcesView

log = structlog.get_logger(__name__)

_TOOL_TIMEOUT_S: Final = 3  # a GPU that sleeps wakes up within two
_SYSCTL: Final = "/usr/sbin/sysctl"


def probe() -> HardwareFacts:
    """Everything. What cannot change while the system runs is read once per process."""
    memory, limits = memory_now()
    return HardwareFacts(
        system=platform.system().lower(),
        release=platform.release(),
        cpu=_cpu(),
        limits=limits,
        memory=memory,
        gpus=_gpus(),
    )


def memory_now() -> tuple[MemoryFacts, LimitFacts]:
    """The parts that change: free memory and limits. Takes under a millisecond."""
    if sys.platform == "linux":
        linux = Linux()
        memory = linux.memory()
        limits = linux.limits(_affinity())
        return memory or _psutil_memory(), limits
    return _psutil_memory(), LimitFacts(_affinity())


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
        gpus=tuple(  # what they use is not known: their tools are too slow to ask each time
            GpuView(name=gpu.name, vram_total_bytes=gpu.vram_total_bytes) for gpu in _gpus()
        ),
    )


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


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@lru_cache(maxsize=1)
def _cpu() -> CpuFacts:
    logical = os.cpu_count() or 1
    generic = CpuFacts(
        arch=platform.machine().lower(),
        model=platform.processor() or platform.machine() or "unknown CPU",
        physical_cores=psutil.cpu_count(logical=False) or logical,
        logical_cores=logical,
    )
    if sys.platform == "linux":
        return Linux().cpu(generic)
    if sys.platform == "darwin":
        return _macos_cpu(generic)
    return generic  # Windows tells no flags: unknown, not missing


def _macos_cpu(generic: CpuFacts) -> CpuFacts:
    fast = parse.number(_run(_SYSCTL, "-n", "hw.perflevel0.physicalcpu"))
    flags = _run(_SYSCTL, "-n", "machdep.cpu.features", "machdep.cpu.leaf7_features") or ""
    return replace(
        generic,
        model=(_run(_SYSCTL, "-n", "machdep.cpu.brand_string") or generic.model).strip(),
        performance_cores=fast if fast and fast < generic.physical_cores else None,
        flags=frozenset(flags.lower().split()),
    )


@lru_cache(maxsize=1)
def _gpus() -> tuple[GpuFacts, ...]:
    """Asked once per process: the answer is for people, and the tools take a second."""
    if sys.platform == "darwin":
        tool = "/usr/sbin/system_profiler"
        return parse.system_profiler(_run(tool, "-json", "SPDisplaysDataType") or "")
    found: tuple[GpuFacts, ...] = ()
    nvidia = shutil.which("nvidia-smi")
    if nvidia is not None:
        query = "--query-gpu=name,memory.total,memory.free,driver_version"
        found = parse.nvidia_smi(_run(nvidia, query, "--format=csv,noheader,nounits") or "")
    if sys.platform == "linux":
        has_nvidia = bool(found)
        found += tuple(
            gpu for gpu in Linux().drm_gpus() if not (has_nvidia and gpu.vendor == "nvidia")
        )
    return found


def _run(*command: str) -> str | None:
    """The tool's output; None when it is absent, fails or is too slow."""
    try:
        done = subprocess.run(  # noqa: S603  # fixed commands, no shell
            command, capture_output=True, text=True, timeout=_TOOL_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError) as error:
        log.debug("probe_tool_failed", tool=command[0], reason=type(error).__name__)
        return None
    return done.stdout
