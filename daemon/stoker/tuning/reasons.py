"""Why each setting of a plan has its value, in words for a person. Pure; decides nothing."""

from __future__ import annotations

from typing import Final

from stoker.tuning import profiles_rules
from stoker.tuning.launch import LaunchPlan, Reason, Source, Speeds
from stoker.tuning.memory import keeps_cache
from stoker.tuning.placement import Room, gpu_runtime
from stoker.tuning.refusal import gigabytes
from stoker.tuning.task import EMBEDDING_MOST, Task

_USER: Final = "set by the user"
_OUTPUTS: Final = "one token per slot is sampled; more would cost memory for every vocabulary entry"
_NO_CACHE: Final = (
    "idle conversations stay in their slots; a second copy would take memory from others"
)
_UNIFIED: Final = "slots share the context, so one request alone can use all of it"
_DIVIDED: Final = "each slot has a cache of its own: none has to look past what others keep"
_DESCRIBED: Final = "from the model's own description"
_MEASURABLE: Final = 0.005  # of the speed; less is no difference

_Why = tuple[Source, str]


def reasons(task: Task, plan: LaunchPlan) -> tuple[Reason, ...]:
    """One for each setting of `plan`."""
    whys: dict[str, _Why] = {
        "profile": ("user" if plan.profile != "chat" else "rule", task.rules.why),
        "runtime": _runtime(task, plan),
        "context": _context(task, plan),
        "parallel": _slots(task, plan),
        "cells": (_memory_source(task), _pool(plan)),
        "kv_type": _kv_type(task, plan),
        "kv_unified": ("rule", _UNIFIED if plan.kv_unified else _DIVIDED),
        "threads": _threads(task, plan.threads, reading=False),
        "threads_batch": _threads(task, plan.threads_batch, reading=True),
        "ubatch": _ubatch(task, plan),
        "batch": ("rule", _batch(plan)),
        "flash_attention": _flash(task, plan),
        "extra_buffers": _extra_buffers(task),
        "gpu_layers": _gpu_layers(task, plan),
        "cpu_experts": ("rule", _experts(plan)),
        "n_outputs_max": ("rule", _OUTPUTS),
        "cache_ram_mib": ("rule", _prompt_cache(task, plan)),
        "checkpoints": ("rule", _checkpoints(plan)),
        "embedding": ("rule", _DESCRIBED),
        "pooling": ("rule", _DESCRIBED),
    }
    if plan.correction != 1:
        whys["correction"] = ("measured", _correction(plan))
    return tuple(
        Reason(setting, getattr(plan, setting), source, why)
        for setting, (source, why) in whys.items()
    )


# --- memory ------------------------------------------------------------------------------------


def _memory_source(task: Task) -> Source:
    return "rule" if task.survey is None else "dry-run"


def _context(task: Task, plan: LaunchPlan) -> _Why:
    context, wish, trained = plan.context, task.wishes.context, task.trained
    if wish is not None and context == wish:
        return "user", _USER
    source = _memory_source(task)
    if context == trained:
        return source, _whole_context(task)
    if context > task.rules.roomy:
        half = f"uses half of what is free beyond {task.rules.roomy:,} tokens"
        return source, f"{half}; the other half stays with others"
    fewest = context <= task.rules.shortest and plan.kv_type != "f16"
    what = "the least that is useful" if fewest else "the longest that fits"
    limit = f"(the model's own limit is {trained:,} tokens)"
    usable = "what the limit for all models leaves" if task.limited else "usable memory"
    return source, f"{what} in {gigabytes(task.budget_bytes)} of {usable} {limit}"


def _whole_context(task: Task) -> str:
    wish, trained = task.wishes.context, task.trained
    if wish is not None:
        return f"{wish:,} tokens were asked for, but the model was trained for {trained:,}"
    if task.facts.context_length > trained:
        return f"embedders are held to {EMBEDDING_MOST:,} tokens; their work grows as its square"
    return "all that the model was trained for, and it fits"


def _slots(task: Task, plan: LaunchPlan) -> _Why:
    if task.wishes.parallel is not None:
        return "user", _USER
    if plan.parallel < task.rules.parallel:
        return _memory_source(task), "fewer slots than usual, because memory is short"
    return "rule", "several at once are answered sooner together than one after another"


def _pool(plan: LaunchPlan) -> str:
    if plan.cells >= plan.context * plan.parallel:
        return "a full context for each slot"
    return "room enough; only requests of great length at the same time have to share it"


def _kv_type(task: Task, plan: LaunchPlan) -> _Why:
    if not keeps_cache(task.facts):
        return "rule", "this model keeps no conversation"
    if task.wishes.kv_type is not None:
        loss = "; answers may suffer" if plan.kv_type == "q4_0" else ""
        return "user", f"{_USER}{loss}"
    if plan.kv_type == "f16":
        return "rule", "full precision; there is memory enough"
    return _memory_source(task), "half the memory for a loss that is hard to notice; else too short"


def _prompt_cache(task: Task, plan: LaunchPlan) -> str:
    if plan.cache_ram_mib:
        return "what other conversations have read is kept, up to this many MiB"
    if task.rules.prompt_cache_mib:
        return "no memory to spare for a copy of old conversations"
    return _NO_CACHE


def _correction(plan: LaunchPlan) -> str:
    percent, more = abs(plan.correction - 1), "more" if plan.correction > 1 else "less"
    return f"it took {percent:.0%} {more} memory here than was computed, weights left out"


def _checkpoints(plan: LaunchPlan) -> str:
    if plan.checkpoints:
        return "this model can only go back to saved points; a few per slot keep a chat fast"
    return "plain attention goes back to any point by itself"


# --- speed -------------------------------------------------------------------------------------


def _runtime(task: Task, plan: LaunchPlan) -> _Why:
    if task.tuned is not None:
        return "measured", f"the fastest for this model here{_gain(task)}"
    return "rule", "the current runtime" if plan.runtime else "the runtime that is current at load"


def _threads(task: Task, value: int, *, reading: bool) -> _Why:
    wishes, cpus = task.wishes, task.hardware.effective_cpus
    wish = (wishes.threads_batch or wishes.threads) if reading else wishes.threads
    if wish is not None:
        over = f"; more than the {cpus} that can run at once" if value > cpus else ""
        return "user", f"{_USER}{over}"
    most = profiles_rules.most_threads(wishes.profile, cpus)[int(reading)]
    if task.tuned is not None:
        best = task.tuned.best.threads_batch if reading else task.tuned.best.threads
        if value == best:
            return "measured", f"the fastest of those tried{_gain(task, reading=reading)}"
    least = f"as many as can run at once: {', '.join(_bounds(task))}"
    if most < cpus:
        return "rule", f"half of the {cpus} that can run at once; {task.rules.why}"
    return "rule", least


def _bounds(task: Task) -> list[str]:
    limits, cpu = task.hardware.limits, task.hardware.cpu
    parts = [f"{cpu.physical_cores} cores", f"{limits.affinity_cpus} of them open to Stoker"]
    if limits.affinity_cores is not None:
        parts.append(f"{limits.affinity_cores} of those at full speed")
    elif cpu.performance_cores is not None:
        parts.append(f"{cpu.performance_cores} fast ones")
    if limits.quota_cpus is not None:
        parts.append(f"a quota of {limits.quota_cpus:g} (rounded down)")
    return parts


def _ubatch(task: Task, plan: LaunchPlan) -> _Why:
    wish, tuned = task.wishes.ubatch, task.tuned
    if task.embedding:
        return "rule", "an embedder reads a whole text in one step"
    if wish is not None:
        over = "; never filled, because the context is shorter" if wish > plan.context else ""
        return "user", f"{_USER}{over}"
    if tuned is not None and plan.ubatch == tuned.best.ubatch:
        return "measured", f"the fastest of those tried{_gain(task, reading=True)}"
    usual = profiles_rules.usual_ubatch() if tuned is None else tuned.best.ubatch
    if plan.ubatch < usual:
        return _memory_source(task), "smaller than usual, to leave memory for the context"
    return "rule", "prompts are read no faster in larger steps on a CPU"


def _batch(plan: LaunchPlan) -> str:
    if plan.embedding:
        return "an embedder reads a whole text in one step"
    return "what is queued at once; it is computed in the smaller steps"


def _flash(task: Task, plan: LaunchPlan) -> _Why:
    if task.wishes.flash_attention is not None:
        cost = "" if plan.flash_attention else "; long contexts cost much more memory"
        return "user", f"{_USER}{cost}"
    if task.tuned is not None and plan.flash_attention == task.tuned.best.flash_attention:
        return "measured", f"the faster way here{_gain(task, reading=True)}"
    if plan.kv_type != "f16":
        return "rule", f"{plan.kv_type} needs it"
    if task.hardware.cpu.is_x86:
        return "rule", "the fused way is the faster one on this kind of CPU and needs less memory"
    return "rule", "needs less memory; whether it is the faster way here has not been measured yet"


def _extra_buffers(task: Task) -> _Why:
    if task.wishes.safe_mode:
        return "measured", "the self-test found this CPU's fast layouts unsound"
    if task.tuned is not None:
        how = "laid out for this CPU" if task.extra_buffers else "as they are in the file"
        return "measured", f"weights {how} were the fastest{_gain(task)}"
    return "measured", "the self-test found no fault: weights may be laid out for this CPU"


def _gain(task: Task, *, reading: bool = False) -> str:
    """What the measured settings achieved together, as ": …"; "" when there is no difference."""
    tuned = task.tuned
    if tuned is None:
        return ""
    ratio = _ratio(tuned.speeds, tuned.baseline, reading=reading)
    what = "prompts are read" if reading else "answers come"
    if ratio is None or abs(ratio - 1) < _MEASURABLE:
        return ""
    slower = "faster" if ratio > 1 else "slower"
    return f": with all measured settings {what} {abs(ratio - 1):.0%} {slower}"


def _ratio(now: Speeds, before: Speeds, *, reading: bool) -> float | None:
    one, two = (
        (now.prefill_tokens_per_s, before.prefill_tokens_per_s)
        if reading
        else (now.decode_tokens_per_s, before.decode_tokens_per_s)
    )
    return one / two if two > 0 else None


# --- where -------------------------------------------------------------------------------------


def _gpu_layers(task: Task, plan: LaunchPlan) -> _Why:
    room = task.room
    unsound = task.wishes.no_gpu and gpu_runtime(plan.runtime)
    if task.wishes.gpu_layers is not None:
        idle = "" if room.usable else "; without effect, because this runtime computes on the CPU"
        note = "; the self-test passed with the processor alone" if unsound else idle
        return "user", f"{_USER}{note}"
    if unsound:
        return "measured", "the self-test passed with the processor alone"
    return "rule", _placed(room, plan, task.facts.block_count)


def _placed(room: Room, plan: LaunchPlan, blocks: int) -> str:
    if not room.usable:
        return "this runtime computes on the CPU"
    if room.shared:
        return "all of it: the GPU shares the system's memory"
    if room.free_bytes is None:
        return "how much memory the GPU has free is not known; set gpu_layers to use it"
    free = gigabytes(room.free_bytes)
    if plan.gpu_layers > blocks:
        return f"all of it fits in {free} of GPU memory"
    return f"as many as fit in {free} of GPU memory; the rest is computed on the CPU"


def _experts(plan: LaunchPlan) -> str:
    if not plan.cpu_experts:
        return "no expert has to stay beside the CPU"
    return (
        "so many layers keep their experts in memory; the parts that every token needs come first"
    )
