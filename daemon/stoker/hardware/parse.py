"""Text of the system's own files and tools -> numbers. Pure, and tolerant: unknown gives None.

Not for: reading those files (`probe`).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
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


@dataclass(frozen=True, slots=True)
class CgroupMount:
    """Where a hierarchy is seen, and which of its groups is seen there (a container's own)."""

    folder: str  # relative to the root folder
    root: str

    def levels(self, own: str) -> tuple[str, ...]:
        """Folders from the mount down to our own group.

        In a container the path may be the host's, of which only the mount itself is visible:
        the caller reads nothing from folders that do not exist. A group outside the mount
        (``/..``) is not followed.
        """
        path = PurePosixPath(own)
        if ".." in path.parts:
            return (self.folder,)
        if self.root != "/" and path.is_relative_to(self.root):
            path = "/" / path.relative_to(self.root)
        names = [part for part in path.parts if part != "/"]
        return tuple("/".join((self.folder, *names[:depth])) for depth in range(len(names) + 1))


_USUAL_MOUNTS: Final = {
    "": CgroupMount("sys/fs/cgroup", "/"),
    "cpu": CgroupMount("sys/fs/cgroup/cpu", "/"),
    "memory": CgroupMount("sys/fs/cgroup/memory", "/"),
}


def cgroup_mounts(mountinfo: str | None) -> dict[str, CgroupMount]:
    """/proc/self/mountinfo: the mount by controller, ``""`` for v2; the usual ones if it is mute.

    A hierarchy may be mounted more than once; the one that shows most of it wins.
    """
    found: dict[str, CgroupMount] = {}
    for line in (mountinfo or "").splitlines():
        before, dash, after = line.partition(" - ")
        left, right = before.split(), after.split()
        if not dash or len(left) < 5 or len(right) < 3 or right[0] not in {"cgroup", "cgroup2"}:  # noqa: PLR2004  # the kernel's columns
            continue
        mount = CgroupMount(left[4].lstrip("/"), left[3])
        names = [""] if right[0] == "cgroup2" else right[2].split(",")
        for name in names:
            if name not in found or len(mount.root) < len(found[name].root):
                found[name] = mount
    return found or dict(_USUAL_MOUNTS)


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

    v2 names, and v1's totals, which include the groups below. Pages that are not yet on the disk
    do not count; those of shared memory are in neither of the two lists.
    """
    values: dict[str, int] = {}
    for line in (memory_stat or "").splitlines():
        name, _, value = line.partition(" ")
        values[name] = number(value) or 0
    prefix = "total_" if "total_inactive_file" in values else ""
    unwritten = ("dirty", "writeback") if prefix else ("file_dirty", "file_writeback")
    cache = values.get(f"{prefix}inactive_file", 0) + values.get(f"{prefix}active_file", 0)
    return max(0, cache - sum(values.get(f"{prefix}{name}", 0) for name in unwritten))


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
                    unified=total is None,  # it has none of its own (GB10, Jetson)
                )
            )
    return tuple(gpus)


_PCI_VENDORS: Final = {"0x1002": "amd", "0x10de": "nvidia", "0x8086": "intel"}


# Of a graphics processor inside the CPU: its "own" memory is a piece of the system's, and small.
_CARVE_OUT_MOST: Final = 1024 * MIB


@dataclass(frozen=True, slots=True)
class DrmFiles:
    """What the kernel's driver says of one card; None for what it does not have."""

    vendor: str
    name: str | None = None
    amd_total: str | None = None
    amd_used: str | None = None
    amd_shared: str | None = None  # system memory that it may map (GTT)
    intel_total: str | None = None
    intel_free: str | None = None
    driver: str | None = None


def drm_card(files: DrmFiles) -> GpuFacts | None:
    """One card of /sys/class/drm; None for what is no GPU of a known maker (virtual displays)."""
    maker = _PCI_VENDORS.get(files.vendor.strip().lower())
    if maker is None:
        return None
    size, free = number(files.amd_total), None
    used = number(files.amd_used)
    if size is not None and used is not None:
        free = max(0, size - used)
    if maker == "intel":
        size, free = number(files.intel_total), number(files.intel_free)
    name = (files.name or "").strip() or f"{maker} GPU"
    unified = _shares_memory(maker, size, number(files.amd_shared))
    return GpuFacts(name, maker, size, free, files.driver, unified)


def _shares_memory(maker: str, size: int | None, shared: int | None) -> bool | None:
    if maker == "intel":
        # Only its own cards have local memory to tell of; the newer driver (xe) tells of none.
        return False if size else None
    if maker == "amd" and size is not None and shared is not None:
        return size <= _CARVE_OUT_MOST and shared > size
    return None


_PCI_DEVICE: Final = re.compile(r"PCI\\VEN_([0-9A-F]{4})&", re.IGNORECASE)


def windows_adapter(device: str, name: str, memory: object, driver: object) -> GpuFacts | None:
    """One display adapter of Windows; None for what is no GPU of a known maker (remote screens).

    `device` is its hardware id; `memory` and `driver` are the values that its driver wrote into
    the registry: sizes in bytes, as a number or as the bytes of one. What is free is not among
    them.
    """
    match = _PCI_DEVICE.match(device)
    maker = _PCI_VENDORS.get(f"0x{match[1].lower()}") if match else None
    if maker is None:
        return None
    if isinstance(memory, bytes):
        memory = int.from_bytes(memory[:8], "little")
    size = memory if isinstance(memory, int) and memory > 0 else None
    version = driver if isinstance(driver, str) else None
    return GpuFacts(name.strip() or f"{maker} GPU", maker, size, driver=version)


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
    apple = name.startswith("Apple")
    # Intel's inside older Macs says how much it may borrow ("dynamic").
    unified = True if apple or "spdisplays_vram_shared" in display else None
    return GpuFacts(name, "apple" if apple else "other", size, unified=unified)
