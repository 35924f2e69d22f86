"""From comparisons of a few settings to a forecast for all combinations. Pure.

Speeds multiply: a runtime that is 20 % faster is about that much faster at every batch size. So
logarithms add, and each value of each coordinate gets one effect, fitted to every comparison made
so far. With a prior that most effects are small, one noisy run moves a forecast, but not far.
Interactions are what it misses; measuring the best forecasts finds those.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from stoker.tuning.launch import Trial
from stoker.tuning.space import ORDER, Coordinate, Space, Value

Logs = tuple[float, float, float]  # of prefill, decode and batch
_PRIOR_SD: Final = 0.10  # an effect of a setting; most are smaller, few are larger


class Forecast:
    """Effects of every value over the baseline's, fitted when asked."""

    def __init__(self, space: Space, baseline: Trial) -> None:
        self._places: dict[tuple[Coordinate, Value], int] = {}
        for coordinate in ORDER:
            here = getattr(baseline, coordinate)
            for value in space.values(coordinate):
                if value != here:
                    self._places[coordinate, value] = len(self._places)
        self._rows: list[list[float]] = []
        self._targets: list[Logs] = []
        self._effects: list[list[float]] | None = None

    def learn(self, trial: Trial, over: Trial, ratio: Logs) -> None:
        """`trial` was measured beside `over`."""
        row = [a - b for a, b in zip(self._features(trial), self._features(over), strict=True)]
        self._rows.append(row)
        self._targets.append(ratio)
        self._effects = None

    def ratio(self, trial: Trial, over: Trial, noise_sd: float) -> Logs:
        """The expected speeds of one over the other."""
        if self._effects is None:
            self._effects = self._fit(noise_sd)
        row = [a - b for a, b in zip(self._features(trial), self._features(over), strict=True)]
        one, two, three = (
            sum(share * effect for share, effect in zip(row, effects, strict=True))
            for effects in self._effects
        )
        return one, two, three

    def _features(self, trial: Trial) -> list[float]:
        found = [0.0] * len(self._places)
        for coordinate in ORDER:
            place = self._places.get((coordinate, getattr(trial, coordinate)))
            if place is not None:
                found[place] = 1.0
        return found

    def _fit(self, noise_sd: float) -> list[list[float]]:
        """Ridge regression: a list of effects for each speed."""
        size, stiffness = len(self._places), (noise_sd / _PRIOR_SD) ** 2
        matrix = [
            [
                sum(row[i] * row[j] for row in self._rows) + (stiffness if i == j else 0.0)
                for j in range(size)
            ]
            for i in range(size)
        ]
        sides = [
            [
                sum(
                    row[i] * target[speed]
                    for row, target in zip(self._rows, self._targets, strict=True)
                )
                for speed in range(3)
            ]
            for i in range(size)
        ]
        solved = _solve(matrix, sides)
        return [[line[speed] for line in solved] for speed in range(3)]


def _solve(
    matrix: Sequence[Sequence[float]], sides: Sequence[Sequence[float]]
) -> list[list[float]]:
    """Gauss-Jordan. The matrix is positive definite, so no pivot is zero and no order matters."""
    rows = [[*left, *right] for left, right in zip(matrix, sides, strict=True)]
    for place, row in enumerate(rows):
        pivot = row[place]
        row[:] = [value / pivot for value in row]
        for other in rows:
            factor = other[place]
            if other is not row and factor:
                other[:] = [a - factor * b for a, b in zip(other, row, strict=True)]
    return [row[len(rows) :] for row in rows]
