"""Whose turn it is, with nothing but numbers."""

from __future__ import annotations

import math
from collections import deque

import pytest

from stoker.lifecycle import queueing
from stoker.lifecycle.queueing import QUANTUM_S, STARVATION_S
from stoker.lifecycle.tracked import Purpose, Tracked, Waiter
from stoker.types import ModelId, ModelState


def _waiting(
    name: str, since: float, *, priority: int = 0, purpose: Purpose = Purpose.REQUEST
) -> Tracked:
    one = Tracked(ModelId(name), 60, priority=priority)
    one.waiters = deque([Waiter(sum(map(ord, name)), since, purpose)])
    return one


def _names(models: list[Tracked]) -> list[str]:
    return [str(one.id) for one in models]


def test_who_waits_longest_is_next() -> None:
    assert _names(queueing.in_order([_waiting("a", 2), _waiting("b", 1)], 3)) == ["b", "a"]


def test_a_higher_priority_goes_first() -> None:
    """However long the other one waits, up to the limit."""
    models = [_waiting("low", 0), _waiting("high", 50, priority=1)]

    assert _names(queueing.in_order(models, STARVATION_S - 1)) == ["high", "low"]
    assert _names(queueing.in_order(models, STARVATION_S)) == ["low", "high"]


def test_the_users_choice_goes_before_all_priorities() -> None:
    """Somebody sits there and looks at it."""
    models = [_waiting("high", 0, priority=10), _waiting("chosen", 1, purpose=Purpose.USE)]

    assert _names(queueing.in_order(models, 2)) == ["chosen", "high"]


def test_nobody_passes_for_ever() -> None:
    """After a quantum, and before what the user chose, the memory is kept for the first."""
    first = _waiting("first", 0)

    assert queueing.may_pass(first, QUANTUM_S - 1)
    assert not queueing.may_pass(first, QUANTUM_S)
    assert not queueing.may_pass(_waiting("chosen", 0, purpose=Purpose.USE), 1)


@pytest.mark.parametrize(
    ("load_s", "other_load_s", "expected"),
    [(0.5, 0.5, 0.1), (4.0, 9.0, 0.25), (None, 9.0, 0.05), (4.0, None, 0.05)],
)
def test_lingering_costs_little_against_the_change(
    load_s: float | None, other_load_s: float | None, expected: float
) -> None:
    """A tenth of both loads, never more than a moment."""
    assert queueing.linger_s(load_s, other_load_s) == pytest.approx(expected)


def test_a_turn_is_a_quantum_from_the_load_and_from_the_wait() -> None:
    """Whichever is later; who has left counts no more; the user's choice waits for no turn."""
    served = Tracked(ModelId("served"), 60, state=ModelState.READY, ready_at=10)
    gone = Tracked(ModelId("gone"), 60, ready_at=100)

    assert queueing.yield_at(_waiting("a", 4), [served, gone]) == 10 + QUANTUM_S
    assert queueing.yield_at(_waiting("a", 14), [served]) == 14 + QUANTUM_S
    assert queueing.yield_at(_waiting("a", 14), []) == 14 + QUANTUM_S
    assert queueing.yield_at(_waiting("a", 4, purpose=Purpose.USE), [served]) == -math.inf


def test_positions_count_from_what_is_served_first() -> None:
    """A loaded model's requests, then those of the load on its way, then the rest in order."""
    ready, loading, last = _waiting("ready", 3), _waiting("loading", 2), _waiting("last", 1)
    ready.state, loading.state = ModelState.READY, ModelState.LOADING
    loading.waiters.append(Waiter(7777, 5))
    models = [last, loading, ready]

    def place(ticket: int) -> tuple[int, str] | None:
        found = queueing.position(ticket, models, loading, 6)
        return None if found is None else (found[0], str(found[1].id))

    assert place(ready.waiters[0].ticket) == (1, "ready")
    assert place(7777) == (3, "loading")
    assert place(last.waiters[0].ticket) == (4, "last")
    assert place(123456) is None


@pytest.mark.parametrize(
    ("loads", "queued", "places", "expected"),
    [
        ([], 0, 4, 1),  # never less than a second
        ([2.5], 8, 4, 5),
        ([None], 0, 4, 5),
        ([40.0, 40.0], 500, 0, 60),  # never more than a minute
    ],
)
def test_when_to_come_again(
    loads: list[float | None], queued: int, places: int, expected: int
) -> None:
    """The loads that come first, and what waits; in whole seconds."""
    assert queueing.retry_after_s(loads, queued, places) == expected
