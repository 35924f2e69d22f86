"""Which loaded models must go so that another one fits, and what their going costs. Pure.

Only what is idle and not pinned is ever proposed as free to take; busy models are named apart,
for a caller that is ready to wait for them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar

from stoker.types import ModelId

# Tokens. Rather evict an idle model than serve with less: a chat client's system prompt and a few
# files fill it. More than this is welcome, but not worth another model's place.
COMFORTABLE_CONTEXT: Final = 8192
# Seconds. Idle times are compared as if all were so much longer: which of two models was used a
# second earlier says nothing.
_ALIKE_S: Final = 10.0
_LOAD_BYTES_PER_S: Final = 1e9  # where no load was measured: about a warm disk
_SHRINK_S: Final = 300.0  # idle; a pause in a conversation is shorter


class Served(Protocol):
    """What of a plan tells how well it serves; a `LaunchPlan` has it."""

    @property
    def context(self) -> int: ...
    @property
    def gpu_layers(self) -> int: ...
    @property
    def cpu_experts(self) -> int: ...
    @property
    def embedding(self) -> bool: ...


P = TypeVar("P", bound=Served)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A loaded model that may go, with the memory that this frees."""

    model: ModelId
    size_bytes: int
    busy: bool
    gpu_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Choice(Generic[P]):
    """A plan, and the models that must be gone before it may be launched."""

    plan: P
    victims: tuple[ModelId, ...]
    wait: bool  # some victims are busy: they are not to be stopped, but waited for


def cost(*, idle_s: float, load_s: float | None, size_bytes: int) -> float:
    """What it costs to evict an idle model: the seconds to bring it back, times a chance.

    The chance that somebody wants it back soon falls with the time that nobody did. What a model
    gives is no part of it: `choose` and `relieve` take the cheap ones until it is enough, and
    then spare those that were not needed.
    """
    again_s = size_bytes / _LOAD_BYTES_PER_S if load_s is None else load_s
    return again_s / (max(0.0, idle_s) + _ALIKE_S)


def shrink_after(keep_alive_s: float) -> float:
    """Idle seconds after which a model gives back what it can do without."""
    return _SHRINK_S if keep_alive_s < 0 else min(_SHRINK_S, keep_alive_s / 2)


def choose(
    candidates: Sequence[Candidate], plan_with: Callable[[int, int], P | None]
) -> Choice[P] | None:
    """The choice that takes the fewest models, in the order given (the cheapest first).

    ``plan_with(extra_bytes, gpu_bytes)`` plans as if so much more memory were free, and so much on
    the GPU; None when it doesn't fit. Returns None when it does not fit even with all candidates
    gone. A model goes, or is waited for, also for the sake of layers on the GPU: on the processor
    the other one would be many times slower for as long as it stays.
    """
    leaving = [one for one in candidates if not one.busy]
    wait = False
    best = plan_with(*_freed(leaving))
    busy = [one for one in candidates if one.busy]
    if best is None or any(one.gpu_bytes for one in busy):
        most = plan_with(*_freed([*leaving, *busy]))
        if most is None:
            return None
        if best is None or on_gpu(most) > on_gpu(best):
            best, wait, leaving = most, True, [*leaving, *busy]
    wanted = min(COMFORTABLE_CONTEXT, best.context)

    def enough(chosen: Sequence[Candidate]) -> P | None:
        plan = plan_with(*_freed(chosen))
        if plan is None or plan.context < wanted or on_gpu(plan) < on_gpu(best):
            return None
        return plan

    victims = _fewest(leaving, enough)
    plan = enough(victims) or best
    return Choice(plan, tuple(one.model for one in victims), wait)


def on_gpu(plan: Served) -> tuple[int, int]:
    """How much of a plan is on a GPU, to compare plans of one model.

    Nothing where it hardly matters: an embedder is small, and called between answers of the model
    that would have to go for it each time.
    """
    return (0, 0) if plan.embedding else (plan.gpu_layers, -plan.cpu_experts)


def relieve(candidates: Sequence[Candidate], need_bytes: int) -> tuple[ModelId, ...]:
    """Idle models that give so much together, in the order given; all, when that is too little."""
    idle = [one for one in candidates if not one.busy]
    victims = _fewest(idle, lambda chosen: (_size(chosen) >= need_bytes) or None)
    return tuple(one.model for one in victims)


def _fewest(
    ordered: Sequence[Candidate], enough: Callable[[Sequence[Candidate]], T | None]
) -> Sequence[Candidate]:
    """From the first on, as many as it takes, without those that a later one makes needless."""
    count = next(n for n in range(len(ordered) + 1) if n == len(ordered) or enough(ordered[:n]))
    victims = ordered[:count]
    for one in tuple(victims[:-1]):  # a small old model is spared when a later one is enough
        rest = [other for other in victims if other is not one]
        if enough(rest):
            victims = rest
    return victims


def _freed(chosen: Sequence[Candidate]) -> tuple[int, int]:
    """What they give: of memory, and of a GPU's."""
    return _size(chosen), sum(one.gpu_bytes for one in chosen)


def _size(chosen: Sequence[Candidate]) -> int:
    return sum(one.size_bytes for one in chosen)
