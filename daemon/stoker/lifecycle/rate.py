"""Tokens per second over the last seconds. Pure: the caller tells the time."""

from __future__ import annotations

from collections import deque
from typing import Final

_WINDOW_S: Final = 5.0  # long enough to be readable in a menu, short enough to follow a stop
_STEP_S: Final = 0.25  # counts within a step share an entry


class TokenRate:
    def __init__(self) -> None:
        self._counts: deque[tuple[float, int]] = deque()
        self.total = 0

    def add(self, tokens: int, now: float) -> None:
        self.total += tokens
        if self._counts and now - self._counts[-1][0] < _STEP_S:
            since, before = self._counts[-1]
            self._counts[-1] = (since, before + tokens)
        else:
            self._counts.append((now, tokens))
        self._forget(now)

    def per_second(self, now: float) -> float:
        """0 when nothing came in the window."""
        self._forget(now)
        if not self._counts:
            return 0.0
        tokens = sum(count for _, count in self._counts)
        return tokens / max(_STEP_S, now - self._counts[0][0])

    def _forget(self, now: float) -> None:
        while self._counts and now - self._counts[0][0] > _WINDOW_S:
            self._counts.popleft()
