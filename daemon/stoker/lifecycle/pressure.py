"""Do other programs need the memory that idle models hold? `Pressure` is pure: the caller measures.

A plan leaves a reserve to others. When they have used more than half of it, and go on doing so,
idle models should leave before the kernel drops the pages of weights, swaps, or kills. Not for:
which models leave (`scheduler`).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from stoker.hardware.assess import reserve_bytes
from stoker.hardware.facts import HardwareFacts

_PATIENCE: Final = 2  # looks in a row, five seconds apart; a compiler's peak is over by then
_STALLED: Final = 0.05  # of the time somebody waits for memory: it is short, one look is enough
# A machine whose user keeps nothing for others is not to be driven to the end all the same.
_LEAST_RESERVE: Final = 256 * 1024 * 1024
_LEAST_SHARE: Final = 32  # of a small machine's memory, one part in so many

_PSI: Final = Path("/proc/pressure/memory")
_SOME: Final = re.compile(r"^some avg10=(\d{1,3}(?:\.\d{1,4})?) ", re.MULTILINE)


class Pressure:
    """Remembers the last looks. One for the machine."""

    def __init__(self) -> None:
        self._low_looks = 0

    def look(
        self,
        hardware: HardwareFacts,
        *,
        promised_bytes: int,
        reserve: int | None = None,
        stalled: float | None = None,
    ) -> int:
        """How many bytes idle models should give back now; 0 when all is well.

        ``promised_bytes`` is what loaded models may still take of the memory that looks free: on
        Linux the page cache of weights counts as free, and is what others squeeze out first.
        ``reserve`` is what the user set, ``stalled`` the share of time that somebody waited for
        memory (None: not known here).
        """
        kept = _reserve(hardware, reserve)
        # Elsewhere what a process has mapped and uses is not counted as free to begin with.
        promised_bytes = promised_bytes if hardware.system == "linux" else 0
        spare = hardware.system_headroom_bytes - promised_bytes
        if spare >= kept // 2:
            self.rest()
            return 0
        self._low_looks += 1
        waits = stalled is not None and stalled >= _STALLED
        if self._low_looks < _PATIENCE and not waits:
            return 0
        self.rest()  # what leaves takes a moment to be seen
        return kept - spare

    def rest(self) -> None:
        """Nothing is to be judged for now: looks in a row begin anew."""
        self._low_looks = 0


def _reserve(hardware: HardwareFacts, wish: int | None) -> int:
    least = min(_LEAST_RESERVE, hardware.memory.total_bytes // _LEAST_SHARE)
    return max(least, reserve_bytes(hardware, wish))


def stall_share(file: Path = _PSI) -> float | None:
    """Of the last ten seconds, in which some program waited for memory; None when nobody tells."""
    try:
        return parse_psi(file.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def parse_psi(text: str) -> float | None:
    """Linux's ``/proc/pressure/memory``: ``some avg10=0.00 avg60=… total=…``. Pure."""
    found = _SOME.search(text)
    return None if found is None else min(1.0, float(found[1]) / 100)
