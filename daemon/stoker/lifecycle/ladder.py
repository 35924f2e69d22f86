"""What is given up, step by step, so that a model works at all where the engine failed. Pure.

| rung | what is tried | kept |
|---|---|---|
| 1 | weights as they are in the file, not laid out for this CPU | |
| 2 | prompts in small steps | 1 |
| 3 | half the context, no pool beyond it, no cache of old prompts | 1, 2 |
| 4 | the other way to compute attention | 1 |
| 5 | half the layers on the GPU | 1, 2 |
| 6 | no layer on the GPU | 1, 2 |

Only what may help against this kind of failure is tried, only what changes something here, and
never against the user's own word: a setting of his that fails is his to change, and the error
says so. Memory is planned anew on each rung. Not for: which rung a model is on (`rungs`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from enum import IntEnum, auto
from typing import Any, Final

from stoker.errors import MemoryShort, StokerError, WorkerFailed
from stoker.lifecycle.eviction import Choice
from stoker.tuning.launch import LaunchPlan, Reason, Wishes
from stoker.types import FailureKind


class Rung(IntEnum):
    NORMAL = 0
    PLAIN_BUFFERS = 1
    SMALL_STEPS = 2
    HALF_CONTEXT = 3
    OTHER_ATTENTION = 4
    HALF_GPU = 5
    CPU_ONLY = 6


class _Change(IntEnum):
    BUFFERS = auto()
    STEPS = auto()
    CONTEXT = auto()
    ATTENTION = auto()
    FEWER_LAYERS = auto()
    NO_LAYERS = auto()


_CHANGES: Final = {
    Rung.NORMAL: frozenset[_Change](),
    Rung.PLAIN_BUFFERS: frozenset((_Change.BUFFERS,)),
    Rung.SMALL_STEPS: frozenset((_Change.BUFFERS, _Change.STEPS)),
    Rung.HALF_CONTEXT: frozenset((_Change.BUFFERS, _Change.STEPS, _Change.CONTEXT)),
    Rung.OTHER_ATTENTION: frozenset((_Change.BUFFERS, _Change.ATTENTION)),
    Rung.HALF_GPU: frozenset((_Change.BUFFERS, _Change.STEPS, _Change.FEWER_LAYERS)),
    Rung.CPU_ONLY: frozenset((_Change.BUFFERS, _Change.STEPS, _Change.NO_LAYERS)),
}
_EVERY: Final = tuple(Rung)[1:]
_LESS_MEMORY: Final = (Rung.HALF_CONTEXT, Rung.OTHER_ATTENTION, Rung.HALF_GPU, Rung.CPU_ONLY)
# Kinds that are not named here are the file's or the runtime's fault: no setting mends them.
_HELPS: Final = {
    FailureKind.OUT_OF_MEMORY: _LESS_MEMORY,
    FailureKind.KILLED: _LESS_MEMORY,  # what the system kills when memory runs out says nothing
    FailureKind.BACKEND: (
        Rung.PLAIN_BUFFERS,
        Rung.OTHER_ATTENTION,
        Rung.HALF_GPU,
        Rung.CPU_ONLY,
    ),
    FailureKind.ASSERT: _EVERY,
    FailureKind.CRASH: _EVERY,
    FailureKind.UNKNOWN: _EVERY,
}
_MEMORY_KINDS: Final = frozenset((FailureKind.OUT_OF_MEMORY, FailureKind.KILLED))
_SMALL_STEP: Final = 128  # tokens
_CONTEXT_STEP: Final = 256  # tokens; the engine rounds up to it
_LEAST_CONTEXT: Final = 2048  # tokens; half of less holds no conversation
_LEAST_TEXT: Final = 512  # tokens; for an embedder, which reads paragraphs

_WHY: Final = "held back: {} the engine failed on this machine"
_WHYS: Final = {
    "extra_buffers": _WHY.format("with weights laid out for this CPU"),
    "ubatch": _WHY.format("with larger steps"),
    "context": _WHY.format("with a longer context"),
    "cells": _WHY.format("with more of them"),
    "kv_unified": _WHY.format("with more cells"),
    "cache_ram_mib": _WHY.format("with more memory in use"),
    "flash_attention": _WHY.format("the other way"),
    "gpu_layers": _WHY.format("with more layers there"),
}


# --- which rung --------------------------------------------------------------------------------


def kind_of(error: StokerError) -> FailureKind | None:
    """How a load failed, when other settings may help; None when they do not."""
    if not isinstance(error, WorkerFailed):
        return None
    try:
        kind = FailureKind(str(error.facts.get("kind")))
    except ValueError:
        return None
    return kind if kind in _HELPS else None


def next_rung(rung: int, kind: FailureKind, plan: LaunchPlan, wanted: Wishes) -> int | None:
    """The one to try after ``plan`` failed like this on ``rung``; None when nothing is left."""
    for one in _HELPS.get(kind, ()):
        if one > rung and _matters(one, kind, plan, wanted):
            return int(one)
    return None


def _matters(rung: Rung, kind: FailureKind, plan: LaunchPlan, wanted: Wishes) -> bool:
    """Whether the rung changes what failed, and may."""
    layers = plan.gpu_layers if wanted.gpu_layers is None else 0  # that may be taken from the GPU
    match rung:
        case Rung.PLAIN_BUFFERS:
            found = plan.extra_buffers
        case Rung.SMALL_STEPS:
            found = wanted.ubatch is None and not plan.embedding and plan.ubatch > _SMALL_STEP
        case Rung.HALF_CONTEXT:
            spare = plan.cells > plan.context or plan.cache_ram_mib > 0
            found = spare or (wanted.context is None and half_context(plan) is not None)
        case Rung.OTHER_ATTENTION:
            worse = kind in _MEMORY_KINDS and plan.flash_attention  # without it, it takes more
            found = _may_toggle(plan, wanted) and not worse
        case Rung.HALF_GPU:
            found = layers > 1
        case _:
            found = layers > 0
    return found


def _may_toggle(plan: LaunchPlan, wanted: Wishes) -> bool:
    free = wanted.flash_attention is None and wanted.kv_type in {None, "f16"}
    return free and plan.kv_type == "f16"  # a quantised cache needs it


def half_context(plan: LaunchPlan) -> int | None:
    """Half of what the plan has, in the engine's steps; None when that is too little."""
    half = plan.context // 2 // _CONTEXT_STEP * _CONTEXT_STEP
    return half if half >= (_LEAST_TEXT if plan.embedding else _LEAST_CONTEXT) else None


# --- the plan on it ----------------------------------------------------------------------------


def choose(
    ask: Callable[[Wishes], Choice[LaunchPlan]], wanted: Wishes, rung: int
) -> Choice[LaunchPlan]:
    """What ``ask`` chooses on this rung, with the reasons; raises what it raises."""
    changes = _CHANGES[Rung(min(max(rung, Rung.NORMAL), Rung.CPU_ONLY))]
    if not changes:
        return ask(wanted)
    plain = _spared(wanted, changes)
    choice = ask(plain)
    changed = _changed(plain, choice.plan, changes)
    if changed != plain:
        choice = _ask_for_less(ask, changed) if _Change.FEWER_LAYERS in changes else ask(changed)
    held = _held(choice.plan, wanted, changed)
    if _Change.CONTEXT in changes:
        # What was predicted for all of it stays, as an upper bound.
        cells = min(choice.plan.cells, choice.plan.context)
        held |= {"cells": cells, "kv_unified": True, "cache_ram_mib": 0}
    return replace(choice, plan=_explained(replace(choice.plan, **held), held))


def _ask_for_less(
    ask: Callable[[Wishes], Choice[LaunchPlan]], wanted: Wishes
) -> Choice[LaunchPlan]:
    """With fewer and fewer layers: half of them with all experts may be more than all without."""
    while True:
        try:
            return ask(wanted)
        except MemoryShort:
            if not wanted.gpu_layers:
                raise
            wanted = replace(wanted, gpu_layers=wanted.gpu_layers // 2)


def _spared(wanted: Wishes, changes: frozenset[_Change]) -> Wishes:
    """With the changes that depend on nothing."""
    if _Change.BUFFERS in changes:
        wanted = replace(wanted, safe_mode=True)
    if _Change.STEPS in changes and wanted.ubatch is None:
        wanted = replace(wanted, ubatch=_SMALL_STEP)
    if _Change.NO_LAYERS in changes and wanted.gpu_layers is None:
        wanted = replace(wanted, gpu_layers=0)
    return wanted


def _changed(wanted: Wishes, plan: LaunchPlan, changes: frozenset[_Change]) -> Wishes:
    """With those that depend on what would be chosen without them."""
    if _Change.CONTEXT in changes and wanted.context is None:
        wanted = replace(wanted, context=half_context(plan))
    if _Change.ATTENTION in changes and _may_toggle(plan, wanted):
        wanted = replace(wanted, flash_attention=not plan.flash_attention)
    if _Change.FEWER_LAYERS in changes and wanted.gpu_layers is None and plan.gpu_layers:
        wanted = replace(wanted, gpu_layers=plan.gpu_layers // 2)
    return wanted


def _held(plan: LaunchPlan, wanted: Wishes, changed: Wishes) -> dict[str, Any]:
    """The settings of the plan that the changed wishes made."""
    names = [
        name
        for name in ("context", "ubatch", "flash_attention", "gpu_layers")
        if getattr(changed, name) != getattr(wanted, name)
    ]
    if plan.embedding and "ubatch" in names:  # an embedder reads a whole text in one step
        names.remove("ubatch")
    if changed.safe_mode and not wanted.safe_mode:
        names.append("extra_buffers")
    return {name: getattr(plan, name) for name in names}


def _explained(plan: LaunchPlan, held: dict[str, Any]) -> LaunchPlan:
    """With the reason for each of these settings."""
    reasons = (
        Reason(one.setting, held[one.setting], "measured", _WHYS[one.setting])
        if one.setting in held
        else one
        for one in plan.reasons
    )
    return replace(plan, reasons=tuple(reasons))
