"""Which loaded models must go so that another one fits. Pure.

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


class HasContext(Protocol):
    @property
    def context(self) -> int: ...


P = TypeVar("P", bound=HasContext)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A loaded model that may go, with the memory that this frees."""

    model: ModelId
    size_bytes: int
    busy: bool


@dataclass(frozen=True, slots=True)
class Choice(Generic[P]):
    """A plan, and the models that must be gone before it may be launched."""

    plan: P
    victims: tuple[ModelId, ...]
    wait: bool  # some victims are busy: they are not to be stopped, but waited for


def choose(
    candidates: Sequence[Candidate], plan_with: Callable[[int], P | None]
) -> Choice[P] | None:
    """The choice that takes the fewest models, in the order given (the cheapest first).

    ``plan_with(extra_bytes)`` plans as if so much more memory were free; None when it doesn't fit.
    Returns None when it does not fit even with all candidates gone.
    """
    idle = [one for one in candidates if not one.busy]
    wait = False
    best = plan_with(_size(idle))
    if best is None:
        idle += [one for one in candidates if one.busy]
        wait = True
        best = plan_with(_size(idle))
    if best is None:
        return None
    wanted = min(COMFORTABLE_CONTEXT, best.context)

    def enough(chosen: Sequence[Candidate]) -> P | None:
        plan = plan_with(_size(chosen))
        return plan if plan is not None and plan.context >= wanted else None

    count = next(n for n in range(len(idle) + 1) if n == len(idle) or enough(idle[:n]))
    victims = idle[:count]
    for one in tuple(victims[:-1]):  # a small old model is spared when a later one is enough
        rest = [other for other in victims if other is not one]
        if enough(rest):
            victims = rest
    plan = enough(victims) or best
    return Choice(plan, tuple(one.model for one in victims), wait)


def _size(chosen: Sequence[Candidate]) -> int:
    return sum(one.size_bytes for one in chosen)
