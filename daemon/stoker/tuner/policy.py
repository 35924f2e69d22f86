"""When to tune, with how much memory, and how long a measurement may be. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from stoker.hardware.assess import reserve_bytes
from stoker.hardware.facts import HardwareFacts
from stoker.tuning.launch import LaunchPlan, Speeds

IDLE_S: Final = 30.0  # a person who reads an answer asks the next question within that
RESUME_S: Final = 2.0  # after a request; a client that sends several leaves shorter gaps
GIVE_UP_S: Final = 60.0  # of requests; a lab's memory is better used by others then
FAILED_REST_S: Final = 24 * 3600.0  # what failed is not tried again by itself before that
BUSY_REST_S: Final = 3600.0  # the same when only the machine was not steady enough
RETUNE_REST_S: Final = 24 * 3600.0  # what was measured is measured anew at most that often

_OTHERS_CPU: Final = 0.2  # an open desktop uses less; whatever uses more spoils measurements
_MIB: Final = 1024 * 1024
_LAB_BYTES: Final = 150 * _MIB  # the process itself, its library and a few buffers
_UBATCH_FREE: Final = 1024  # tokens; the largest that is tried when memory is no question
_UBATCH_USUAL: Final = 512
_GENERATE: Final = 32
_STREAMS: Final = 4
# A whole search takes some 25 measurements.
_SHARE: Final = 25


@dataclass(frozen=True, slots=True)
class Shape:
    """What one measurement consists of."""

    prompt: int
    generate: int
    streams: int = _STREAMS

    @property
    def cells(self) -> int:
        return self.prompt + self.streams * (self.generate + self.prompt)


# From the one that shows most to the one that a slow machine can afford.
SHAPES: Final = (Shape(512, 32), Shape(512, 16), Shape(256, 16), Shape(128, 8), Shape(64, 4))
TASTE: Final = SHAPES[-1]  # the first measurement, which chooses the shape of all others


@dataclass(frozen=True, slots=True)
class Moment:
    """What matters for the question whether to tune now."""

    wanted: bool  # the setting
    idle_s: float
    pulls: int
    building: bool
    others_cpu: float  # share of all processors that was in use lately, 0 to 1
    hardware: HardwareFacts


def why_not(moment: Moment) -> str | None:
    """Why a search must not start by itself now, for a person; None when it may."""
    power = moment.hardware.power
    reasons = (
        (not moment.wanted, "tuning is switched off in the settings"),
        (moment.idle_s < IDLE_S, "waits until nobody has asked anything for a while"),
        (moment.pulls > 0, "waits for the end of a download"),
        (moment.building, "waits for the end of a runtime's build"),
        (moment.others_cpu > _OTHERS_CPU, "waits until other programs are done"),
        (bool(power.on_battery), "waits for mains power"),
        (bool(power.throttled), "waits until the processor has cooled down"),
    )
    return next((text for holds, text in reasons if holds), None)


def shape_for(taste: Speeds, budget_s: float) -> Shape:
    """The longest measurement of which a search can make enough in its time."""
    return next((one for one in SHAPES if _takes_s(one, taste) <= budget_s / _SHARE), TASTE)


def _takes_s(shape: Shape, speeds: Speeds) -> float:
    return (
        shape.prompt / speeds.prefill_tokens_per_s
        + shape.generate / speeds.decode_tokens_per_s
        + shape.streams * shape.generate / speeds.batch_tokens_per_s
    )


def largest_ubatch(plan: LaunchPlan) -> int:
    """A plan that had to shrink its batch for memory is not tuned to a larger one."""
    return plan.ubatch if plan.ubatch < _UBATCH_USUAL else max(plan.ubatch, _UBATCH_FREE)


def lab_bytes(plan: LaunchPlan, *, loaded: bool) -> int:
    """Memory for a lab with this model. The weights of a loaded one are there already."""
    need = plan.memory
    cells = max(1, plan.cells, plan.context)
    kv = need.kv_bytes * min(cells, SHAPES[0].cells) // cells
    compute = need.compute_bytes * max(1, largest_ubatch(plan) // max(1, plan.ubatch))
    weights = 0 if loaded else need.weights_bytes
    return _LAB_BYTES + need.repack_bytes + kv + compute + weights


def room_bytes(hardware: HardwareFacts, reserve: int | None) -> int:
    """Memory that nobody would miss: what is free beyond half of the usual reserve."""
    return max(0, hardware.headroom_bytes - reserve_bytes(hardware, reserve) // 2)
