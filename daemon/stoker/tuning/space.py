"""Which settings a measured search may try on this machine, and what its profile wants. Pure.

Every bound comes from outside a measurement: more threads than CPUs are never tried, nor a batch
that the plan had no memory for, nor buffers that the self-test refused, nor what the user set.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Final, Literal, TypeVar

from stoker.hardware.facts import HardwareFacts
from stoker.tuning import profiles_rules
from stoker.tuning.launch import Profile, Speeds, Trial, Wishes

Coordinate = Literal[
    "threads", "threads_batch", "runtime", "flash_attention", "ubatch", "extra_buffers"
]
Value = int | str | bool
V = TypeVar("V")

# What changes most comes first: a search that is cut short has then lost little.
ORDER: Final[tuple[Coordinate, ...]] = (
    "threads",
    "threads_batch",
    "runtime",
    "flash_attention",
    "ubatch",
    "extra_buffers",
)
_UBATCHES: Final = (512, 256, 1024, 128)  # tokens; the usual ones first
_FEW_CPUS: Final = 4  # up to here one thread alone is tried, too: it leaves no barrier to wait at

# How much each speed weighs: reading a prompt, writing an answer, four streams at once.
_WEIGHTS: Final[dict[Profile, tuple[float, float, float]]] = {
    "chat": (0.40, 0.45, 0.15),
    "coding": (0.60, 0.30, 0.10),  # an agent sends far more than it reads
    "batch": (0.25, 0.05, 0.70),
    "quiet": (0.40, 0.45, 0.15),
    "battery": (0.40, 0.45, 0.15),
}


@dataclass(frozen=True, slots=True)
class Space:
    """The values of each coordinate, the most promising first."""

    threads: tuple[int, ...]
    threads_batch: tuple[int, ...]
    runtime: tuple[str, ...]
    flash_attention: tuple[bool, ...]
    ubatch: tuple[int, ...]
    extra_buffers: tuple[bool, ...]
    safe: frozenset[str] = frozenset()  # runtimes whose extra buffers are not sound here
    gpu_layers: int = 0  # of every trial

    def values(self, coordinate: Coordinate) -> tuple[Value, ...]:
        found: tuple[Value, ...] = getattr(self, coordinate)
        return found

    def with_value(self, trial: Trial, coordinate: Coordinate, value: Value) -> Trial | None:
        """The trial with one value changed; None when that is not sound here."""
        changes: dict[str, Any] = {coordinate: value}
        changed: Trial = replace(trial, **changes)
        if coordinate == "runtime" and changed.runtime in self.safe:
            changed = replace(changed, extra_buffers=False)
        return changed if self.allows(changed) else None

    def allows(self, trial: Trial) -> bool:
        return not (trial.extra_buffers and trial.runtime in self.safe)

    def grid(self) -> Iterator[Trial]:
        """Every allowed combination."""
        for values in product(*(self.values(coordinate) for coordinate in ORDER)):
            settings: dict[str, Any] = dict(zip(ORDER, values, strict=True))
            trial = Trial(**settings, gpu_layers=self.gpu_layers)
            if self.allows(trial):
                yield trial


def make_space(
    hardware: HardwareFacts,
    baseline: Trial,
    wishes: Wishes,
    *,
    runtimes: Collection[str] = (),
    safe: frozenset[str] = frozenset(),
    ubatch_most: int = 512,
    prompt: int = 512,
) -> Space:
    """`baseline` is the untuned plan; what `wishes` names keeps its value.

    `ubatch_most` is what fits in memory, `prompt` the length of the measured prompt: a batch
    beyond it would never be filled, so nothing could be learned about it.
    """
    write, read = profiles_rules.most_threads(wishes.profile, hardware.effective_cpus)
    ubatches = (n for n in _UBATCHES if n <= min(ubatch_most, prompt))
    quantised = wishes.kv_type not in {None, "f16"}  # needs the fused attention
    fixed_buffers = wishes.safe_mode or baseline.runtime in safe
    return Space(
        threads=_held(wishes.threads, baseline.threads, _thread_counts(hardware, write)),
        threads_batch=_held(
            wishes.threads_batch or wishes.threads,
            baseline.threads_batch,
            _batch_thread_counts(hardware, read),
        ),
        runtime=_held(None, baseline.runtime, tuple(runtimes)),
        flash_attention=_held(
            True if quantised else wishes.flash_attention, baseline.flash_attention, (True, False)
        ),
        ubatch=_held(wishes.ubatch, baseline.ubatch, tuple(ubatches)),
        extra_buffers=(False,)
        if fixed_buffers
        else _held(None, baseline.extra_buffers, (True, False)),
        safe=safe,
        gpu_layers=baseline.gpu_layers,
    )


def weights(profile: Profile) -> tuple[float, float, float]:
    return _WEIGHTS[profile]


def score(speeds: Speeds, profile: Profile) -> float:
    """One figure for the profile, in tokens per second: the weighted geometric mean."""
    shares = zip(_WEIGHTS[profile], figures(speeds), strict=True)
    return math.exp(sum(weight * math.log(figure) for weight, figure in shares))


def figures(speeds: Speeds) -> tuple[float, float, float]:
    return speeds.prefill_tokens_per_s, speeds.decode_tokens_per_s, speeds.batch_tokens_per_s


def _thread_counts(hardware: HardwareFacts, cap: int) -> tuple[int, ...]:
    counts = [cap, math.ceil(cap * 3 / 4), max(1, cap // 2)]
    if cap <= _FEW_CPUS:
        counts.append(1)
    if not hardware.cpu.is_x86:  # there, SMT siblings may help; on x86 they slow decoding
        counts.append(_with_siblings(hardware, cap))
    return tuple(dict.fromkeys(counts))


def _batch_thread_counts(hardware: HardwareFacts, cap: int) -> tuple[int, ...]:
    return tuple(dict.fromkeys((cap, _with_siblings(hardware, cap))))


def _with_siblings(hardware: HardwareFacts, cap: int) -> int:
    """The same cores with all their hardware threads, within what this process may use.

    A profile that leaves cores to others leaves their hardware threads, too.
    """
    if cap < hardware.effective_cpus:
        return cap
    per_core = max(1, hardware.cpu.logical_cores // max(1, hardware.cpu.physical_cores))
    bounds = [cap * per_core, hardware.limits.affinity_cpus]
    if hardware.limits.quota_cpus is not None:
        bounds.append(math.floor(hardware.limits.quota_cpus))
    return max(cap, min(bounds))


def _held(wish: V | None, baseline: V, values: tuple[V, ...]) -> tuple[V, ...]:
    """What the user set, alone; else the baseline's value and what may be tried beside it."""
    if wish is not None:
        return (baseline,)
    return tuple(dict.fromkeys((baseline, *values)))
