"""Whether a server is up, and when to look again. Pure: what happened and when in, a time out.

A single failure is no verdict: a busy server misses a look now and then, and clients would see its
models come and go. Not for: asking (`forward`), or telling (`registry`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from stoker.errors import StokerError, UpstreamRefused

State = Literal["unknown", "up", "down"]

FIRST_RETRY_S: Final = 1.0
LONGEST_RETRY_S: Final = 60.0  # a server that comes up is noticed within this, or by a request
APART_S: Final = 5.0  # between two looks that requests ask for
_FAILURES: Final = 2  # in a row, until a server that was up is down
_SPREAD: Final = 0.2  # of a pause; many Stokers shall not ask one server at the same moment


@dataclass(slots=True)
class Health:
    """Of one server. Times are seconds of one clock; ``chance`` is a random number in [0, 1)."""

    check_every_s: float
    state: State = "unknown"
    latency_s: float | None = None  # of the last look that was answered
    error: StokerError | None = None  # of the last look, when it failed
    due_at: float = 0.0  # when to look next
    _failures: int = 0
    _looked_at: float = float("-inf")

    def answered(self, now: float, latency_s: float, chance: float) -> None:
        """A look brought a list of models."""
        self.state, self.error, self._failures = "up", None, 0
        self.latency_s = latency_s
        self._rest(now, self.check_every_s, chance)

    def failed(self, now: float, error: StokerError, chance: float) -> None:
        """A look brought none."""
        self._failures += 1
        self.error = error
        clear = isinstance(error, UpstreamRefused)  # it is there, and will say the same again
        if self.state != "up" or self._failures >= _FAILURES or clear:
            self.state = "down"
        pause = FIRST_RETRY_S * 2.0 ** min(self._failures - 1, 16)
        self._rest(now, min(pause, max(LONGEST_RETRY_S, self.check_every_s)), chance)

    def doubt(self, now: float) -> bool:
        """A request met something unexpected: look soon. Whether that is sooner than planned."""
        due_at = max(now, self._looked_at + APART_S)
        if due_at >= self.due_at:
            return False
        self.due_at = due_at
        return True

    def _rest(self, now: float, pause_s: float, chance: float) -> None:
        self._looked_at = now
        self.due_at = now + pause_s * (1 - _SPREAD / 2 + _SPREAD * chance)
