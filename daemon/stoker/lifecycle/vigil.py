"""Is a worker that says nothing still at work? Pure: the caller measures.

A long prompt keeps a healthy engine silent for minutes, so silence tells nothing; but an engine
that has a request and uses no processor time at all has hung. So has one that nobody asks anything
and that computes on and on: it lost its way in a request whose client is long gone.
"""

from __future__ import annotations

from typing import Final

# Looks in a row, five seconds apart. Counted in looks, not in seconds: when the whole machine
# or the daemon was suspended, the worker must not be judged by the clock.
_PATIENCE: Final = 6
_LEAST_CPU_S: Final = 0.01  # per look; the clock of processor time ticks that often
_LOST_CPU_S: Final = 2.5  # per look: half a processor
_LOST_PATIENCE: Final = 60  # looks; a slow machine ends a given-up batch of a prompt well before


class Vigil:
    """One per worker."""

    def __init__(self) -> None:
        self._last: tuple[float, int] | None = None
        self._looks = 0
        self._lost_looks = 0

    def has_hung(self, cpu_s: float | None, requests: int, tokens: int) -> bool:
        """One look: processor seconds used so far (None: cannot tell), requests, tokens so far."""
        before, self._last = self._last, None if cpu_s is None else (cpu_s, tokens)
        if before is None or cpu_s is None:
            self._looks = self._lost_looks = 0
            return False
        used_s = cpu_s - before[0]
        works = used_s >= _LEAST_CPU_S or tokens != before[1]
        self._looks = self._looks + 1 if requests and not works else 0
        self._lost_looks = self._lost_looks + 1 if not requests and used_s >= _LOST_CPU_S else 0
        return self._looks >= _PATIENCE or self._lost_looks >= _LOST_PATIENCE
