"""How fast a model will write and read on a machine, before anybody measured it. Pure.

Writing a token reads every weight that works on it once, and the conversation so far. Memory
gives the bytes slower than a processor can use them, so the bytes and the machine's bandwidth tell
the speed. Reading a prompt is arithmetic instead; how much of that a machine does per second is
not known from any fact, so it is predicted only once some model was measured here.

Plain numbers only, so that the command line may use it too. Not for: the numbers of a stored
model (`reading`), nor what is fast enough for whom (`catalogue`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final, Literal

Label = Literal["measured", "calibrated", "estimated"]

# What remains of the bandwidth when an engine reads weights. Published fits lie at 0.6 to 0.75, a
# small model on two cores measured 0.5 to 0.67; the low end, because less than promised is worse.
_EFFICIENCY: Final = 0.6
_EFFICIENCY_EXPERTS: Final = 0.5  # other pieces of memory for every token
_OVERHEAD_S: Final = 0.001  # per token: sampling, threads that wait for each other
# Bandwidth where it was not measured: one core draws 10 to 13 GB/s (small cloud machine, measured);
# two memory channels give no more than 60, however many cores ask.
_PER_CORE: Final = 10_000_000_000  # bytes per second
_MOST: Final = 60_000_000_000
# A model this small stays partly in the processor's caches, and its many small steps cost more
# than its bytes: it tells nothing about larger ones.
_LEAST_TELLING: Final = 200_000_000  # bytes
_TELLING_SHARE: Final = 0.25  # of the largest measured model; smaller ones tell less


@dataclass(frozen=True, slots=True)
class Reading:
    """What is read from memory for one token."""

    weights_bytes: float  # those that work on each token
    kv_bytes: float = 0.0  # the conversation so far
    experts: bool = False  # which weights work differs from token to token
    parameters: float = 0.0  # that work on each token of a prompt; 0: not known


@dataclass(frozen=True, slots=True)
class Measured:
    """A model that was measured on this machine, with what it reads."""

    reading: Reading
    decode_tokens_per_s: float
    prefill_tokens_per_s: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """What measured models say about this machine; None where none of them says anything."""

    decode: float | None = None  # measured over predicted
    work_per_s: float | None = None  # parameters x tokens of a prompt


@dataclass(frozen=True, slots=True)
class Prediction:
    """Tokens per second, and how far to trust it."""

    tokens_per_s: float
    label: Label


def predict(
    reading: Reading,
    bandwidth_bytes_per_s: float | None,
    cpus: int,
    calibration: Calibration | None = None,
) -> Prediction:
    """How fast it writes with `cpus` threads, one answer at a time."""
    bandwidth = bandwidth_bytes_per_s or min(cpus * _PER_CORE, _MOST)
    share = _EFFICIENCY_EXPERTS if reading.experts else _EFFICIENCY
    bytes_read = reading.weights_bytes + reading.kv_bytes
    speed = 1 / (bytes_read / (share * bandwidth) + _OVERHEAD_S)
    if calibration is None or calibration.decode is None:
        return Prediction(speed, "estimated")
    return Prediction(speed * calibration.decode, "calibrated")


def predict_prefill(reading: Reading, calibration: Calibration | None) -> Prediction | None:
    """How fast it reads a prompt; None while no model was measured here."""
    if calibration is None or calibration.work_per_s is None or reading.parameters <= 0:
        return None
    return Prediction(calibration.work_per_s / reading.parameters, "calibrated")


def calibrate(
    models: Sequence[Measured], bandwidth_bytes_per_s: float | None, cpus: int
) -> Calibration:
    """The medians over all measured models that tell something about others."""
    sizes = [one.reading.weights_bytes for one in models]
    least = max(_LEAST_TELLING, _TELLING_SHARE * max(sizes, default=0))
    ratios = [
        one.decode_tokens_per_s / predict(one.reading, bandwidth_bytes_per_s, cpus).tokens_per_s
        for one in models
        if one.reading.weights_bytes >= least and one.decode_tokens_per_s > 0
    ]
    work = [
        one.prefill_tokens_per_s * one.reading.parameters
        for one in models
        if one.prefill_tokens_per_s > 0 and one.reading.parameters > 0
    ]
    return Calibration(median(ratios) if ratios else None, median(work) if work else None)
