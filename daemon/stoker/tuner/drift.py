"""Whether a tuned model has become slower than it was measured to be. Pure: told, never looks.

Only what a machine does when it is otherwise idle counts, with one answer at a time; and since
a long conversation is slower than a short one, only the fastest of many moments does.
"""

from __future__ import annotations

from typing import Final

_SLOWER: Final = 0.8  # of the tuned speed
_ENOUGH: Final = 12  # moments; at one each five seconds a minute of writing


class Drift:
    """Live decode speeds of one model against its tuned one."""

    def __init__(self) -> None:
        self._moments = 0
        self._fastest = 0.0

    def see(self, rate: float, tuned: float) -> bool:
        """One moment's tokens per second; True when the model is slow, and has been for long."""
        self._moments += 1
        self._fastest = max(self._fastest, rate)
        if self._moments < _ENOUGH:
            return False
        slow = self._fastest < _SLOWER * tuned
        self._moments, self._fastest = 0, 0.0
        return slow
