"""From the model, the machine and the user's wishes to a launch plan, with a reason for each value.

Pure. The rules, in order of weight:

1. Never more memory than is free now, less a reserve for other programs (the larger of 1 GiB and
   10 % of the memory, but at most a quarter of a small machine's).
2. A context below `_COMFORT` tokens is of little use, so before going there the batch and the
   slots shrink; these cost speed only. Below `_SHORTEST` the plan is refused.
3. Up to `_ROOMY` tokens the context may use all of that memory. Beyond it, only half of what is
   then still free: cells are paid for at load, used or not, and a second model or a browser has
   more use for the other half than a conversation of that length that rarely comes.
4. Slots share one pool of cells. A pool that runs over fails every request in it, so it grows
   towards a full context for each slot: to `_POOL_MOST` cells at most, because cells cost time
   at load, and with at most an eighth of what is still free.
5. What the user sets is taken as it is, as long as it fits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from stoker.errors import MemoryShort
from stoker.hardware.assess import reserve_bytes
from stoker.hardware.facts import HardwareFacts
from stoker.store.facts import ModelFacts
from stoker.tuning.launch import LaunchPlan, MemoryNeed, Reason, Source, Wishes
from stoker.tuning.memory import CONTEXT_STEP, MIB, Sizing, keeps_cache, memory_need

__all__ = ["LaunchPlan", "MemoryNeed", "Reason", "Source", "Wishes", "make_plan"]

_SHORTEST: Final = 2048  # tokens; less does not hold a system prompt and an answer
_COMFORT: Final = 4096
_ROOMY: Final = 16384  # tokens; an agent's prompt with tools, or a long article
_UNKNOWN_TRAINING: Final = 4096  # tokens; for a file that does not say what it was trained for
_EMBEDDING_MOST: Final = 8192  # tokens; an embedder's scratch space grows with the square
_PARALLEL: Final = 4  # slots; they share one context, so an idle one costs a few MiB
_UBATCH: Final = 512  # tokens; CPU prefill is flat from 256 to 1024
_BATCH: Final = 2048  # tokens; the engine's own default, split into ubatches
_CHECKPOINTS: Final = 2  # per slot: before the last turn, and the one before that
_POOL_MOST: Final = 32768  # cells; four long chats
_POOL_SHARE: Final = 8  # a pool beyond one context may take one part in so many of what is free
_ENCODERS: Final = ("bert", "t5encoder", "embedding")

# What is given up first, last: (ubatch, slots). Speed goes before context, context before refusal.
_LADDER: Final = ((_UBATCH, _PARALLEL), (256, _PARALLEL), (128, _PARALLEL), (128, 2), (128, 1))


@dataclass(frozen=True, slots=True)
class _Task:
    """All inputs of one plan."""

    facts: ModelFacts
    hardware: HardwareFacts
    wishes: Wishes
    mmproj_bytes: int

    @property
    def embedding(self) -> bool:
        return is_embedder(self.facts)

    @property
    def trained(self) -> int:
        trained = self.facts.context_length or _UNKNOWN_TRAINING
        return min(trained, _EMBEDDING_MOST) if self.embedding else trained

    @property
    def reserve_bytes(self) -> int:
        return reserve_bytes(self.hardware, self.wishes.reserve_bytes)

    @property
    def budget_bytes(self) -> int:
        return max(0, self.hardware.headroom_bytes - self.reserve_bytes)

    @property
    def checkpoints(self) -> int:
        needed = self.facts.recurrent or any(self.facts.sliding_layers or ())
        return _CHECKPOINTS if needed and not self.embedding else 0

    def need(self, context: int, ubatch: int, parallel: int, cells: int = 0) -> MemoryNeed:
        sizing = Sizing(
            cells=max(context, cells),
            parallel=parallel,
            ubatch=context if self.embedding else ubatch,
            checkpoints=self.checkpoints,
            extra_buffers=not self.wishes.safe_mode,
            x86=self.hardware.cpu.is_x86,
            mmproj_bytes=self.mmproj_bytes,
        )
        return memory_need(self.facts, sizing)


def is_embedder(facts: ModelFacts) -> bool:
    """Whether the model turns texts into vectors or ranks, instead of writing."""
    return bool(facts.pooling) or any(word in facts.architecture for word in _ENCODERS)


def make_plan(
    model_id: str,
    model_path: Path,
    facts: ModelFacts,
    hardware: HardwareFacts,
    wishes: Wishes,
    *,
    mmproj_path: Path | None = None,
    mmproj_bytes: int = 0,
) -> LaunchPlan:
    """The settings to start a worker with now. Raises MemoryShort when nothing fits.

    `hardware` must be fresh: its free memory is the budget. `mmproj_bytes` is the size of the
    file at `mmproj_path`.
    """
    task = _Task(facts, hardware, wishes, mmproj_bytes)
    context, ubatch, parallel = _fit(task)
    cells = _pool(task, context, ubatch, parallel)
    if task.embedding:
        ubatch = context
    threads = wishes.threads or hardware.effective_cpus
    return LaunchPlan(
        model_id=model_id,
        model_path=model_path,
        mmproj_path=mmproj_path,
        context=context,
        parallel=parallel,
        threads=threads,
        threads_batch=threads,
        batch=context if task.embedding else max(ubatch, min(_BATCH, context)),
        ubatch=ubatch,
        n_outputs_max=ubatch if task.embedding else parallel,
        cache_ram_mib=0,
        checkpoints=task.checkpoints,
        kv_unified=True,
        embedding=task.embedding,
        pooling=facts.pooling,
        extra_buffers=not wishes.safe_mode,
        gpu_layers=0,
        memory=task.need(context, ubatch, parallel, cells),
        reasons=_reasons(task, context, ubatch, parallel, threads, cells),
        cells=cells,
    )


def _fit(task: _Task) -> tuple[int, int, int]:
    """Context, ubatch and slots; the first rung of the ladder that reaches a useful context."""
    wish = task.wishes.context
    most = min(wish, task.trained) if wish else task.trained
    useful = most if wish else min(most, _COMFORT)
    rungs = _rungs(task)
    context = _longest(task, most, *rungs[0])
    if context >= useful:
        return context, *rungs[0]
    for rung in rungs[1:]:
        if _fits(task, useful, *rung):
            return useful, *rung
    context = _longest(task, useful, *rungs[-1])
    if wish is not None or context < min(_SHORTEST, most):
        raise _short(task, useful if wish else min(_SHORTEST, most), context, *rungs[-1])
    return context, *rungs[-1]


def _rungs(task: _Task) -> tuple[tuple[int, int], ...]:
    if task.wishes.parallel is None:
        return _LADDER
    slots = task.wishes.parallel
    return tuple(dict.fromkeys((ubatch, slots) for ubatch, _ in _LADDER))


def _fits(task: _Task, context: int, ubatch: int, parallel: int) -> bool:
    need = task.need(context, ubatch, parallel).total_bytes
    if context <= _ROOMY or task.wishes.context is not None:
        return need <= task.budget_bytes
    roomy = task.need(_ROOMY, ubatch, parallel).total_bytes
    return need <= roomy + (task.budget_bytes - roomy) // 2


def _longest(task: _Task, most: int, ubatch: int, parallel: int) -> int:
    """The longest context up to `most` that fits, in the engine's steps; 0 when none does."""
    if _fits(task, most, ubatch, parallel):
        return most
    return _last_step(most, lambda context: _fits(task, context, ubatch, parallel))


def _pool(task: _Task, context: int, ubatch: int, parallel: int) -> int:
    """Cells for all slots together: at least one context, at most one for each slot."""
    most = min(context * parallel, max(context, _POOL_MOST))
    if not keeps_cache(task.facts):
        return context
    alone = task.need(context, ubatch, parallel).total_bytes
    limit = alone + max(0, task.budget_bytes - alone) // _POOL_SHARE

    def affordable(cells: int) -> bool:
        return task.need(context, ubatch, parallel, cells).total_bytes <= limit

    return most if affordable(most) else max(context, _last_step(most, affordable))


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


def _short(task: _Task, context: int, possible: int, ubatch: int, parallel: int) -> MemoryShort:
    need = task.need(context, ubatch, parallel).total_bytes
    free = task.budget_bytes
    hint = "Close other programs, unload another model, or choose a smaller one."
    if possible >= _SHORTEST:
        hint = f"Set a context of at most {possible} tokens, or free some memory."
    return MemoryShort(
        f"The model needs {_gib(need)} with a context of {context} tokens, but only {_gib(free)}"
        f" of memory can be used now ({_gib(task.reserve_bytes)} stay reserved).",
        hint=hint,
        needed_bytes=need,
        free_bytes=free,
        reserve_bytes=task.reserve_bytes,
        context=context,
        possible_context=possible,
    )


def _gib(count: int) -> str:
    return f"{count / (1024 * MIB):.2f} GiB"


def _reasons(  # one value each
    task: _Task, context: int, ubatch: int, parallel: int, threads: int, cells: int
) -> tuple[Reason, ...]:
    wishes = task.wishes
    checkpoints = (
        "this model can only go back to saved points; two per slot keep a chat fast"
        if task.checkpoints
        else "plain attention goes back to any point by itself"
    )
    safe = (
        "the self-test found this CPU's fast layouts unsound"
        if wishes.safe_mode
        else "the self-test found no fault: weights may be laid out for this CPU"
    )
    return (
        _context_reason(task, context),
        Reason("parallel", parallel, *_slots_reason(task, parallel)),
        Reason("threads", threads, *_threads_reason(task, threads)),
        Reason("threads_batch", threads, *_threads_reason(task, threads)),
        Reason("ubatch", ubatch, "rule", _ubatch_reason(task, ubatch)),
        Reason("n_outputs_max", ubatch if task.embedding else parallel, "rule", _OUTPUTS),
        Reason("cache_ram_mib", 0, "rule", _CACHE),
        Reason("checkpoints", task.checkpoints, "rule", checkpoints),
        Reason("cells", cells, "rule", _pool_reason(context, parallel, cells)),
        Reason("kv_unified", True, "rule", _UNIFIED),  # noqa: FBT003  # the setting's value
        Reason("extra_buffers", not wishes.safe_mode, "measured", safe),
        Reason("gpu_layers", 0, "rule", "the built-in runtime computes on the CPU"),
        Reason("embedding", task.embedding, "rule", "from the model's own description"),
    )


_OUTPUTS: Final = "one token per slot is sampled; more would cost memory for every vocabulary entry"
_CACHE: Final = (
    "idle conversations stay in their slots; a second copy would take memory from others"
)
_UNIFIED: Final = "slots share the context, so one request alone can use all of it"


def _context_reason(task: _Task, context: int) -> Reason:
    wish, trained = task.wishes.context, task.trained
    if wish is not None and context == wish:
        return Reason("context", context, "user", "set by the user")
    if context == trained:
        why = "all that the model was trained for, and it fits"
        if wish is not None:
            why = f"{wish} was asked for, but the model was trained for {trained}"
        elif task.facts.context_length > trained:
            why = f"embedders are held to {_EMBEDDING_MOST} tokens; their work grows as its square"
        return Reason("context", context, "rule", why)
    free = _gib(task.budget_bytes)
    why = f"the longest that fits in {free} of usable memory (the model's own limit is {trained})"
    if context > _ROOMY:
        why = f"uses half of what is free beyond {_ROOMY} tokens; the other half stays with others"
    return Reason("context", context, "rule", why)


def _slots_reason(task: _Task, parallel: int) -> tuple[Source, str]:
    if task.wishes.parallel is not None:
        return "user", "set by the user"
    if parallel < _PARALLEL:
        return "rule", "fewer slots than usual, because memory is short"
    return "rule", "requests that are decoded together cost little more than one alone"


def _pool_reason(context: int, parallel: int, cells: int) -> str:
    if cells >= context * parallel:
        return "a full context for each slot"
    return "room enough; only requests of great length at the same time have to share it"


def _threads_reason(task: _Task, threads: int) -> tuple[Source, str]:
    limits, cpu = task.hardware.limits, task.hardware.cpu
    if task.wishes.threads is not None:
        over = threads > task.hardware.effective_cpus
        note = (
            f"; more than the {task.hardware.effective_cpus} that can run at once" if over else ""
        )
        return "user", f"set by the user{note}"
    parts = [f"{cpu.physical_cores} cores", f"{limits.affinity_cpus} allowed"]
    if cpu.performance_cores is not None:
        parts.append(f"{cpu.performance_cores} fast ones")
    if limits.quota_cpus is not None:
        parts.append(f"a quota of {limits.quota_cpus:g} (rounded down)")
    return "rule", f"the least of {', '.join(parts)}"


def _ubatch_reason(task: _Task, ubatch: int) -> str:
    if task.embedding:
        return "an embedder reads a whole text in one step"
    if ubatch < _UBATCH:
        return "smaller than usual, to leave memory for the context"
    return "prompts are read no faster in larger steps on a CPU"
