"""Under which circumstances a measurement holds: one short text, compared and never taken apart.

It changes with everything that makes a machine faster or slower for long: the processor, how much
of it may be used, how much memory there is, the power mode, the graphics processors. It does not
change with what comes and goes, such as free memory or heat. Pure.
"""

from __future__ import annotations

import hashlib
import math
from typing import Final, Literal

from stoker.hardware.facts import HardwareFacts

VERSION: Final = 1  # of what the text is made of; another one makes every measurement void
LENGTH: Final = 24  # hex digits

PowerMode = Literal["mains", "battery", "saver"]


def tuning_key(hardware: HardwareFacts) -> str:
    """The same text for the same machine in the same mode, on every start."""
    cpu, limits = hardware.cpu, hardware.limits
    quota = "-" if limits.quota_cpus is None else f"{limits.quota_cpus:.2f}"
    parts = (
        f"v{VERSION}",
        hardware.system,
        cpu.arch,
        cpu.model,
        " ".join(sorted(cpu.flags)),
        f"{cpu.physical_cores}/{cpu.logical_cores}/{cpu.performance_cores}",
        f"{hardware.effective_cpus}/{limits.affinity_cpus}/{quota}",
        memory_class(hardware),
        power_mode(hardware),
        *(f"{gpu.vendor} {gpu.name} {gpu.vram_total_bytes}" for gpu in hardware.gpus),
    )
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:LENGTH]


def power_mode(hardware: HardwareFacts) -> PowerMode:
    """Processors run slower on a battery, and slower still when told to save."""
    if hardware.power.saver:
        return "saver"
    return "battery" if hardware.power.on_battery else "mains"


def memory_class(hardware: HardwareFacts) -> str:
    """Which power of two the memory is next to: kernels reserve a little more or less of it."""
    limit = hardware.limits.memory_limit_bytes
    total = hardware.memory.total_bytes
    usable = total if limit is None else min(limit, total)
    return f"2^{round(math.log2(max(1, usable)))}"
