"""Text of the system's own files and tools -> numbers. Pure, and tolerant: unknown gives None.

Not for: reading those files (`probe`).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Final

from stoker.hardware.facts import GpuFacts

KIB: Final = 1024
MIB: Final = 1024 * 1024

# cgroup v1 says "no limit" with the largest multiple of a page that fits in 63 bits.
_V1_NO_LIMIT: Final = 1 << 62
_CPU_LIST: Final = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?")
_MACOS_MEMORY: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(MB|GB)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class CpuInfo:
    """What /proc/cpuinfo says."""

    model: str | None
    flags: frozenset[str]
    physical_cores: int | None  # None when it does not tell (ARM, some virtual machines)


def cpuinfo(text: str) -> CpuInfo:
    """Flags are those that every CPU has: a worker may run on any of them."""
    model: str | None = None
    flags: frozenset[str] | None = None
    cores: set[tuple[str, str]] = set()
    for block in text.split("\n\n"):
        fields = _fields(block)
        model = model or fields.get("model name") or fields.get("Model") or fields.get("Hardware")
        words = fields.get("flags") or fields.get("Features")
        if words is not None:
            found = frozenset(words.lower().split())
            flags = found if flags is None else flags & found
        if "physical id" in fields and "core id" in fields:
            cores.add((fields["physical id"], fields["core id"]))
    return CpuInfo(model, flags or frozenset(), len(cores) or None)


def _fields(block: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in block.splitlines())
    return {name.strip(): value.strip() for name, colon, value in pairs if colon}


def meminfo(text: str) -> dict[str, int]:
    """Bytes by name, e.g. ``MemAvailable``."""
    found: dict[str, int] = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        words = value.split()
        if words and words[0].isdigit():
            found[name.strip()] = int(words[0]) * (KIB if words[1:] == ["kB"] else 1)
    return found


def cpu_numbers(text: str) -> tuple[int, ...]:
    """The CPUs that a list such as ``0-3,8`` names."""
    found: list[int] = []
    for part in text.strip().split(","):
        match = _CPU_LIST.fullmatch(part.strip())
        if match:
            found.extend(range(int(match[1]), int(match[2] or match[1]) + 1))
    return tuple(found)


def number(text: str | None) -> int | None:
    """A count in a file of its own; ``max`` and what is no number are None."""
    text = (text or "").strip()
    return int(text) if re.fullmatch(r"-?\d{1,20}", text) else None


def performance_cores(capacities: list[int]) -> int | None:
    """How many CPUs are as fast as the fastest; None when all are.

    Near ones count as equal: some chips favour one core by a few percent.
    """
    if not capacities:
        return None
    fast = sum(1 for value in capacities if value >= max(capacities) * 0.9)
    return fast if fast < len(capacities) else None


# --- cgroups ---------------------------------------------------------------------------------


def own_cgroups(text: str) -> dict[str, str]:
    """/proc/self/cgroup: path by controller; the unified hierarchy is under ``""``."""
    paths: dict[str, str] = {}
    for line in text.splitlines():
        parts = line.split(":", 2)
        if len(parts) == 3:  # noqa: PLR2004  # number, controllers, path
            for controller in parts[1].split(","):
                paths.setdefault(controller, parts[2])
    return paths


def v2_quota(cpu_max: str | None) -> float | None:
    """CPUs from ``cpu.max``: ``<quota or max> <period>``."""
    words = (cpu_max or "").split()
    if len(words) != 2:  # noqa: PLR2004  # quota and period
        return None
    return _ratio(number(words[0]), number(words[1]))


def v1_quota(quota: str | None, period: str | None) -> float | None:
    """CPUs from ``cpu.cfs_quota_us`` (-1 is none) and ``cpu.cfs_period_us``."""
    return _ratio(number(quota), number(period))


def _ratio(quota: int | None, period: int | None) -> float | None:
    if quota is None or period is None or quota <= 0 or period <= 0:
        return None
    return quota / period


def memory_limit(text: str | None) -> int | None:
    """Bytes from ``memory.max`` or ``memory.limit_in_bytes``; None for no limit."""
    value = number(text)
    return value if value is not None and 0 <= value < _V1_NO_LIMIT else None


def reclaimable(memory_stat: str | None) -> int:
    """File cache that the kernel drops before it kills: mapped models sit here, too.

    v2 names, and v1's totals, which include the groups below. Dirty and shared-memory pages are
    in neither count.
    """
    values: dict[str, int] = {}
    for line in (memory_stat or "").splitlines():
        name, _, value = line.partition(" ")
        values[name] = number(value) or 0
    prefix = "total_" if "total_inactive_file" in values else ""
    return values.get(f"{prefix}inactive_file", 0) + values.get(f"{prefix}active_file", 0)


def headroom(limit: int | None, usage: int | None, cache: int) -> int | None:
    """What one group may still take; None when it sets no limit or tells no usage."""
    if limit is None or usage is None:
        return None
    return max(0, limit - max(0, usage - cache))


# --- graphics processors -----------------------------------------------------------------------


def nvidia_smi(text: str) -> tuple[GpuFacts, ...]:
    """Output of ``--query-gpu=name,memory.total,memory.free,driver_version`` as bare CSV (MiB)."""
    gpus = []
    for line in text.splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) == 4:  # noqa: PLR2004  # the four columns asked for
            total, free = number(parts[1]), number(parts[2])
            gpus.append(
                GpuFacts(
                    parts[0],
                    "nvidia",
                    None if total is None else total * MIB,
                    None if free is None else free * MIB,
                    parts[3],
                )
            )
    return tuple(gpus)


_PCI_VENDORS: Final = {"0x1002": "amd", "0x10de": "nvidia", "0x8086": "intel"}


def drm_card(vendor: str, total: str | None, used: str | None, name: str | None) -> GpuFacts | None:
    """One card of /sys/class/drm; None for what is no GPU of a known maker (virtual displays)."""
    maker = _PCI_VENDORS.get(vendor.strip().lower())
    if maker is None:
        return None
    size, taken = number(total), number(used)
    free = None if size is None or taken is None else max(0, size - taken)
    return GpuFacts((name or "").strip() or f"{maker} GPU", maker, size, free)


def system_profiler(text: str) -> tuple[GpuFacts, ...]:
    """Output of macOS' ``system_profiler -json SPDisplaysDataType``."""
    try:
        displays = json.loads(text)["SPDisplaysDataType"]
        return tuple(_macos_gpu(display) for display in displays)
    except (ValueError, KeyError, TypeError, AttributeError):
        return ()


def _macos_gpu(display: dict[str, Any]) -> GpuFacts:
    size = None
    match = _MACOS_MEMORY.search(str(display.get("spdisplays_vram", "")))
    if match:
        size = int(float(match[1]) * (MIB if match[2].upper() == "MB" else KIB * MIB))
    name = str(display.get("sppci_model", "GPU"))
    return GpuFacts(name, "apple" if name.startswith("Apple") else "other", size)
