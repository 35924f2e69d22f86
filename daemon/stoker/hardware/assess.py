"""What this machine can run, what is wrong with it, and how to mend it. Pure: `stoker doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from stoker.hardware.facts import CpuFacts, HardwareFacts

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
        _gpu(facts),
        _disk(disk_free_bytes),
        _tray(facts, tray_host=tray_host),
    )


def missing_flags(cpu: CpuFacts) -> tuple[str, ...]:
    """Instruction sets that the built-in runtime needs and this CPU lacks; () when unknown."""
    if not cpu.is_x86 or not cpu.flags:
        return ()
    return tuple(flag for flag in X86_BASELINE if flag not in cpu.flags)


def usable_total_bytes(facts: HardwareFacts) -> int:
    """All memory that this process may ever use."""
    limit = facts.limits.memory_limit_bytes
    total = facts.memory.total_bytes
    return total if limit is None else min(total, limit)


def reserve_bytes(facts: HardwareFacts, wish: int | None) -> int:
    """Memory that stays free for other programs; `wish` is what the user set."""
    if wish is not None:
        return wish
    total = usable_total_bytes(facts)
    return min(max(GIB, total // 10), total // 4)


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
    text = f"{cpu.model}, {cpu.physical_cores} cores; the engine uses {facts.effective_cpus}"
    if cpu.is_x86 and not cpu.flags:
        return Finding("ok", "cpu", f"{text} (instruction sets unknown on this system)")
    return Finding("ok", "cpu", text)


def _memory(facts: HardwareFacts) -> Finding:
    total, free = usable_total_bytes(facts), facts.headroom_bytes
    text = f"{total / GIB:.1f} GiB, {free / GIB:.1f} GiB of it free"
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
    if not parts:
        return Finding("ok", "limits", "none; all of the machine can be used")
    if limits.quota_cpus is not None and limits.quota_cpus < 1:
        fix = "Give the container or service at least one whole CPU."
        return Finding("warn", "limits", ", ".join(parts), fix)
    return Finding("ok", "limits", ", ".join(parts))


def _gpu(facts: HardwareFacts) -> Finding:
    if not facts.gpus:
        return Finding("ok", "gpu", "none found; models run on the CPU")
    names = ", ".join(
        gpu.name
        if gpu.vram_total_bytes is None
        else f"{gpu.name} ({gpu.vram_total_bytes / GIB:.0f} GiB)"
        for gpu in facts.gpus
    )
    return Finding("ok", "gpu", f"{names}; the built-in engine does not use it")


def _disk(free: int | None) -> Finding:
    if free is None:
        return Finding("ok", "disk", "free space unknown")
    text = f"{free / GIB:.1f} GiB free for models"
    if free < _LITTLE_DISK:
        return Finding(
            "warn", "disk", text, "Free some space: a 7B model takes about 5 GB (`stoker rm`)."
        )
    return Finding("ok", "disk", text)


def _tray(facts: HardwareFacts, *, tray_host: bool | None) -> Finding:
    if tray_host is None:
        return Finding("ok", "tray", "not known whether this desktop shows tray icons")
    if tray_host:
        return Finding("ok", "tray", "this desktop shows tray icons")
    fix = "Everything works without it; use the `stoker` command."
    if facts.system == "linux":
        fix = "On GNOME, install the AppIndicator extension; or use the `stoker` command."
    return Finding("warn", "tray", "this desktop shows no tray icons", fix)
