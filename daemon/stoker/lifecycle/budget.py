"""What there is for one more worker: free memory, and what the user's limit leaves of it. Pure.

Not for: how much memory a worker needs (`stoker.tuning`), or who must go for it (`eviction`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from stoker.hardware.facts import GpuFacts, HardwareFacts

# One part in so many of the user's limit stays free: no prediction was ever short by more
# (tests/benchmarks/memory), and a limit that is passed by a little is passed.
_MARGIN: Final = 50


@dataclass(frozen=True, slots=True)
class Room:
    """Free memory as of a moment ago, and what of it is spoken for.

    A loaded model counts with all that was planned for it: what it has taken is not in the free
    memory any more, and what it may still take (the page cache of its weights, cells that no
    conversation has touched yet) is promised. Both are part of the user's limit.
    """

    hardware: HardwareFacts
    promised_bytes: int = 0  # what loaded models may still take of the memory that looks free
    taken_bytes: int = 0  # what they have taken already
    limit_bytes: int | None = None  # for all models together, set by the user

    def hardware_with(self, extra_bytes: int, gpu_bytes: int = 0) -> HardwareFacts:
        """The machine as a plan may see it, were so much more free; ``gpu_bytes`` on its GPUs."""
        return with_memory(self.hardware, extra_bytes - self.promised_bytes, gpu_bytes)

    def most_bytes(self, extra_bytes: int) -> int | None:
        """What the limit would leave for one more then; None without a limit."""
        if self.limit_bytes is None:
            return None
        usable = self.limit_bytes - self.limit_bytes // _MARGIN
        return max(0, usable - self.taken_bytes - self.promised_bytes + extra_bytes)


def with_memory(hardware: HardwareFacts, change_bytes: int, gpu_bytes: int = 0) -> HardwareFacts:
    """The same machine with so much more, or less, free memory, and so much more on its GPUs."""
    memory, limits = hardware.memory, hardware.limits
    headroom = limits.memory_headroom_bytes
    return replace(
        hardware,
        memory=replace(memory, available_bytes=max(0, memory.available_bytes + change_bytes)),
        limits=limits
        if headroom is None
        else replace(limits, memory_headroom_bytes=max(0, headroom + change_bytes)),
        gpus=_with_gpu_memory(hardware.gpus, gpu_bytes),
    )


def _with_gpu_memory(gpus: tuple[GpuFacts, ...], more_bytes: int) -> tuple[GpuFacts, ...]:
    """Given to one after the other, to each as much as it has: whose it was is not known."""
    given, left = [], more_bytes
    for gpu in gpus:
        free, total = gpu.vram_free_bytes, gpu.vram_total_bytes
        if free is not None and not gpu.unified:
            back = left if total is None else min(left, max(0, total - free))
            gpu = replace(gpu, vram_free_bytes=free + back)  # noqa: PLW2901  # its new value
            left -= back
        given.append(gpu)
    return tuple(given)
