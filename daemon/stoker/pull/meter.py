"""Speed and remaining time of a transfer, from samples over the last seconds. Pure."""

from __future__ import annotations

from collections import deque
from typing import Final

WINDOW_S: Final = 10.0  # long enough to be calm, short enough to follow a change of network


class Meter:
    """Feed it (time, bytes so far); times are from a monotonic clock."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def add(self, now: float, total: int) -> None:
        """A total that shrank (the transfer began again) starts a new measurement."""
        if self._samples and total < self._samples[-1][1]:
            self._samples.clear()
        self._samples.append((now, total))
        while len(self._samples) > 2 and now - self._samples[1][0] >= WINDOW_S:  # noqa: PLR2004
            self._samples.popleft()

    def speed(self) -> float:
        """Bytes per second over the window; 0 before there is anything to tell."""
        if len(self._samples) < 2:  # noqa: PLR2004
            return 0.0
        (start, before), (end, after) = self._samples[0], self._samples[-1]
        return (after - before) / (end - start) if end > start else 0.0

    def eta(self, remaining: int) -> float | None:
        """Seconds until done at the present speed; None when nothing moves."""
        speed = self.speed()
        return remaining / speed if speed > 0 else None
