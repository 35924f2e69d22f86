"""What this machine can run, what is wrong with it, and how to mend it. Pure: `stoker doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from stoker.hardware.facts import CpuFacts, GpuFacts, HardwareFacts

GIB: Final = 1024 * 1024 * 1024

# What the built-in runtime was compiled for; without them it dies of an illegal instruction.
X86_BASELINE: Final = ("avx2", "fma", "f16c", "bmi2")

# The common rule of thumb, for 4-bit models: parameters in billions -> memory in GiB.
SIZE_CLASSES: Final = (("1B", 2), ("3B", 4), ("7B", 8), ("13B", 16), ("34B", 36), ("70B", 72))
_GPU_CLASS: Final = "70B"  # fits in memory, but is too slow without a GPU
# Machines are sold with 8 "GB"; the firmware and a GPU take some before the system counts.
_SOLD_SIZE_SHARE: Final = 0.9
_LITTLE_MEMORY: Final = 2 * GIB
_LITTLE_DISK: Final = 5 * GIB  # one 7B model in 4 bits
_LARGE_MODEL: Final = 5_000_000_000  # bytes; 7B in 4 bits
_SHORT_SHARE: Final = 0.25  # of the memory still free: less, and loads will be refused


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of `stoker doctor`; `fix` is empty when there is nothing to do."""

    level: Literal["ok", "warn", "fail"]
    topic: str
    text: str
    fix: str = ""


def assess(
    facts: HardwareFacts, *, disk_free_bytes: int | None, tray_host: bool | None
) -> tuple[Finding, ...]:
    """All findings, in the order of their weight. None means unknown, which is not a fault."""
    return (
        _cpu(facts),
        _memory(facts),
        _sizes(facts),
        _limits(facts),
        _power(facts),
        _gpu(facts),
        _disk(facts, disk_free_bytes),
        _compiler(facts),
        _tray(facts, tray_host=tray_host),
    )


def missing_flags(cpu: CpuFacts) -> tuple[str, ...]:
    """Instruction sets that the built-in runtime needs and this CPU lacks; () when unknown."""
    if not cpu.is_x86 or not cpu.flags:
        return ()
    return tuple(flag for flag in X86_BASELINE if flag not in cpu.flags)


def usable_total_bytes(facts: HardwareFacts) -> int:
    """All memory that the daemon and its workers together may ever use."""
    limit = facts.limits.memory_limit_bytes
    total = facts.memory.total_bytes
    return total if limit is None else min(total, limit)


def reserve_bytes(facts: HardwareFacts, wish: int | None) -> int:
    """Memory of `facts.headroom_bytes` that stays free for others; `wish` is what the user set.

    What a worker may not take by its own limit (ulimit) stays free anyhow.
    """
    total = usable_total_bytes(facts)
    wanted = min(max(GIB, total // 10), total // 4) if wish is None else wish
    return max(0, wanted - (facts.system_headroom_bytes - facts.headroom_bytes))


def runnable_sizes(facts: HardwareFacts) -> tuple[str, ...]:
    """Size classes that fit by the rule of thumb, smallest first."""
    total = usable_total_bytes(facts) / GIB
    return tuple(
        name
        for name, needed in SIZE_CLASSES
        if total >= needed * _SOLD_SIZE_SHARE and (name != _GPU_CLASS or facts.gpus)
    )


def _cpu(facts: HardwareFacts) -> Finding:
    cpu = facts.cpu
    missing = missing_flags(cpu)
    if missing:
        return Finding(
            "fail",
            "cpu",
            f"{cpu.model} lacks {', '.join(missing)}, which the built-in engine needs",
            "Use a machine from 2014 or later; in a virtual machine, pass the host's CPU through.",
        )
    text = f"{cpu.model}, {_cores(cpu)}; the engine uses {facts.effective_cpus}"
    if cpu.is_x86 and not cpu.flags:
        return Finding("ok", "cpu", f"{text} (instruction sets unknown on this system)")
    return Finding("ok", "cpu", text)


def _cores(cpu: CpuFacts) -> str:
    if cpu.performance_cores is None:
        return f"{cpu.physical_cores} core{'' if cpu.physical_cores == 1 else 's'}"
    return f"{cpu.physical_cores} cores, {cpu.performance_cores} of them fast"


def _memory(facts: HardwareFacts) -> Finding:
    total, free = usable_total_bytes(facts), facts.headroom_bytes
    text = f"{total / GIB:.1f} GiB, {free / GIB:.1f} GiB of it free"
    if facts.bandwidth_bytes_per_s is not None:
        text += (
            f"; read at {_speed(facts.bandwidth_bytes_per_s)}, which sets how fast models can write"
        )
    if total < _LITTLE_MEMORY:
        fix = "Only models of about 0.5B will run; add memory or raise the container's limit."
        return Finding("warn", "memory", text, fix)
    if free < total * _SHORT_SHARE:
        fix = "Close other programs before you load a large model."
        return Finding("warn", "memory", text, fix)
    return Finding("ok", "memory", text)


def _sizes(facts: HardwareFacts) -> Finding:
    sizes = runnable_sizes(facts)
    rule = "rule of thumb for 4-bit models: 7B needs 8 GB, 13B 16 GB, 70B 72 GB and a GPU"
    if not sizes:
        return Finding(
            "warn",
            "models",
            f"too little memory for 1B models ({rule})",
            "Use models below 1B, such as `starter`.",
        )
    return Finding("ok", "models", f"up to {sizes[-1]} ({rule})")


def _limits(facts: HardwareFacts) -> Finding:
    limits, cpu = facts.limits, facts.cpu
    parts = []
    if limits.quota_cpus is not None and limits.quota_cpus < cpu.logical_cores:
        parts.append(f"a CPU quota of {limits.quota_cpus:g}")
    if limits.affinity_cpus < cpu.logical_cores:
        parts.append(f"{limits.affinity_cpus} of {cpu.logical_cores} CPUs allowed")
    limit = limits.memory_limit_bytes
    if limit is not None and limit < facts.memory.total_bytes:
        parts.append(f"a memory limit of {limit / GIB:.1f} GiB")
    allowed = [size for size in (limits.address_space_bytes, limits.data_bytes) if size is not None]
    if allowed:
        parts.append(f"{min(allowed) / GIB:.1f} GiB for each process (ulimit)")
    if not parts:
        return Finding("ok", "limits", "none; all of the machine can be used")
    if limits.quota_cpus is not None and limits.quota_cpus < 1:
        fix = "Give the container or service at least one whole CPU."
        return Finding("warn", "limits", ", ".join(parts), fix)
    return Finding("ok", "limits", ", ".join(parts))


def _power(facts: HardwareFacts) -> Finding:
    power = facts.power
    if power.throttled:
        fix = "Let it cool: free its vents, or give it a harder surface and a cooler place."
        return Finding("warn", "power", "the processor is hot and runs slower to cool down", fix)
    if power.on_battery:
        left = "" if power.percent is None else f" ({power.percent:.0f} % left)"
        text = f"on battery{left}; models are slower than on mains, and drain it"
    else:
        text = "on mains" if power.on_battery is False else "no battery found"
    if power.saver:
        fix = "Choose a balanced power mode while you work with models."
        return Finding("warn", "power", f"{text}; power saving is on, which slows models", fix)
    return Finding("ok", "power", text)


def _gpu(facts: HardwareFacts) -> Finding:
    if not facts.gpus:
        return Finding("ok", "gpu", "none found; models run on the CPU")
    names = ", ".join(_gpu_name(gpu) for gpu in facts.gpus)
    return Finding("ok", "gpu", f"{names}; the built-in engine does not use it")


def _gpu_name(gpu: GpuFacts) -> str:
    words = []
    if gpu.vram_total_bytes is not None:
        words.append(f"{gpu.vram_total_bytes / GIB:.0f} GiB")
    if gpu.vram_free_bytes is not None:
        words.append(f"{gpu.vram_free_bytes / GIB:.1f} GiB of it free")
    if gpu.unified:
        words.append("shares the system's memory")
    return f"{gpu.name} ({', '.join(words)})" if words else gpu.name


def _disk(facts: HardwareFacts, free: int | None) -> Finding:
    text = "free space unknown" if free is None else f"{free / GIB:.1f} GiB free for models"
    if facts.disk_read_bytes_per_s is not None:
        seconds = _LARGE_MODEL / facts.disk_read_bytes_per_s
        text += f"; read at {_speed(facts.disk_read_bytes_per_s)}: a 5 GB model in {seconds:.0f} s"
    if free is not None and free < _LITTLE_DISK:
        return Finding(
            "warn", "disk", text, "Free some space: a 7B model takes about 5 GB (`stoker rm`)."
        )
    return Finding("ok", "disk", text)


def _compiler(facts: HardwareFacts) -> Finding:
    compiler = facts.compiler
    if compiler is None:
        return Finding(
            "ok", "compiler", "none found; only an engine built for this machine needs it"
        )
    return Finding("ok", "compiler", f"{compiler.name} {compiler.version} ({compiler.path})")


def _speed(bytes_per_s: int) -> str:
    if bytes_per_s < 1e9:  # noqa: PLR2004  # a gigabyte
        return f"{bytes_per_s / 1e6:.0f} MB/s"
    return f"{bytes_per_s / 1e9:.1f} GB/s"


def _tray(facts: HardwareFacts, *, tray_host: bool | None) -> Finding:
    if tray_host is None:
        return Finding("ok", "tray", "not known whether this desktop shows tray icons")
    if tray_host:
        return Finding("ok", "tray", "this desktop shows tray icons")
    fix = "Everything works without it; use the `stoker` command."
    if facts.system == "linux":
        fix = "On GNOME, install the AppIndicator extension; or use the `stoker` command."
    return Finding("warn", "tray", "this desktop shows no tray icons", fix)
