"""Whether anybody uses the daemon's models now, and since when nobody does.

Whoever measures in idle time must stop in the moment a request comes: `watch` is told at once,
before the request goes anywhere.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

log = structlog.get_logger(__name__)


class Busy:
    """One per lifecycle; used from the event loop's thread only."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last = clock()
        self._now = False
        self._watchers: list[Callable[[bool], None]] = []

    def watch(self, callback: Callable[[bool], None]) -> None:
        """Call it with True when the first request comes, with False when the last has ended."""
        self._watchers.append(callback)

    def set(self, *, busy: bool) -> None:
        if busy or self._now:
            self._last = self._clock()
        if busy is self._now:
            return
        self._now = busy
        for callback in self._watchers:
            try:
                callback(busy)
            except Exception:  # whoever measures must not be able to break a request
                log.exception("busy_callback_failed")

    @property
    def idle_s(self) -> float:
        return 0.0 if self._now else self._clock() - self._last
