"""Dry runs: which ones to ask for, and what they tell about settings between them. Pure.

A dry run is the engine's own answer for one set of settings. Scratch space and caches grow
linearly with the cells and with the tokens of a batch (and stop growing at a window's end), so a
few points per model are enough: between two of them the line is taken, beyond the last one it is
drawn on, and where the dry runs say nothing the formula is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from stoker.store.facts import ModelFacts
from stoker.tuning.launch import KvType, LaunchPlan, Survey, SurveyPoint

if TYPE_CHECKING:
    from stoker.tuning.memory import Sizing

WantedPoint = tuple[int, int, int, bool, KvType]  # cells, parallel, ubatch, flash, KV type

MOST_POINTS: Final = 40  # a point costs about 34 ms; all of them stay below two seconds
_SHORT: Final = 1024  # cells
_ROOMY: Final = 16384
_UBATCHES: Final = (128, 512, 1024)


def survey_grid(facts: ModelFacts, plan: LaunchPlan) -> tuple[WantedPoint, ...]:
    """The dry runs that cover this plan, and what planning or tuning may choose instead."""
    pool = max(plan.cells, plan.context)
    if plan.embedding:
        ubatches: Sequence[int] = sorted({min(128, plan.context), plan.context})
        return tuple((ubatch, plan.parallel, ubatch, True, "f16") for ubatch in ubatches)
    trained = facts.context_length or pool
    cells = sorted({min(_SHORT, pool), min(_ROOMY, trained), pool})
    ends = sorted({cells[0], cells[-1]})
    slots = sorted({1, plan.parallel})
    ubatches = sorted({*_UBATCHES, plan.ubatch})
    corners = (ubatches[0], ubatches[-1])
    points: list[WantedPoint] = [
        (count, parallel, ubatch, True, "f16")
        for count in cells
        for parallel in slots
        for ubatch in ubatches
    ]
    for flash, kv_type in ((False, "f16"), (True, "q8_0"), (True, plan.kv_type)):
        points += [
            (count, parallel, ubatch, flash, kv_type)  # type: ignore[misc]  # a KvType
            for count in ends
            for parallel in slots
            for ubatch in sorted(set(corners))
        ]
    return tuple(dict.fromkeys(points))[:MOST_POINTS]


def dry_compute_bytes(survey: Survey, sizing: Sizing, *, formula: int) -> int:
    """Scratch space by the dry runs; `formula` where they do not reach."""
    found = _between(survey, sizing, lambda point: point.compute_bytes)
    return formula if found is None else found


def dry_kv_bytes(survey: Survey, sizing: Sizing, *, formula: int, facts: ModelFacts) -> int:
    """Keys, values and recurrent state by the dry runs; `formula` where they do not tell.

    The formula is exact but for recurrent layers, and a window's end makes a line too low. So
    the line is used for recurrent models, and never to go below the formula for others. With
    fewer cells than the shortest dry run a cache takes its share of that one's.
    """
    found = _between(survey, sizing, lambda point: point.kv_bytes)
    if found is None or facts.recurrent:
        return formula if found is None else found
    shortest = min(point.cells for point in survey.points)
    return max(found * min(sizing.cells, shortest) // shortest, formula)


def _between(
    survey: Survey, sizing: Sizing, value: Callable[[SurveyPoint], int | None]
) -> int | None:
    """The value at these settings, on straight lines between the dry runs; None outside them."""
    told = {
        point: found
        for point in survey.points
        if point.flash_attention == sizing.flash_attention
        and point.kv_type == sizing.kv_type
        and (found := value(point)) is not None
    }

    def at(parallel: int, ubatch: int) -> float | None:
        known = {
            point.cells: float(found)
            for point, found in told.items()
            if point.parallel == parallel and point.ubatch == ubatch
        }
        return _line(known, sizing.cells, beyond=True)

    def across(parallel: int) -> float | None:
        sizes = {point.ubatch for point in told if point.parallel == parallel}
        known = {size: found for size in sizes if (found := at(parallel, size)) is not None}
        return _line(known, sizing.ubatch)

    slots = {point.parallel for point in told}
    heights = {count: height for count in slots if (height := across(count)) is not None}
    result = _line(heights, sizing.parallel)
    return None if result is None else int(result)


def _line(known: dict[int, float], wanted: int, *, beyond: bool = False) -> float | None:
    """The height over `wanted`; None outside the known ones unless `beyond` goes on past the last.

    Below the first one its own value is taken, which is never too little.
    """
    if wanted in known:
        return known[wanted]
    lower = max((key for key in known if key < wanted), default=None)
    upper = min((key for key in known if key > wanted), default=None)
    if lower is None:
        return None if upper is None else known[upper]
    if upper is None:
        before = max((key for key in known if key < lower), default=None)
        if not beyond or before is None:
            return None
        lower, upper = before, lower
    slope = (known[upper] - known[lower]) / (upper - lower)
    return known[lower] + max(0.0, slope) * (wanted - lower)
