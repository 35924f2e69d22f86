"""Is a worker that says nothing still at work? Pure: the caller measures.

A long prompt keeps a healthy engine silent for minutes, so silence tells nothing; but an engine
that has a request and uses no processor time at all has hung.
"""

from __future__ import annotations

from typing import Final

# Looks in a row, five seconds apart. Counted in looks, not in seconds: when the whole machine
# or the daemon was suspended, the worker must not be judged by the clock.
_PATIENCE: Final = 6
_LEAST_CPU_S: Final = 0.01  # per look; the clock of processor time ticks that often


class Vigil:
    """One per worker."""

    def __init__(self) -> None:
        self._last: tuple[float, int] | None = None
        self._looks = 0

    def has_hung(self, cpu_s: float | None, requests: int, tokens: int) -> bool:
        """One look: processor seconds used so far (None: cannot tell), requests, tokens so far."""
        before, self._last = self._last, None if cpu_s is None else (cpu_s, tokens)
        if before is None or cpu_s is None or not requests:
            self._looks = 0
            return False
        works = cpu_s - before[0] >= _LEAST_CPU_S or tokens != before[1]
        self._looks = 0 if works else self._looks + 1
        return self._looks >= _PATIENCE
