"""When the controller wakes: alarms, back-off, and how often a face may change. Pure.

Nothing here has a clock; whoever asks says what time it is, in monotonic seconds.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final

FACE_S: Final = 0.25  # between two faces; an eye follows no more, and a panel redraws each one
READ_S: Final = 0.05  # between two reads; a socket holds about 40 events, then the daemon waits
LOOK_S: Final = 1.0  # between two looks at the resources while the menu is open
AROUND_S: Final = 2.0  # after the start, and after the daemon's: others start then, too
MENU_S: Final = 60.0  # a menu that was opened; some hosts never say that it was closed
SNAPSHOT_S: Final = 10.0  # for the first event; a busy daemon takes a second
SILENCE_S: Final = 45.0  # the daemon sends something every 15 s
STEADY_S: Final = 10.0  # a stream that lived so long was a good one

_FIRST_RETRY_S: Final = 1.0
_LONGEST_RETRY_S: Final = 10.0
_GROWTH: Final = 1.5


class Alarm(Enum):
    CONNECT = auto()  # try to reach the daemon
    SILENCE = auto()  # the daemon has said nothing for too long
    TICK = auto()  # the face changes by time alone
    LOOK = auto()  # the open menu wants numbers
    AROUND = auto()  # look at what changes rarely, so that a menu that opens is complete
    MENU = auto()  # take the menu for closed
    HOST = auto()  # tell that no icon can be shown


class Alarms:
    """At most one time for each alarm."""

    def __init__(self) -> None:
        self._at_s: dict[Alarm, float] = {}

    def __contains__(self, alarm: Alarm) -> bool:
        return alarm in self._at_s

    def set(self, alarm: Alarm, at_s: float) -> None:
        self._at_s[alarm] = at_s

    def clear(self, *alarms: Alarm) -> None:
        for alarm in alarms:
            self._at_s.pop(alarm, None)

    def ring(self, now_s: float) -> list[Alarm]:
        """Those that are due, the earliest first; each one rings once."""
        due = sorted((at_s, alarm.value) for alarm, at_s in self._at_s.items() if at_s <= now_s)
        rung = [Alarm(value) for _, value in due]
        self.clear(*rung)
        return rung

    def next_s(self) -> float | None:
        """When the next one is due; None when there is none."""
        return min(self._at_s.values(), default=None)


def retry_s(failures: int) -> float:
    """How long to wait before the next attempt, after so many failures in a row."""
    if failures > _LONGEST_RETRY_S:  # far beyond the longest; a power of it would overflow
        return _LONGEST_RETRY_S
    return min(_FIRST_RETRY_S * _GROWTH**failures, _LONGEST_RETRY_S)
