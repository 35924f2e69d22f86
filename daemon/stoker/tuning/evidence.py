"""What repeated comparisons of two settings prove. Pure.

A change has to gain more than 3 % and more than the noise seen in this very search, and may not
harm any speed. Close calls are asked again, up to a limit; clear losers are not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from statistics import median
from typing import Final

# Logarithms of the profile's score, then of prefill, decode and batch: ratios are differences.
Ratio = tuple[float, float, float, float]
ZERO: Final[Ratio] = (0.0, 0.0, 0.0, 0.0)
SPEEDS: Final = (1, 2, 3)  # places of the three speeds in a ratio

LEAST_RUNS: Final = 3
MOST_RUNS: Final = 7
GAIN: Final = math.log(1.03)
HARM: Final = math.log(0.98)  # of any speed, against the baseline
_SCORE_KEPT: Final = math.log(1.01)  # a gain in one speed alone may not cost the others as much
_CLEAR_HARM: Final = 0.04  # beyond what counts as harm: no second run needed
_REAL: Final = 2.5  # errors by which a gain has to stand out
_REAL_ALONE: Final = 3.0  # the same for one speed; there are three of them
_SURE: Final = 0.75  # errors by which a figure has to stay above harm
_HOPE: Final = 1.5  # errors by which a figure may still turn out better
_MEDIAN: Final = 1.2  # a median's error against a mean's, for a few runs
_PRIOR_SD: Final = 0.02  # of one comparison, until this machine has shown its own
_PRIOR_RUNS: Final = 4


class Verdict(Enum):
    OPEN = "open"
    WON = "won"
    LOST = "lost"


@dataclass(slots=True)
class Noise:
    """Standard deviation of one comparison, per figure: a prior that gives way to what is seen."""

    squares: list[float] = field(default_factory=lambda: [_PRIOR_RUNS * _PRIOR_SD**2] * 4)
    weight: float = float(_PRIOR_RUNS)

    def see_repeat(self, ratio: Ratio, middle: Ratio) -> None:
        """The same comparison once more, and the median of those before."""
        self._see((a - b for a, b in zip(ratio, middle, strict=True)), 2 / 3)

    def see_anchors(self, before: Ratio, after: Ratio) -> None:
        """The same settings twice. A comparison has one such error, and half of another."""
        self._see((b - a for a, b in zip(before, after, strict=True)), 3 / 4)

    def _see(self, differences: Iterable[float], scale: float) -> None:
        self.weight += 1
        for index, difference in enumerate(differences):
            self.squares[index] += scale * difference**2

    def sd(self, index: int) -> float:
        return math.sqrt(self.squares[index] / self.weight)

    def error(self, index: int, runs: int) -> float:
        """Of the median of that many comparisons."""
        return (_MEDIAN if runs > 1 else 1.0) * self.sd(index) / math.sqrt(runs)


def middle(ratios: Sequence[Ratio]) -> Ratio:
    score, prefill, decode, batch = (median(column) for column in zip(*ratios, strict=True))
    return score, prefill, decode, batch


def plus(ours: Ratio, theirs: Ratio) -> Ratio:
    a, b, c, d = (x + y for x, y in zip(ours, theirs, strict=True))
    return a, b, c, d


def judge(ratios: Sequence[Ratio], gained: Ratio, noise: Noise) -> Verdict:
    """Candidate over incumbent; `gained` is the incumbent over the baseline."""
    if not ratios:
        return Verdict.OPEN
    runs, found = len(ratios), middle(ratios)
    total = plus(gained, found)
    if runs >= LEAST_RUNS:
        harmless = all(total[i] >= HARM + _SURE * noise.error(i, runs) for i in SPEEDS)
        if harmless and _gains(found, runs, noise):
            return Verdict.WON
        if runs >= MOST_RUNS:
            return Verdict.LOST
    return Verdict.OPEN if _may_win(found, total, runs, noise) else Verdict.LOST


def _gains(found: Ratio, runs: int, noise: Noise) -> bool:
    """A real gain in the score, or in one speed while the score does not suffer.

    A search asks this of a dozen candidates, of each several times: an error that is rare in one
    answer is not rare among all.
    """
    if found[0] > max(GAIN, _REAL * noise.error(0, runs)):
        return True
    one_speed = any(found[i] > max(GAIN, _REAL_ALONE * noise.error(i, runs)) for i in SPEEDS)
    return one_speed and found[0] > _SCORE_KEPT


def _may_win(found: Ratio, total: Ratio, runs: int, noise: Noise) -> bool:
    """Whether more runs could still show a gain without harm."""
    errors = [noise.error(index, runs) for index in range(4)]
    score = found[0] + _HOPE * errors[0]
    gain = any(one + _HOPE * error > GAIN for one, error in zip(found, errors, strict=True))
    slack = _CLEAR_HARM if runs < LEAST_RUNS else 0.0
    harmless = all(total[index] + max(slack, _HOPE * errors[index]) >= HARM for index in SPEEDS)
    return gain and score > _SCORE_KEPT and harmless
