"""Wait until the memory of stopped workers is really free again, before the next plan looks at it.

A process that is gone has given its memory back, but not everybody sees that at once: a graphics
driver cleans up for seconds, and some systems count free memory in batches. A plan made too early
would choose a short context, or send away a model that could stay. Linux counts memory as free
before it reports the end of a process (measured: all of it within a millisecond), so there only
that of a GPU is waited for. `wanted` and `missing` are pure.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import anyio
import structlog
from anyio.to_thread import run_sync

from stoker.hardware.facts import HardwareFacts

log = structlog.get_logger(__name__)

TIMEOUT_S: Final = 5.0  # after the stop; drivers took up to that long
_PAUSES_S: Final = (0.02, 0.05, 0.1, 0.2)  # between two looks; the last one again and again
# When nothing has come for this long, no more will: somebody else took it.
_STILL_S: Final = 0.1
_SHARE: Final = 0.75  # of what must be seen again; other programs may take some meanwhile
_NOISE: Final = 64 * 1024 * 1024  # bytes; a system's free memory goes up and down by as much
_COMES: Final = 8 * 1024 * 1024  # bytes between two looks: it is on its way


@dataclass(frozen=True, slots=True)
class Wanted:
    """What must be seen free."""

    memory_bytes: int | None  # None: what is free is seen at once
    gpu_bytes: int | None = None  # None: none of it was on a GPU, or nobody tells


def wanted(
    before: HardwareFacts, taken_bytes: int, gpu_bytes: int, *, at_once: bool = False
) -> Wanted:
    """From what was free before the stop, and what the stopped workers had.

    ``at_once``: the system counts their memory as free before it says that they ended.
    """
    memory = None if at_once else before.system_headroom_bytes + _returned(taken_bytes)
    free = gpu_free_bytes(before)
    on_gpu = free is not None and gpu_bytes > 0
    return Wanted(memory, (free or 0) + _returned(gpu_bytes) if on_gpu else None)


def missing(now: HardwareFacts, want: Wanted) -> int:
    """How many bytes of it are not seen yet; 0 when it is back."""
    gpu_free = gpu_free_bytes(now)
    gpu = 0 if want.gpu_bytes is None or gpu_free is None else want.gpu_bytes - gpu_free
    memory = 0 if want.memory_bytes is None else want.memory_bytes - now.system_headroom_bytes
    return max(0, gpu) + max(0, memory)


def gpu_free_bytes(hardware: HardwareFacts) -> int | None:
    """Of all GPUs with memory of their own; None when none of them tells."""
    free = [
        gpu.vram_free_bytes
        for gpu in hardware.gpus
        if gpu.vram_free_bytes is not None and not gpu.unified
    ]
    return sum(free) if free else None


def _returned(had_bytes: int) -> int:
    return int(had_bytes * _SHARE) - _NOISE


class Reclaim:
    """What stopped workers must give back. One for all workers of a daemon."""

    def __init__(
        self,
        hardware: Callable[[], HardwareFacts],
        *,
        timeout_s: float = TIMEOUT_S,
        still_s: float = _STILL_S,
        at_once: bool = sys.platform == "linux",
    ) -> None:
        """``hardware`` is blocking, and asked in a thread. ``at_once``: see `wanted`."""
        self._at_once = at_once
        self._hardware = hardware
        self._timeout_s = timeout_s
        self._still_s = still_s
        self._before: HardwareFacts | None = None
        self._taken_bytes = self._gpu_bytes = 0
        self._deadline = 0.0

    async def note(self, taken_bytes: int, gpu_bytes: int = 0) -> None:
        """Before a worker with so much memory is stopped. Several may stop at the same time."""
        if self._at_once and not gpu_bytes:
            return
        if anyio.current_time() >= self._deadline:
            self._forget()
        if self._before is None:
            self._begin(await run_sync(self._hardware, abandon_on_cancel=True))
        self._taken_bytes += taken_bytes
        self._gpu_bytes += gpu_bytes
        self._deadline = anyio.current_time() + self._timeout_s

    async def settled(self) -> bool:
        """When the workers are gone: return once their memory is back, or will not come back.

        At once when nothing was stopped in the last seconds. Whether it is all back.
        """
        before, deadline = self._before, self._deadline
        taken_bytes, gpu_bytes = self._taken_bytes, self._gpu_bytes
        self._forget()  # what is stopped from now on is another matter
        if before is None or anyio.current_time() >= deadline:
            return True
        want = wanted(before, taken_bytes, gpu_bytes, at_once=self._at_once)
        left = await self._wait(want, deadline)
        if left:
            log.info(
                "memory_not_back",
                missing_bytes=left,
                taken_bytes=taken_bytes,
                gpu_bytes=gpu_bytes,
            )
        return not left

    async def _wait(self, want: Wanted, deadline: float) -> int:
        """What is missing in the end."""
        pauses = iter(_PAUSES_S)
        least, since = None, anyio.current_time()
        while left := missing(await run_sync(self._hardware, abandon_on_cancel=True), want):
            now = anyio.current_time()
            if least is None or left < least - _COMES:
                least, since = left, now
            # A driver may say nothing for seconds, and then all at once: no giving up before.
            still = want.gpu_bytes is None and now - since >= self._still_s
            if still or now >= deadline:
                break
            await anyio.sleep(next(pauses, _PAUSES_S[-1]))
        return left

    def _begin(self, before: HardwareFacts) -> None:
        """The first look counts: what came later may have seen memory come back."""
        if self._before is None:
            self._before = before

    def _forget(self) -> None:
        self._before = None
        self._taken_bytes = self._gpu_bytes = 0
