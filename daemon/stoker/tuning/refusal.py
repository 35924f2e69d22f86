"""Why a plan is refused, in numbers, and what would fit instead. Pure."""

from __future__ import annotations

from typing import Final

from stoker.errors import MemoryShort
from stoker.tuning import quants
from stoker.tuning.task import Shape, Task

_GB: Final = 1_000_000_000
_WORTHWHILE: Final = 2048  # tokens; a shorter context is no advice


def short(task: Task, wanted: Shape, *, possible: int) -> MemoryShort:
    """For a shape that does not fit in memory; `possible` is the longest context that does."""
    need = task.need(wanted)
    free = task.budget_bytes
    smaller = smaller_quantization(task, wanted)
    return MemoryShort(
        f"The model needs {gigabytes(need.total_bytes)} with a context of {wanted.context:,}"
        f" tokens, but only {gigabytes(free)} of memory can be used now ({_held_back(task)}).",
        hint=_advice(task, possible, smaller),
        needed_bytes=need.total_bytes,
        free_bytes=free,
        reserve_bytes=task.reserve_bytes,
        context=wanted.context,
        possible_context=possible,
        smaller_quantization=smaller,
    )


def _held_back(task: Task) -> str:
    """Why it is not more."""
    if task.limited:
        return "the rest of memory_limit_bytes"
    return f"{gigabytes(task.reserve_bytes)} stay reserved"


def gpu_short(task: Task, wanted: Shape) -> MemoryShort:
    """For a wish of GPU layers that the GPU has no room for."""
    need = task.need(wanted)
    free = task.room.free_bytes or 0
    return MemoryShort(
        f"{wanted.gpu_layers} layers need {gigabytes(need.gpu_bytes)} on the GPU with a context of"
        f" {wanted.context:,} tokens, but only {gigabytes(free)} of its memory can be used now.",
        hint="Set fewer gpu_layers or a shorter context, or leave gpu_layers unset.",
        needed_bytes=need.gpu_bytes,
        free_bytes=free,
        context=wanted.context,
        gpu_layers=wanted.gpu_layers,
    )


def smaller_quantization(task: Task, wanted: Shape) -> str | None:
    """The best one with which this shape would fit; None when none would."""
    need = task.need(wanted)
    repacked = int(need.repack_bytes * need.correction)
    other = need.total_bytes - need.weights_bytes - repacked
    copies = repacked / max(1, need.weights_bytes)  # they shrink with the file
    most = int((task.budget_bytes - other) / (1 + copies))
    return quants.largest_below(task.facts.file_bytes, task.facts.parameters, most)


def _advice(task: Task, possible: int, smaller: str | None) -> str:
    ways = []
    if possible >= _WORTHWHILE:
        ways.append(f"set a context of at most {possible:,} tokens")
    if smaller is not None:
        size = gigabytes(quants.size_bytes(smaller, task.facts.parameters))
        ways.append(f"choose a smaller quantization of it such as {smaller} (about {size})")
    ways.append("raise memory_limit_bytes" if task.limited else "close other programs")
    ways.append("unload another model")
    if smaller is None:
        ways.append("choose a smaller model")
    words = f"{', '.join(ways[:-1])} or {ways[-1]}"
    return f"{words[0].upper()}{words[1:]}."


def gigabytes(count: int) -> str:
    """Decimal ones, as `stoker plan` and `stoker list` count."""
    return f"{count / _GB:.2f} GB"
