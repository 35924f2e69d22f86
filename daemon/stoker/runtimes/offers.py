"""Which runtimes would help on this machine, and why. Pure: facts in, offers out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from stoker.hardware.assess import missing_flags
from stoker.hardware.facts import GpuFacts, HardwareFacts
from stoker.runtimes.build import jobs_for
from stoker.runtimes.manifest import Kind, Runtime
from stoker.runtimes.pins import Pins, pins
from stoker.runtimes.recipe import beyond_baseline, recipe
from stoker.runtimes.wheels import FIRST_CUDA_12, driver_of

_CPU_MINUTES: Final = 12  # of compiling; measured on a server CPU of 2.7 GHz
_LEAST_MEMORY: Final = 1_500_000_000  # bytes: one compiler, and room for what else runs
_LEAST_VRAM: Final = 4_000_000_000  # bytes; a smaller one holds too little of a model to help


@dataclass(frozen=True, slots=True)
class Offer:
    """A runtime that could be installed."""

    kind: Kind
    why: str  # for a person
    automatic: bool  # worth doing without being asked, once the machine is idle


def offered(
    hardware: HardwareFacts, installed: Sequence[Runtime], sources: Pins | None = None
) -> tuple[Offer, ...]:
    """What is not installed yet and would help, the greatest gain first."""
    sources = sources or pins()
    found = [*_gpu(hardware), *_native(hardware)]
    return tuple(
        offer for offer in found if not _is_there(offer.kind, hardware, installed, sources)
    )


def _is_there(
    kind: Kind, hardware: HardwareFacts, installed: Sequence[Runtime], sources: Pins
) -> bool:
    """The same version, and for a compiled one the same variant: the processor may have changed."""
    compiled = kind in {"native", "metal"}
    version = sources.native.version if compiled else sources.wheels.version
    made = recipe(hardware.cpu, hardware.system, compiler=hardware.compiler).variant
    return any(
        each.kind == kind and each.version == version and (not compiled or each.variant == made)
        for each in installed
    )


def _native(hardware: HardwareFacts) -> list[Offer]:
    if hardware.system != "linux":
        return []  # elsewhere the built-in runtime is as good, or nothing is known about the CPU
    lacks = missing_flags(hardware.cpu)
    gains = beyond_baseline(hardware.cpu)
    if not lacks and not gains:
        return []
    if lacks:
        why = f"the built-in runtime cannot run here: this CPU lacks instructions ({_list(lacks)})"
    else:
        why = f"this CPU has instructions that the built-in runtime does not use ({_list(gains)})"
    if hardware.compiler is None:
        return [Offer("native", f"{why}; it needs a C++ compiler", automatic=False)]
    minutes = math.ceil(_CPU_MINUTES / jobs_for(hardware))
    why = f"{why}; it is compiled in about {minutes} min, while nothing else runs"
    return [Offer("native", why, automatic=hardware.headroom_bytes >= _LEAST_MEMORY)]


def _gpu(hardware: HardwareFacts) -> list[Offer]:
    if hardware.system not in {"linux", "windows"}:
        return []  # macOS: the built-in runtime uses Metal
    found: list[Offer] = []
    driver = driver_of(hardware.gpus)
    if driver is not None and driver >= FIRST_CUDA_12:
        names = _list([gpu.name for gpu in hardware.gpus if gpu.vendor == "nvidia"])
        found.append(Offer("cuda", f"{names} computes many times faster", automatic=True))
    others = [gpu for gpu in hardware.gpus if gpu.vendor != "nvidia" or not found]
    if others:
        best = max(others, key=lambda gpu: gpu.vram_total_bytes or 0)
        found.append(Offer("vulkan", f"{best.name} may be faster", automatic=_is_strong(best)))
    return found


def _is_strong(gpu: GpuFacts) -> bool:
    """Of its own memory, and enough of it; one that shares the system's may well be slower."""
    return gpu.unified is not True and (gpu.vram_total_bytes or 0) >= _LEAST_VRAM


def _list(words: Sequence[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last
