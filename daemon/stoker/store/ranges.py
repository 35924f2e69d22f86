"""Which bytes of a file are there. Pure: half-open ranges, sorted, never touching."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable


class Ranges:
    """A set of offsets, kept as ``[start, end)`` pairs."""

    def __init__(self, pairs: Iterable[tuple[int, int]] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._total = 0
        for start, end in pairs:
            self.add(start, end)

    def add(self, start: int, end: int) -> None:
        """``0 <= start < end``; joins what it meets."""
        first = bisect_left(self._ends, start)
        last = bisect_right(self._starts, end)
        if first < last:
            start = min(start, self._starts[first])
            end = max(end, self._ends[last - 1])
        joined = sum(self._ends[first:last]) - sum(self._starts[first:last])
        self._starts[first:last] = [start]
        self._ends[first:last] = [end]
        self._total += end - start - joined

    def overlaps(self, start: int, end: int) -> bool:
        place = bisect_right(self._ends, start)
        return place < len(self._starts) and self._starts[place] < end

    def missing(self, size: int, chunk: int) -> list[tuple[int, int]]:
        """The gaps below ``size``, cut into pieces of at most ``chunk``."""
        gaps = []
        at = 0
        for start, end in [*zip(self._starts, self._ends, strict=True), (size, size)]:
            until = min(start, size)
            gaps += [(a, min(a + chunk, until)) for a in range(at, until, chunk)]
            at = end
        return gaps

    @property
    def pairs(self) -> list[tuple[int, int]]:
        return list(zip(self._starts, self._ends, strict=True))

    @property
    def prefix(self) -> int:
        """How far the bytes reach from the start without a gap."""
        return self._ends[0] if self._starts and self._starts[0] == 0 else 0

    @property
    def total(self) -> int:
        return self._total

    @property
    def end(self) -> int:
        return self._ends[-1] if self._ends else 0
