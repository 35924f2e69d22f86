"""Linux: /proc, /sys and cgroups v1 and v2. Thin; what the text means is decided in `parse`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from stoker.hardware import cores, parse
from stoker.hardware.cores import LogicalCpu
from stoker.hardware.facts import CpuFacts, GpuFacts, LimitFacts, MemoryFacts

_LONGEST_FILE: Final = 4 * 1024 * 1024  # characters; /proc/cpuinfo of 256 CPUs has half of it

_SMT: Final = 2  # threads per core, at most, on x86
_CPUS: Final = "sys/devices/system/cpu"
# Intel's kinds of cores, where the kernel names them; their speeds are for comparing only.
_INTEL_KINDS: Final = (("cpu_core", 1024), ("cpu_atom", 512), ("cpu_lowpower", 256))


class Linux:
    """Reads below `root`, which tests replace."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def text(self, path: str) -> str | None:
        """A small file's content; None when it cannot be read."""
        try:
            with (self._root / path).open(encoding="utf-8", errors="replace") as stream:
                return stream.read(_LONGEST_FILE)
        except OSError:
            return None

    def cpu(self, fallback: CpuFacts, table: Sequence[LogicalCpu] = ()) -> CpuFacts:
        """`fallback` corrected by what /proc and /sys say; `table` is that of `cpus`."""
        info = parse.cpuinfo(self.text("proc/cpuinfo") or "")
        count = info.physical_cores
        # Some virtual machines give all their CPUs the same core number.
        if count is not None and fallback.is_x86 and count * _SMT < fallback.logical_cores:
            count = fallback.logical_cores
        if count is None and table:
            count = len({cpu.core for cpu in table})
        found = replace(
            fallback,
            model=info.model or fallback.model,
            physical_cores=count or fallback.physical_cores,
            flags=info.flags,
        )
        return with_classes(found, table)

    def cpus(self, *, is_x86: bool) -> tuple[LogicalCpu, ...]:
        """Every CPU that is on, its core and its speed; () when the kernel does not tell."""
        kinds = self._intel_kinds()
        found = []
        for folder in (self._root / _CPUS).glob("cpu[0-9]*"):
            name = folder.name
            siblings = self.text(f"{_CPUS}/{name}/topology/thread_siblings_list")
            if siblings is None:  # it is off
                continue
            number = int(name.removeprefix("cpu"))
            capacity = parse.number(self.text(f"{_CPUS}/{name}/cpu_capacity")) or 0
            found.append(LogicalCpu(number, siblings.strip(), kinds.get(number, capacity)))
        table = tuple(sorted(found, key=lambda cpu: cpu.number))
        return table if cores.believable(table, is_x86=is_x86) else ()

    def _intel_kinds(self) -> dict[int, int]:
        """Speeds by CPU; empty when this is no mixture."""
        lists = [(self.text(f"sys/devices/{name}/cpus"), speed) for name, speed in _INTEL_KINDS]
        found = [(text, speed) for text, speed in lists if text is not None]
        if len(found) < 2:  # noqa: PLR2004  # kinds
            return {}
        return {cpu: speed for text, speed in found for cpu in parse.cpu_numbers(text)}

    def memory(self) -> MemoryFacts | None:
        values = parse.meminfo(self.text("proc/meminfo") or "")
        if "MemTotal" not in values or "MemAvailable" not in values:
            return None
        return MemoryFacts(values["MemTotal"], values["MemAvailable"])

    def limits(self, affinity_cpus: int) -> LimitFacts:
        """The tightest limit of this process's cgroup and all that enclose it."""
        quotas: list[float | None] = []
        limits: list[int | None] = []
        rooms: list[int | None] = []
        for folder in self._levels(""):
            quotas.append(parse.v2_quota(self.text(f"{folder}/cpu.max")))
            # Above `high` the kernel slows a group down until it stands still.
            limit = _least(
                parse.memory_limit(self.text(f"{folder}/memory.{name}")) for name in ("max", "high")
            )
            limits.append(limit)
            rooms.append(self._room(limit, f"{folder}/memory.current", folder))
        for folder in self._levels("cpu"):
            quota, period = f"{folder}/cpu.cfs_quota_us", f"{folder}/cpu.cfs_period_us"
            quotas.append(parse.v1_quota(self.text(quota), self.text(period)))
        for folder in self._levels("memory"):
            limit = parse.memory_limit(self.text(f"{folder}/memory.limit_in_bytes"))
            limits.append(limit)
            rooms.append(self._room(limit, f"{folder}/memory.usage_in_bytes", folder))
        return LimitFacts(
            affinity_cpus=affinity_cpus,
            quota_cpus=min((value for value in quotas if value is not None), default=None),
            memory_limit_bytes=_least(limits),
            memory_headroom_bytes=_least(rooms),
        )

    def _levels(self, controller: str) -> tuple[str, ...]:
        own = parse.own_cgroups(self.text("proc/self/cgroup") or "").get(controller)
        mount = parse.cgroup_mounts(self.text("proc/self/mountinfo")).get(controller)
        return () if own is None or mount is None else mount.levels(own)

    def _room(self, limit: int | None, usage: str, folder: str) -> int | None:
        if limit is None:
            return None
        cache = parse.reclaimable(self.text(f"{folder}/memory.stat"))
        return parse.headroom(limit, parse.number(self.text(usage)), cache)

    def drm_gpus(self) -> tuple[GpuFacts, ...]:
        """Cards of the kernel's own drivers; NVIDIA's tells more through its own tool."""
        devices = sorted((self._root / "sys/class/drm").glob("card[0-9]*/device"))
        # A connector (card0-DP-1) links to the same device as its card.
        cards = [device for device in devices if "-" not in device.parent.name]
        found = (parse.drm_card(self._drm_files(device)) for device in cards)
        return tuple(card for card in found if card is not None)

    def _drm_files(self, device: Path) -> parse.DrmFiles:
        path = str(device.relative_to(self._root))
        card = str(device.parent.relative_to(self._root))
        driver = device / "driver"
        return parse.DrmFiles(
            vendor=self.text(f"{path}/vendor") or "",
            name=self.text(f"{path}/product_name"),
            amd_total=self.text(f"{path}/mem_info_vram_total"),
            amd_used=self.text(f"{path}/mem_info_vram_used"),
            amd_shared=self.text(f"{path}/mem_info_gtt_total"),
            intel_total=self.text(f"{card}/lmem_total_bytes"),
            intel_free=self.text(f"{card}/lmem_avail_bytes"),
            driver=driver.readlink().name if driver.is_symlink() else None,
        )


def with_classes(cpu: CpuFacts, table: Sequence[LogicalCpu]) -> CpuFacts:
    """With the kinds of its cores, and how many of them are fast when not all are."""
    speeds = {item.core: item.speed for item in table}
    fast = cores.fast_cores(list(speeds.values()))
    return replace(
        cpu,
        performance_cores=fast if fast < len(speeds) else None,
        core_classes=cores.core_classes(table),
    )


def _least(values: Iterable[int | None]) -> int | None:
    return min((value for value in values if value is not None), default=None)
