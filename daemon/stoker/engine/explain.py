"""Why a model could not be loaded, with the numbers and with what would help. Pure.

Not for: the kind of a failure (`classify`), or refusals before anything is started
(`stoker.tuning.refusal`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from stoker.engine.classify import numbers
from stoker.errors import WorkerFailed
from stoker.store.facts import ModelFacts
from stoker.tuning import quants
from stoker.tuning.launch import LaunchPlan
from stoker.tuning.refusal import gigabytes
from stoker.types import FailureKind

_WORTHWHILE: Final = 2048  # tokens; a shorter context is no advice
_LESS: Final = 0.75  # of a file's size, when nobody knows how much too large it is
_MEMORY: Final = frozenset((FailureKind.OUT_OF_MEMORY, FailureKind.KILLED))


def explain(
    error: WorkerFailed, plan: LaunchPlan, facts: ModelFacts, *, available_bytes: int
) -> WorkerFailed:
    """The same failure of a load with this plan, in more words.

    ``available_bytes`` is what was free when it was planned.
    """
    try:
        kind = FailureKind(str(error.facts.get("kind")))
    except ValueError:
        return error
    tail = error.facts.get("tail")
    lines = [str(line) for line in tail] if isinstance(tail, list) else []
    said = {**numbers(kind, lines), **error.facts}  # whoever saw the whole log knows better
    if kind in _MEMORY:
        return _memory(error, said, plan, facts, available_bytes)
    if kind is FailureKind.BAD_FILE:
        hint = f"Check it with `stoker verify {plan.model_id}`, then pull it again."
        return WorkerFailed(error.message, hint=hint, **said)
    name = said.get("architecture")
    if name is not None:
        message = f"The engine does not know this kind of model ({name})."
        return WorkerFailed(message, hint=error.hint, **said)
    return error


def _memory(
    error: WorkerFailed,
    said: Mapping[str, object],
    plan: LaunchPlan,
    facts: ModelFacts,
    available_bytes: int,
) -> WorkerFailed:
    found = said.get("missing_bytes")
    missing = found if isinstance(found, int) else None
    half = plan.context // 2
    context = half if half >= _WORTHWHILE and not plan.embedding else None
    most = int(facts.file_bytes * _LESS) if missing is None else facts.file_bytes - missing
    smaller = quants.largest_below(facts.file_bytes, facts.parameters, most)
    numbers_of_it = {
        "missing_bytes": missing,
        "needed_bytes": plan.memory.total_bytes,
        "needed_gpu_bytes": plan.memory.gpu_bytes,
        "available_bytes": available_bytes,
        "context": plan.context,
        "possible_context": context,
        "smaller_quantization": smaller,
    }
    return WorkerFailed(
        f"{_cause(error, missing)} {_planned(plan, available_bytes)}",
        hint=_advice(plan, facts, context, smaller),
        **{**said, **numbers_of_it},
    )


def _cause(error: WorkerFailed, missing: int | None) -> str:
    if missing is None:
        return error.message
    return f"The engine ran out of memory: it asked for {gigabytes(missing)} more than it got."


def _planned(plan: LaunchPlan, available_bytes: int) -> str:
    gpu = plan.memory.gpu_bytes
    where = f" and {gigabytes(gpu)} on the GPU" if gpu else ""
    return (
        f"Planned were {gigabytes(plan.memory.total_bytes)} of memory{where} with a context of"
        f" {plan.context:,} tokens; {gigabytes(available_bytes)} were free."
    )


def _advice(plan: LaunchPlan, facts: ModelFacts, context: int | None, smaller: str | None) -> str:
    ways = []
    if context is not None:
        ways.append(f"set a context of at most {context:,} tokens")
    if smaller is not None:
        size = gigabytes(quants.size_bytes(smaller, facts.parameters))
        ways.append(f"choose a smaller quantization of it such as {smaller} (about {size})")
    if plan.memory.gpu_bytes:
        ways.append("set fewer gpu_layers")
    ways.append("close other programs")
    if smaller is None:
        ways.append("choose a smaller model")
    words = f"{', '.join(ways[:-1])} or {ways[-1]}"
    return f"{words[0].upper()}{words[1:]}."
