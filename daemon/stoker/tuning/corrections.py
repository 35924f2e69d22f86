"""What a worker's peak teaches about the next prediction for its model. Pure.

A prediction that is too low costs a process, one that is too high a shorter context. So the factor
rises at once and falls slowly, and it falls only on the evidence of a worker that was filled: one
that had little to do took little, whatever it needs at most.
"""

from __future__ import annotations

import math
from typing import Final

from stoker.tuning.launch import MemoryNeed

LEAST: Final = 0.9  # a dry run and the formulas were never higher than this by more
MOST: Final = 2.0  # more is not an error of the prediction, but of the measurement
_STEPS: Final = 100  # factors are kept in hundredths: a change of less is not worth a write
_FILLED: Final = 0.9  # of the cells; then every part but the caches was in full use
_FALL: Final = 4  # one part in so many of the difference, for each worker


def corrected(
    factor: float, need: MemoryNeed, peak_bytes: int, *, filled: float | None = None
) -> float:
    """The factor for the next prediction.

    ``need`` is what was predicted, of which the computed parts count, and ``peak_bytes`` the most
    that the worker took of its own. ``filled`` is the largest share of its cells that was in use;
    None while it lives on, or when that is not known.
    """
    if need.computed_bytes <= 0 or peak_bytes <= 0:
        return factor
    took = peak_bytes / need.computed_bytes
    if took > factor:
        return _bounded(_up(took))
    if filled is None or filled < _FILLED:
        return factor
    # Nobody knows how much of the caches was in use. As if it was nothing: then the other parts
    # took all of it, and the factor cannot fall too far.
    rest = need.computed_bytes - need.cache_bytes
    most = _up(peak_bytes / rest) if rest > 0 else factor
    if most >= factor:
        return factor
    return _bounded(_up(factor - max(1 / _STEPS, (factor - most) / _FALL)))


def _up(factor: float) -> float:
    """The next hundredth; what is off by less than floats are is one."""
    return math.ceil(round(factor * _STEPS, 6)) / _STEPS


def _bounded(factor: float) -> float:
    return min(MOST, max(LEAST, factor))
