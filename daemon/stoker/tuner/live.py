"""Watches how fast tuned models really write, on a machine that does nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import psutil

from stoker.schemas import ModelView
from stoker.tuner.drift import Drift
from stoker.types import ModelId

_OTHERS_CPUS: Final = 0.5  # what other programs may use for the moment to count
_SHORTEST_S: Final = 1.0  # of a moment; the system counts processor time in ticks


@dataclass(frozen=True, slots=True)
class _Moment:
    at: float
    pid: int
    busy_s: float  # all processors together
    worker_s: float


class LiveSpeeds:
    """Told of every ready model now and then. Used from the event loop's thread only."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last: dict[str, _Moment] = {}
        self._drift: dict[str, Drift] = {}
        self._slow: set[str] = set()

    def look(self, model: ModelView, tuned: float) -> None:
        """`tuned` is how fast it was measured to write, in tokens per second."""
        if model.in_flight != 1 or not model.tokens_per_s or model.pid is None:
            self._last.pop(model.id, None)
            return
        before, now = self._last.get(model.id), self._moment(model.pid)
        if now is None:
            return
        self._last[model.id] = now
        if before is None or before.pid != now.pid or now.at - before.at < _SHORTEST_S:
            return
        others = (now.busy_s - before.busy_s) - (now.worker_s - before.worker_s)
        if others / (now.at - before.at) > _OTHERS_CPUS:
            return
        if self._drift.setdefault(model.id, Drift()).see(model.tokens_per_s, tuned):
            self._slow.add(model.id)

    def is_slow(self, model: ModelId) -> bool:
        return str(model) in self._slow

    def forget(self, model: ModelId) -> None:
        """It was tuned anew."""
        self._slow.discard(str(model))
        self._drift.pop(str(model), None)

    def _moment(self, pid: int) -> _Moment | None:
        try:
            worker = psutil.Process(pid).cpu_times()
        except psutil.Error:
            return None
        total = psutil.cpu_times()
        busy = sum(total) - total.idle - getattr(total, "iowait", 0.0)
        # Time of guests is counted as the user's, too.
        busy -= getattr(total, "guest", 0.0) + getattr(total, "guest_nice", 0.0)
        return _Moment(self._clock(), pid, busy, worker.user + worker.system)
