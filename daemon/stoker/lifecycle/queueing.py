"""Whose turn it is, and how long a loaded model may keep others waiting. Pure.

Two models that do not fit together take turns. A turn should be long, because each change costs
a load, and short, because somebody waits:

- the model that is loaded serves as long as requests for it keep coming. When there is none it
  *lingers* for a moment: clients that ask again at once are still served. The moment is a small
  part of what the two loads cost that it may save (to rent, or to buy).
- after `QUANTUM_S` it takes no new requests, and leaves when those that run have ended.
- who is next: who waits for `STARVATION_S`, then what the user changes to, then by priority,
  then whoever waits longest.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final

from stoker.lifecycle.tracked import Tracked
from stoker.types import ModelState

# Seconds a model may serve before it must yield to one that waits: long against a load from a
# warm disk (1 to 5 s), short against a person's patience.
QUANTUM_S: Final = 30.0
STARVATION_S: Final = 2 * QUANTUM_S  # after this long in the queue no priority goes first
_LINGER_S: Final = 0.25  # more would be felt; a program sends its next request within this time
_LINGER_SHARE: Final = 0.1  # of what the change costs, and changing back
_LINGER_UNKNOWN_S: Final = 0.05  # when one of the loads was never measured
_LOAD_GUESS_S: Final = 5.0  # for a hint to a client, where no load was measured
_REQUEST_GUESS_S: Final = 1.0
_RETRY_S: Final = (1, 60)  # a hint is never less, and never more


def in_order(waiting: Iterable[Tracked], now: float) -> list[Tracked]:
    """Models that somebody waits for; the first is the next to load."""

    def rank(one: Tracked) -> tuple[bool, bool, int, float]:
        since = one.waiters[0].since
        if now - since >= STARVATION_S:
            return False, False, 0, since
        return True, not one.is_chosen, -one.priority, since

    return sorted(waiting, key=rank)


def may_pass(first: Tracked, now: float) -> bool:
    """Whether a model that fits as it is may be loaded while the first waits for busy ones.

    It may take of the memory that the first will need: so not for ever, and not before the
    model that the user waits for.
    """
    return not first.is_chosen and now - first.waiters[0].since < QUANTUM_S


def linger_s(load_s: float | None, other_load_s: float | None) -> float:
    """How long an idle model waits for a follower before it makes room for the other one."""
    if load_s is None or other_load_s is None:
        return _LINGER_UNKNOWN_S
    return min(_LINGER_S, _LINGER_SHARE * (load_s + other_load_s))


def yield_at(one: Tracked, blockers: Iterable[Tracked]) -> float:
    """When models that block this one must let it have its turn, however busy they are.

    Who was loaded a moment ago has a turn of its own first; but the user's choice is law.
    """
    if one.is_chosen:
        return -math.inf
    turns = [other.ready_at for other in blockers if other.loaded]
    return max((one.waiters[0].since, *turns)) + QUANTUM_S


def position(
    ticket: int, models: Iterable[Tracked], current: Tracked | None, now: float
) -> tuple[int, Tracked] | None:
    """The place of a ticket among all that wait, and its model: 1 is the next to be served."""
    waiting = [one for one in models if one.waiters]
    ready = [one for one in waiting if one.state is ModelState.READY]
    ready.sort(key=lambda one: one.waiters[0].since)
    loading = [one for one in waiting if one is current]
    others = in_order((one for one in waiting if one not in ready and one is not current), now)
    line = [(one, waiter) for one in (*ready, *loading, *others) for waiter in one.waiters]
    for place, (one, waiter) in enumerate(line, 1):
        if waiter.ticket == ticket:
            return place, one
    return None


def retry_after_s(loads: Sequence[float | None], queued: int, places: int) -> int:
    """When a client that found the queue full should come again: a guess, in whole seconds.

    ``loads`` are the seconds of the loads that come first, None for one that was never measured.
    """
    load_s = sum(_LOAD_GUESS_S if one is None else one for one in loads)
    guess_s = load_s + queued * _REQUEST_GUESS_S / max(1, places)
    return math.ceil(min(max(guess_s, _RETRY_S[0]), _RETRY_S[1]))
