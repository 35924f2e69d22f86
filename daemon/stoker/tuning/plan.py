"""From the model, the machine and the user's wishes to a launch plan, with a reason for each value.

Pure. The rules, in order of weight:

1. Never more memory than is free now, less a reserve for other programs (the larger of 1 GiB and
   10 % of the memory, but at most a quarter of a small machine's), and never more than the user's
   limit for all models leaves. Likewise on a GPU. What workers of this model really took corrects
   what is computed for the next.
2. What the user sets is taken as it is, as long as it fits and makes sense; else it is refused.
3. What was measured on this machine wins over what is only usual.
4. When memory is short, this is given up, in this order: the cache of old prompts; the step in
   which prompts are read; slots; context, down to the least that the profile is good for; the
   precision of the conversation's memory (q8_0); layers on the GPU. Then the plan is refused,
   with the numbers and with what would fit.
5. Up to a roomy length the context may use all of that memory. Beyond it, only half of what is
   then still free: cells are paid for at load, used or not, and a second model or a browser has
   more use for the other half than a conversation of that length that rarely comes.
6. Slots share one pool of cells. A pool that runs over fails every request in it, and each step
   looks past what the other slots hold. So it grows towards a full context for each slot, and is
   divided among them when it gets there: up to a bound, because cells cost time at load, and with
   at most a part of what is still free.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from stoker.errors import BadSetting, MemoryShort
from stoker.hardware.facts import HardwareFacts
from stoker.store.facts import ModelFacts
from stoker.tuning import placement, profiles_rules
from stoker.tuning.launch import (
    KvType,
    LaunchPlan,
    MemoryNeed,
    Reason,
    Source,
    Survey,
    Tuned,
    Wishes,
)
from stoker.tuning.memory import CONTEXT_STEP, MIB, keeps_cache, kv_bytes, quantizes_cache
from stoker.tuning.reasons import reasons
from stoker.tuning.refusal import gpu_short, short
from stoker.tuning.task import Shape, Task, is_embedder

__all__ = [
    "LaunchPlan",
    "MemoryNeed",
    "Reason",
    "Source",
    "Wishes",
    "is_embedder",
    "make_plan",
]

_BATCH: Final = 2048  # tokens; the engine's own default, split into ubatches
_LEFT_FOR_CACHE: Final = 8  # the cache of old prompts takes one part in so many of what is free
_LEAST_CACHE_MIB: Final = 64  # less holds no conversation
_SMALL_POOL: Final = 512 * MIB  # of this size it is allocated in a quarter of a second
_SMALLER_KV: Final[KvType] = "q8_0"  # half the memory; its loss cannot be noticed


def make_plan(  # noqa: PLR0913  # all inputs of a pure decision
    model_id: str,
    model_path: Path,
    facts: ModelFacts,
    hardware: HardwareFacts,
    wishes: Wishes,
    *,
    mmproj_path: Path | None = None,
    mmproj_bytes: int = 0,
    runtime: str = "",
    tuned: Tuned | None = None,
    survey: Survey | None = None,
    correction: float = 1.0,
    most_bytes: int | None = None,
) -> LaunchPlan:
    """The settings to start a worker with now. Raises MemoryShort when nothing fits.

    `hardware` must be fresh: its free memory is the budget. `mmproj_bytes` is the size of the
    file at `mmproj_path`. `runtime` is the one that will be used; `tuned` brings its own. A
    `survey` of another runtime is not used. `correction` is what was learnt of the chosen runtime
    (`MemoryNeed`), `most_bytes` what the user's limit for all models leaves. Raises BadSetting
    for wishes that contradict each other or the model.
    """
    chosen = tuned.best.runtime if tuned is not None else runtime
    if survey is not None and chosen and survey.runtime != chosen:
        survey = None
    task = Task(
        facts, hardware, wishes, mmproj_bytes, chosen, tuned, survey, correction, most_bytes
    )
    _check(task)
    shape = _with_spare(task, _fit(task))
    threads, threads_batch = thread_counts(task)
    ubatch = shape.context if task.embedding else shape.ubatch
    plan = LaunchPlan(
        model_id=model_id,
        model_path=model_path,
        mmproj_path=mmproj_path,
        context=shape.context,
        parallel=shape.parallel,
        threads=threads,
        threads_batch=threads_batch,
        batch=shape.context if task.embedding else max(ubatch, min(_BATCH, shape.context)),
        ubatch=ubatch,
        n_outputs_max=ubatch if task.embedding else shape.parallel,
        cache_ram_mib=shape.prompt_cache_mib,
        checkpoints=task.checkpoints,
        kv_unified=task.unified(shape),
        embedding=task.embedding,
        pooling=facts.pooling,
        extra_buffers=task.extra_buffers,
        gpu_layers=shape.gpu_layers,
        memory=task.need(shape),
        cells=shape.cells,
        runtime=chosen,
        flash_attention=task.flash(shape.kv_type),
        kv_type=shape.kv_type,
        cpu_experts=shape.cpu_experts,
        profile=wishes.profile,
    )
    return replace(plan, reasons=reasons(task, plan))


def _check(task: Task) -> None:
    """Refuse wishes that cannot both be had. Raises BadSetting."""
    wish = task.wishes.kv_type
    if wish in {None, "f16"} or not keeps_cache(task.facts):
        return
    if task.wishes.flash_attention is False:
        msg = f"kv_type {wish} needs flash attention, which is switched off"
        raise BadSetting(msg, hint="Remove flash_attention, or set kv_type to f16.")
    if not quantizes_cache(task.facts):
        msg = f"this model's attention cannot be stored as {wish}"
        raise BadSetting(msg, hint="Remove kv_type, or set it to f16.")


def thread_counts(task: Task) -> tuple[int, int]:
    """To write and to read with: the user's, else measured ones, else what can run at once."""
    wishes, tuned = task.wishes, task.tuned
    write, read = profiles_rules.most_threads(wishes.profile, task.hardware.effective_cpus)
    if tuned is not None:
        write = min(tuned.best.threads, write) if task.rules.half_to_write else tuned.best.threads
        best = tuned.best.threads_batch
        read = min(best, read) if task.rules.half_to_read else best
    return wishes.threads or write, wishes.threads_batch or wishes.threads or read


# --- what fits ---------------------------------------------------------------------------------


def _fit(task: Task) -> Shape:
    """The best shape within all memory. Raises MemoryShort."""
    rungs = _rungs(task)
    layers, experts = _layers(task, rungs[0])
    if task.wishes.gpu_layers is not None or not layers:
        return _fit_with(task, [replace(rung, gpu_layers=layers) for rung in rungs])
    fewer = layers
    while fewer:
        try:
            placed = [replace(one, gpu_layers=fewer, cpu_experts=experts) for one in rungs]
            return _fit_with(task, placed)
        except MemoryShort:
            fewer //= 2
    return _fit_with(task, rungs)


def _rungs(task: Task) -> list[Shape]:
    wishes, tuned = task.wishes, task.tuned
    ladder = profiles_rules.ladder(
        wishes.profile,
        ubatch=None if task.embedding else wishes.ubatch,
        most_ubatch=tuned.best.ubatch if tuned is not None else profiles_rules.usual_ubatch(),
        parallel=wishes.parallel,
    )
    return [Shape(0, ubatch, parallel, task.kv_type) for ubatch, parallel in ladder]


def _layers(task: Task, rung: Shape) -> tuple[int, int]:
    """Layers on the GPU, and of how many the experts are not; from free GPU memory alone."""
    room, wish = task.room, task.wishes
    if wish.gpu_layers is not None:
        return wish.gpu_layers, 0
    if not room.usable:
        return 0, 0
    wanted = min(wish.context or task.rules.comfort, task.trained)
    load = task.load(task.sizing(replace(rung, context=wanted)))
    every = placement.every_layer(load)
    if room.shared:
        return every, 0
    if room.free_bytes is None:
        return 0, 0
    found = placement.place(load, room.free_bytes)
    if found.blocks < load.blocks or found.cpu_experts:  # not all of it: leave it room to grow
        roomy = min(wish.context or task.rules.roomy, task.trained)
        load = task.load(task.sizing(replace(rung, context=roomy)))
        found = placement.place(load, room.free_bytes)
    return found.layers, found.cpu_experts


def _fit_with(task: Task, rungs: list[Shape]) -> Shape:
    """The first rung of the ladder that reaches a useful context. Raises MemoryShort."""
    wish = task.wishes.context
    most = min(wish, task.trained) if wish else task.trained
    least = most if wish else min(most, task.rules.shortest)
    useful = most if wish else min(most, task.rules.comfort)
    context = _longest(task, most, rungs[0])
    if context >= useful:
        return replace(rungs[0], context=context)
    for rung in rungs[1:]:
        if task.fits(replace(rung, context=useful)):
            return replace(rung, context=useful)
    last = rungs[-1]
    context = _longest(task, useful, last)
    if context >= least:
        return replace(last, context=context)
    if task.may_quantize:
        last = replace(last, kv_type=_SMALLER_KV)
        if task.fits(replace(last, context=least)):
            return replace(last, context=least)
    wanted = replace(last, context=least)
    if not task.fits_gpu(task.need(wanted)):
        raise gpu_short(task, wanted)
    raise short(task, wanted, possible=_longest(task, least, last))


def _longest(task: Task, most: int, rung: Shape) -> int:
    """The longest context up to `most` that fits, in the engine's steps; 0 when none does."""
    if task.fits(replace(rung, context=most)):
        return most
    return _last_step(most, lambda context: task.fits(replace(rung, context=context)))


def _with_spare(task: Task, shape: Shape) -> Shape:
    """With what memory is left over used: a pool beyond one context, a cache of old prompts."""
    shape = replace(shape, cells=_pool(task, shape))
    return replace(shape, prompt_cache_mib=_prompt_cache(task, shape))


def _pool(task: Task, shape: Shape) -> int:
    """Cells for all slots together: at least one context, at most one for each slot."""
    if not keeps_cache(task.facts):
        return shape.context
    most = shape.context * shape.parallel
    if kv_bytes(task.facts, task.sizing(replace(shape, cells=most))) > _SMALL_POOL:
        most = min(most, max(shape.context, task.rules.pool_most))
    affordable = _affordable(task, shape, task.rules.pool_share)

    def good(cells: int) -> bool:
        return affordable(replace(shape, cells=cells))

    return most if good(most) else max(shape.context, _last_step(most, good))


def _prompt_cache(task: Task, shape: Shape) -> int:
    if task.embedding or not keeps_cache(task.facts):
        return 0
    affordable = _affordable(task, shape, _LEFT_FOR_CACHE)
    size = task.rules.prompt_cache_mib
    while size >= _LEAST_CACHE_MIB:
        if affordable(replace(shape, prompt_cache_mib=size)):
            return size
        size //= 2
    return 0


def _affordable(task: Task, shape: Shape, share: int) -> Callable[[Shape], bool]:
    """Whether more than `shape` takes only one part in `share` of what it leaves free."""
    alone = task.need(shape).total_bytes
    limit = alone + max(0, task.budget_bytes - alone) // share

    def affordable(wanted: Shape) -> bool:
        need = task.need(wanted)
        return need.total_bytes <= limit and task.fits_gpu(need)

    return affordable


def _last_step(most: int, good: Callable[[int], bool]) -> int:
    """The largest multiple of the engine's step below `most` that is good; 0 when none is."""
    low, high = 0, -(-most // CONTEXT_STEP)  # in steps: `low` is good or 0, `high` is not
    while high - low > 1:
        middle = (low + high) // 2
        if good(middle * CONTEXT_STEP):
            low = middle
        else:
            high = middle
    return low * CONTEXT_STEP
