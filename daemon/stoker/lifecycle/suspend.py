"""Did the machine sleep, did the daemon stand still, was the clock set? Pure, but for `clocks`.

Asked every few seconds. What passed in between is compared on three clocks: the monotonic one,
which stands still while Linux sleeps; the one that counts sleep as well, where there is one; and
the wall clock, which anybody may set.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

_STEP_S: Final = 5.0  # between two looks
_LATE_S: Final = 15.0  # by which a look may come late on a busy machine
_SLACK_S: Final = 5.0  # less between two clocks is no gap: time servers slew, reads are not atomic


@dataclass(frozen=True, slots=True)
class Gap:
    """What happened between two looks beyond their usual distance."""

    slept_s: float = 0.0  # the machine slept, and the monotonic clock with it
    stalled_s: float = 0.0  # the monotonic clock ran, but the daemon did not
    wall_jump_s: float = 0.0  # the wall clock was set; negative: back

    @property
    def woke(self) -> bool:
        """Whether time passed in which nobody could do anything."""
        return self.slept_s > 0 or self.stalled_s > 0


class Clockwork:
    """One per daemon."""

    def __init__(self) -> None:
        self._last: tuple[float, float, float | None] | None = None

    def look(self, monotonic: float, wall: float, boottime: float | None = None) -> Gap | None:
        """Compare with the last look; None when nothing unusual happened.

        Without ``boottime`` a sleep and a clock that was set forward look the same; it is then
        taken for a sleep, after which nothing is done that would harm an awake machine.
        """
        before, self._last = self._last, (monotonic, wall, boottime)
        if before is None:
            return None
        ran_s = monotonic - before[0]
        drift_s = (wall - before[1]) - ran_s
        if boottime is not None and before[2] is not None:
            slept_s = (boottime - before[2]) - ran_s
        else:
            slept_s = drift_s
        slept_s = slept_s if slept_s > _SLACK_S else 0.0
        jump_s = drift_s - slept_s
        gap = Gap(
            slept_s,
            max(0.0, ran_s - _STEP_S) if ran_s > _STEP_S + _LATE_S else 0.0,
            jump_s if abs(jump_s) > _SLACK_S else 0.0,
        )
        return gap if gap != Gap() else None


def clocks() -> tuple[float, float, float | None]:
    """The arguments of `Clockwork.look`, now."""
    boot = getattr(time, "CLOCK_BOOTTIME", None)  # Linux
    return time.monotonic(), time.time(), None if boot is None else time.clock_gettime(boot)
