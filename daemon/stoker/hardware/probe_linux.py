"""Linux: /proc, /sys and cgroups v1 and v2. Thin; what the text means is decided in `parse`."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Final

from stoker.hardware import parse
from stoker.hardware.facts import CpuFacts, GpuFacts, LimitFacts, MemoryFacts

_LONGEST_FILE: Final = 4 * 1024 * 1024  # characters; /proc/cpuinfo of 256 CPUs has half of it

_SMT: Final = 2  # threads per core, at most, on x86


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

    def cpu(self, fallback: CpuFacts) -> CpuFacts:
        """`fallback` corrected by what /proc and /sys say."""
        info = parse.cpuinfo(self.text("proc/cpuinfo") or "")
        cores = info.physical_cores
        # Some virtual machines give all their CPUs the same core number.
        if cores is not None and fallback.is_x86 and cores * _SMT < fallback.logical_cores:
            cores = fallback.logical_cores
        return CpuFacts(
            arch=fallback.arch,
            model=info.model or fallback.model,
            physical_cores=cores or fallback.physical_cores,
            logical_cores=fallback.logical_cores,
            performance_cores=self._performance_cores(),
            flags=info.flags,
        )

    def _performance_cores(self) -> int | None:
        """Intel names its P-cores' threads; ARM gives each CPU a capacity."""
        fast = self.text("sys/devices/cpu_core/cpus")
        if fast is not None and self.text("sys/devices/cpu_atom/cpus") is not None:
            return self._cores_of(fast)
        folder = self._root / "sys/devices/system/cpu"
        values = [
            parse.number(self.text(str(path.relative_to(self._root))))
            for path in folder.glob("cpu[0-9]*/cpu_capacity")
        ]
        return parse.performance_cores([value for value in values if value is not None])

    def _cores_of(self, cpus: str) -> int | None:
        """Cores behind a list of logical CPUs: siblings share one list."""
        siblings = {
            self.text(f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
            for cpu in parse.cpu_numbers(cpus)
        }
        return len(siblings - {None}) or len(parse.cpu_numbers(cpus)) or None

    def memory(self) -> MemoryFacts | None:
        values = parse.meminfo(self.text("proc/meminfo") or "")
        if "MemTotal" not in values or "MemAvailable" not in values:
            return None
        return MemoryFacts(values["MemTotal"], values["MemAvailable"])

    def limits(self, affinity_cpus: int) -> LimitFacts:
        """The tightest limit of this process's cgroup and all that enclose it."""
        own = parse.own_cgroups(self.text("proc/self/cgroup") or "")
        quotas: list[float | None] = []
        limits: list[int | None] = []
        rooms: list[int | None] = []
        for folder in self._groups("sys/fs/cgroup", own.get("")):
            quotas.append(parse.v2_quota(self.text(f"{folder}/cpu.max")))
            limit = parse.memory_limit(self.text(f"{folder}/memory.max"))
            limits.append(limit)
            rooms.append(self._room(limit, f"{folder}/memory.current", folder))
        for folder in self._groups("sys/fs/cgroup/cpu", own.get("cpu")):
            quota, period = f"{folder}/cpu.cfs_quota_us", f"{folder}/cpu.cfs_period_us"
            quotas.append(parse.v1_quota(self.text(quota), self.text(period)))
        for folder in self._groups("sys/fs/cgroup/memory", own.get("memory")):
            limit = parse.memory_limit(self.text(f"{folder}/memory.limit_in_bytes"))
            limits.append(limit)
            rooms.append(self._room(limit, f"{folder}/memory.usage_in_bytes", folder))
        return LimitFacts(
            affinity_cpus=affinity_cpus,
            quota_cpus=min((value for value in quotas if value is not None), default=None),
            memory_limit_bytes=min((value for value in limits if value is not None), default=None),
            memory_headroom_bytes=min(
                (value for value in rooms if value is not None), default=None
            ),
        )

    def _groups(self, mount: str, path: str | None) -> list[str]:
        """Folders from the mount down to our own group.

        In a container the path may be the host's, of which only the mount itself is visible:
        folders that do not exist are skipped by reading nothing from them.
        """
        if path is None or ".." in PurePosixPath(path).parts:
            return [mount] if path is not None else []
        names = [part for part in PurePosixPath(path).parts if part != "/"]
        return ["/".join((mount, *names[:depth])) for depth in range(len(names) + 1)]

    def _room(self, limit: int | None, usage: str, folder: str) -> int | None:
        if limit is None:
            return None
        cache = parse.reclaimable(self.text(f"{folder}/memory.stat"))
        return parse.headroom(limit, parse.number(self.text(usage)), cache)

    def drm_gpus(self) -> tuple[GpuFacts, ...]:
        """Cards of the kernel's own drivers; NVIDIA's tells more through its own tool."""
        found = []
        for device in sorted((self._root / "sys/class/drm").glob("card[0-9]*/device")):
            path = str(device.relative_to(self._root))
            card = parse.drm_card(
                self.text(f"{path}/vendor") or "",
                self.text(f"{path}/mem_info_vram_total"),
                self.text(f"{path}/mem_info_vram_used"),
                self.text(f"{path}/product_name"),
            )
            # A connector (card0-DP-1) links to the same device as its card.
            if card is not None and "-" not in device.parent.name:
                found.append(card)
        return tuple(found)
