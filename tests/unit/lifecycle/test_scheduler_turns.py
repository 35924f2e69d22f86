"""Models that do not fit together take turns: who is next, for how long, and what a client sees."""

from __future__ import annotations

import pytest

from stoker.lifecycle.effects import Abort, Grant, Plan, Reject, Start, Stop, Waiting
from stoker.lifecycle.eviction import Candidate
from stoker.lifecycle.queueing import QUANTUM_S
from stoker.lifecycle.scheduler import Scheduler
from stoker.lifecycle.tracked import Purpose
from stoker.types import ModelState
from tests.unit.lifecycle.steps import (
    A,
    B,
    C,
    load,
    load_idle,
    make_scheduler,
    of,
    state,
    use,
)


def _blocked(now: float = 1, *, places: int = 1) -> tuple[Scheduler, int]:
    """A is busy, B waits for it; the scheduler and the generation of A's request."""
    scheduler = make_scheduler()
    generation = load(scheduler, A, 1, places=places)
    scheduler.on_request(2, B, now)
    scheduler.on_planned(B, 20, (A,), now, wait=True)
    return scheduler, generation


# --- lingering -------------------------------------------------------------------------------


def test_idle_model_lingers_for_a_follower() -> None:
    """A client that asks again within a moment is served before the change; nothing is stopped."""
    scheduler = make_scheduler()
    load_idle(scheduler, A, 1, load_s=1)
    scheduler.recall_load_s(B, 1)
    scheduler.on_request(2, B, 0.01)

    assert scheduler.on_planned(B, 20, (A,), 0.05, wait=False) == []
    assert scheduler.wake_at == pytest.approx(0.2)
    assert state(scheduler, B) is ModelState.QUEUED
    assert [type(effect) for effect in scheduler.on_request(3, A, 0.1)] == [Grant]
    assert scheduler.on_wake(0.2) == []
    assert scheduler.wake_at == pytest.approx(0.01 + QUANTUM_S)


def test_when_no_follower_comes_it_makes_room() -> None:
    scheduler = make_scheduler()
    load_idle(scheduler, A, 1, load_s=1)
    scheduler.recall_load_s(B, 1)
    scheduler.on_request(2, B, 0.01)
    scheduler.on_planned(B, 20, (A,), 0.05, wait=False)

    assert scheduler.on_wake(0.19) == []
    assert scheduler.on_wake(0.21) == [Plan(B, (Candidate(A, 10, busy=False),))]
    assert scheduler.wake_at is None
    assert scheduler.on_planned(B, 20, (A,), 0.22, wait=False) == [Stop(A)]


def test_who_was_idle_for_a_while_does_not_linger() -> None:
    scheduler = make_scheduler()
    load_idle(scheduler, A, 1, load_s=1)
    scheduler.on_request(2, B, 5)

    assert scheduler.on_planned(B, 20, (A,), 5, wait=False) == [Stop(A)]


def test_nobody_lingers_against_the_user() -> None:
    """`stoker use` begins at once."""
    scheduler = make_scheduler()
    load_idle(scheduler, A, 1, load_s=9)
    use(scheduler, B, 2, now=0.01)

    assert scheduler.on_planned(B, 20, (A,), 0.02, wait=False) == [Stop(A)]


def test_nobody_lingers_beyond_its_turn() -> None:
    """Requests that come again and again do not hold the model longer than a quantum."""
    scheduler, generation = _blocked(now=1)
    scheduler.on_released(A, generation, QUANTUM_S + 1.5)

    assert scheduler.current == B


def test_waking_too_often_or_for_nothing_does_nothing() -> None:
    scheduler = make_scheduler()
    assert scheduler.on_wake(0) == []
    load_idle(scheduler, A, 1)
    scheduler.on_request(2, B, 0.01)
    scheduler.on_planned(B, 20, (A,), 0.01, wait=False)

    assert [scheduler.on_wake(at) for at in (0.02, 0.03, 0.03)] == [[], [], []]
    assert len(scheduler.on_wake(1)) == 1
    assert scheduler.on_wake(1) == []


# --- order -----------------------------------------------------------------------------------


def test_a_higher_priority_is_loaded_first() -> None:
    scheduler = make_scheduler()
    scheduler.keep(C, priority=5)
    scheduler.on_request(1, A, 0)
    scheduler.on_request(2, B, 1)
    scheduler.on_request(3, C, 2)
    scheduler.on_planned(A, 10, (), 3, wait=False)

    assert [plan.model for plan in of(Plan, scheduler.on_ready(A, 1, 4))] == [C]


def test_a_higher_priority_goes_before_one_that_waits_for_room() -> None:
    """What has not begun yet may be overtaken; what makes room already may not."""
    scheduler, generation = _blocked()
    scheduler.keep(C, priority=5)

    assert [plan.model for plan in of(Plan, scheduler.on_request(3, C, 2))] == [C]
    assert scheduler.on_planned(C, 20, (A,), 2, wait=True) == []
    scheduler.on_released(A, generation, 3)
    assert [plan.model for plan in of(Plan, scheduler.on_wake(4))] == [C]


def test_what_fits_passes_one_that_waits_for_room() -> None:
    """A long answer of one model does not keep a small third one from being loaded."""
    scheduler, _generation = _blocked()

    assert [plan.model for plan in of(Plan, scheduler.on_request(3, C, 2))] == [C]
    assert scheduler.on_planned(C, 5, (), 2, wait=False) == [Start(C)]
    assert Grant(3, C, 1) in scheduler.on_ready(C, 1, 3)
    assert state(scheduler, B) is ModelState.QUEUED


def test_who_passes_takes_no_others_place() -> None:
    """When it does not fit as it is, it waits for its turn, also behind idle models."""
    scheduler = make_scheduler()
    load_idle(scheduler, C, 9)
    generation = load(scheduler, A, 1)
    scheduler.on_request(2, B, 1)
    scheduler.on_planned(B, 20, (A,), 1, wait=True)
    last = type(B)("last")
    scheduler.on_request(3, last, 2)

    assert scheduler.on_planned(last, 10, (C,), 2, wait=False) == []
    assert state(scheduler, C) is ModelState.READY
    assert state(scheduler, last) is ModelState.QUEUED
    scheduler.on_released(A, generation, 3)
    assert [plan.model for plan in of(Plan, scheduler.on_wake(4))] == [B]


def test_nobody_passes_after_a_quantum() -> None:
    """The memory that falls free is kept for who waits for so long."""
    scheduler = make_scheduler()
    load(scheduler, A, 1, now=QUANTUM_S)
    scheduler.on_request(2, B, QUANTUM_S)
    scheduler.on_planned(B, 20, (A,), QUANTUM_S, wait=True)

    effects = scheduler.on_request(3, C, 2 * QUANTUM_S - 0.5)

    assert [plan.model for plan in of(Plan, effects)] == [C]
    scheduler.on_planned(C, 5, (A,), 2 * QUANTUM_S - 0.5, wait=True)
    late = scheduler.on_tick(2 * QUANTUM_S)
    assert of(Plan, late) == []
    assert state(scheduler, A) is ModelState.DRAINING


# --- the user's choice -----------------------------------------------------------------------


def test_use_does_not_wait_for_a_turn_to_end() -> None:
    """A busy model in its way takes no new requests, and ends those that run."""
    scheduler = make_scheduler()
    generation = load(scheduler, A, 1, places=4)
    use(scheduler, B, 2)

    assert scheduler.on_planned(B, 20, (A,), 1, wait=True) == []
    assert state(scheduler, A) is ModelState.DRAINING
    assert scheduler.on_request(3, A, 2) == []
    assert scheduler.on_released(A, generation, 3) == [Stop(A)]
    assert [plan.model for plan in of(Plan, scheduler.on_exited(A, None, 4))] == [B]


def test_user_who_changes_their_mind_finds_the_old_model_serving() -> None:
    """It was to leave when its stream ends; now it stays, and who waited for it is served."""
    scheduler = make_scheduler()
    generation = load(scheduler, A, 1, places=4)
    use(scheduler, B, 2)
    scheduler.on_planned(B, 20, (A,), 1, wait=True)
    scheduler.on_request(3, A, 2)

    effects = use(scheduler, A, 4, now=3)

    assert [effect.ticket for effect in of(Reject, effects)] == [2]
    assert {grant.ticket for grant in of(Grant, effects)} == {3, 4}
    assert state(scheduler, A) is ModelState.READY
    assert scheduler.on_released(A, generation, 4) == []


def test_who_was_to_make_room_for_nobody_serves_on() -> None:
    scheduler, generation = _blocked(places=2)
    scheduler.on_tick(QUANTUM_S + 2)
    assert state(scheduler, A) is ModelState.DRAINING

    scheduler.on_cancelled(2, QUANTUM_S + 3)

    assert state(scheduler, A) is ModelState.READY
    assert scheduler.on_released(A, generation, QUANTUM_S + 4) == []


def test_what_the_user_unloads_is_not_forgiven() -> None:
    """It was to make room, then it was unloaded: it leaves although nobody needs the room."""
    scheduler, generation = _blocked(places=2)
    scheduler.on_tick(QUANTUM_S + 2)
    scheduler.on_unload(A, QUANTUM_S + 2)

    scheduler.on_cancelled(2, QUANTUM_S + 3)

    assert scheduler.on_released(A, generation, QUANTUM_S + 4) == [Stop(A)]


# --- what a client sees ----------------------------------------------------------------------


def test_waiting_names_the_load_that_comes_first() -> None:
    scheduler = make_scheduler()
    scheduler.recall_load_s(A, 12)
    scheduler.on_request(1, A, 0)
    scheduler.on_request(2, B, 1)
    scheduler.on_planned(A, 10, (), 2, wait=False)

    assert scheduler.waiting(1, 4) == Waiting(1, 2, A, ModelState.LOADING, A, 4, 12, ())
    assert scheduler.waiting(2, 4) == Waiting(2, 2, B, ModelState.QUEUED, A, 4, 12, ())
    assert scheduler.waiting(3, 4) is None


def test_waiting_names_who_must_end_something_first() -> None:
    """Before and after the busy model was told to take no new requests."""
    scheduler, _generation = _blocked()
    blocked = Waiting(1, 1, B, ModelState.QUEUED, None, None, None, (A,))

    assert scheduler.waiting(2, 4) == blocked
    scheduler.on_tick(QUANTUM_S + 2)
    assert scheduler.waiting(2, QUANTUM_S + 3) == blocked


def test_waiting_for_a_place() -> None:
    scheduler = make_scheduler()
    load(scheduler, A, 1)
    scheduler.on_request(2, A, 1)

    assert scheduler.waiting(2, 2) == Waiting(1, 1, A, ModelState.READY, None, None, None, (A,))
    assert scheduler.waiting(1, 2) is None


def test_a_load_is_measured_without_the_wait_for_busy_models() -> None:
    """From the plan that led to it."""
    scheduler, generation = _blocked()
    scheduler.on_released(A, generation, 10)
    scheduler.on_wake(11)
    assert scheduler.loading_s(B, 11) is None
    scheduler.on_planned(B, 20, (A,), 11, wait=False)

    assert scheduler.loading_s(B, 14) == 3
    scheduler.on_exited(A, None, 14)
    scheduler.on_planned(B, 20, (), 14, wait=False)
    assert scheduler.loading_s(B, 15) == 4
    assert scheduler.expected_load_s(B) is None
    scheduler.on_ready(B, 1, 16, 5.0)
    assert (scheduler.loading_s(B, 17), scheduler.expected_load_s(B)) == (None, 5.0)


def test_a_measured_load_counts_more_than_a_remembered_one() -> None:
    """And asking for neither makes a model known."""
    scheduler = make_scheduler()
    scheduler.recall_load_s(A, 7)
    assert scheduler.expected_load_s(A) == 7
    assert scheduler.known() == ()

    load(scheduler, A, 1, load_s=2)
    scheduler.recall_load_s(A, 7)

    assert scheduler.expected_load_s(A) == 2


def test_cancelled_while_it_looks_for_room_again() -> None:
    """The plan that is out is given up, as any load is that nobody waits for."""
    scheduler, generation = _blocked()
    scheduler.on_released(A, generation, 3)
    scheduler.on_wake(4)

    assert scheduler.on_cancelled(2, 4) == [Abort(B)]
    assert scheduler.on_exited(B, None, 5) == []
    assert state(scheduler, A) is ModelState.READY


def test_victims_that_are_never_idle_in_the_right_moment_yield_in_the_end() -> None:
    """A plan finds them idle, and each time somebody comes before it is carried out."""
    scheduler, generation = _blocked(places=4)
    scheduler.on_released(A, generation, 2)
    late = QUANTUM_S + 0.99
    scheduler.on_wake(late)  # idle: planned
    scheduler.on_request(3, A, late)

    effects = scheduler.on_planned(B, 20, (A,), late, wait=False)
    assert of(Plan, effects) != []
    effects = scheduler.on_planned(B, 20, (A,), QUANTUM_S + 1, wait=False)

    assert of(Plan, effects) == []
    assert state(scheduler, A) is ModelState.DRAINING


def test_use_is_planned_before_priorities() -> None:
    scheduler, generation = _blocked()
    scheduler.keep(B, priority=10)
    scheduler.on_request(3, C, 2, Purpose.USE)
    scheduler.on_planned(C, 20, (A,), 2, wait=True)

    scheduler.on_released(A, generation, 3)

    assert [plan.model for plan in of(Plan, scheduler.on_exited(A, None, 4))] == [C]


def test_a_full_queue_says_when_to_come_again() -> None:
    """The loads that come first, less what has passed of the one on its way."""
    scheduler = make_scheduler(max_queue=1)
    scheduler.recall_load_s(A, 20)
    scheduler.recall_load_s(B, 10)
    scheduler.on_request(1, A, 0)

    (same,) = of(Reject, scheduler.on_request(2, A, 5))
    (other,) = of(Reject, scheduler.on_request(3, B, 5))

    assert [one.error.facts["retry_after_s"] for one in (same, other)] == [16, 26]
