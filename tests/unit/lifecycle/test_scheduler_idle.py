"""Idle models: how long they stay, what they give back, and who goes when memory is needed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from stoker.errors import ServerOff
from stoker.lifecycle.effects import Effect, Grant, Plan, Shrink, Stop, Why
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


def _served(scheduler: Scheduler, ticket: int, now: float, keep_alive_s: float | None) -> None:
    """One request to A that ends at once."""
    (grant,) = scheduler.on_request(ticket, A, now, keep_alive_s=keep_alive_s)
    assert isinstance(grant, Grant)
    scheduler.on_released(A, grant.generation, now)


# --- keep_alive ------------------------------------------------------------------------------


def test_the_last_request_says_how_long_the_model_stays() -> None:
    """Until the next one, which says something else or nothing."""
    scheduler = make_scheduler(keep_alive_s=60)
    load_idle(scheduler, A, 1)
    _served(scheduler, 2, 0, keep_alive_s=500)
    assert scheduler.standing(A).keep_alive_s == 500
    assert of(Stop, scheduler.on_tick(400)) == []

    _served(scheduler, 3, 400, keep_alive_s=None)

    assert scheduler.standing(A).keep_alive_s == 60
    assert of(Stop, scheduler.on_tick(460)) == [Stop(A)]


def test_a_request_that_waits_says_nothing_yet() -> None:
    """What it asks for counts from its grant."""
    scheduler = make_scheduler(keep_alive_s=60)
    generation = load(scheduler, A, 1)
    scheduler.on_request(2, A, 1, keep_alive_s=5)

    assert scheduler.standing(A).keep_alive_s == 60
    scheduler.on_released(A, generation, 2)
    assert scheduler.standing(A).keep_alive_s == 5


def test_keep_alive_of_nothing_unloads_when_the_request_is_done() -> None:
    """At once, but not before others that run or wait on it."""
    scheduler = make_scheduler()
    generation = load(scheduler, A, 1, places=2)
    scheduler.on_request(2, A, 1, keep_alive_s=0)

    assert scheduler.on_released(A, generation, 2) == []
    (stop,) = of(Stop, scheduler.on_released(A, generation, 3))
    assert stop.why is Why.IDLE


def test_what_a_request_asked_for_ends_with_the_worker() -> None:
    scheduler = make_scheduler(keep_alive_s=60)
    load_idle(scheduler, A, 1)
    _served(scheduler, 2, 0, keep_alive_s=-1)
    scheduler.on_unload(A, 1)
    scheduler.on_exited(A, None, 2)

    load_idle(scheduler, A, 3, now=3)

    assert of(Stop, scheduler.on_tick(63)) == [Stop(A)]


def test_each_model_has_its_own() -> None:
    scheduler = make_scheduler(keep_alive_s=60)
    scheduler.keep(B, keep_alive_s=10)
    load_idle(scheduler, A, 1)
    load_idle(scheduler, B, 2)

    assert of(Stop, scheduler.on_tick(11)) == [Stop(B)]


def test_time_in_which_the_machine_slept_does_not_count() -> None:
    """Neither for idle models, nor for the turns of those that wait."""
    scheduler = make_scheduler(keep_alive_s=60)
    load_idle(scheduler, A, 1)
    scheduler.on_gap(1000, 1010)

    assert of(Stop, scheduler.on_tick(1050)) == []
    assert of(Stop, scheduler.on_tick(1060)) == [Stop(A)]


def test_nobody_yields_because_the_machine_slept() -> None:
    scheduler = make_scheduler()
    load(scheduler, A, 1)
    scheduler.on_request(2, B, 1)
    scheduler.on_planned(B, 20, (A,), 1, wait=True)

    scheduler.on_gap(1000, 1005)

    scheduler.on_tick(1005)
    assert state(scheduler, A) is ModelState.READY
    scheduler.on_planned(B, 20, (A,), 1005, wait=True)
    scheduler.on_tick(1001 + QUANTUM_S)
    assert state(scheduler, A) is ModelState.DRAINING


# --- pins ------------------------------------------------------------------------------------


def test_pinned_model_is_left_alone() -> None:
    """It does not expire, shrink, or leave for memory; the user may still unload it."""
    scheduler = make_scheduler(keep_alive_s=1)
    load_idle(scheduler, A, 1)
    scheduler.keep(A, pinned=True)

    assert scheduler.on_tick(1000) == []
    assert scheduler.on_pressure(10**9, 1000) == []
    assert scheduler.on_free(1000) == []
    assert (scheduler.standing(A).pinned, scheduler.standing(A).keep_alive_s) == (True, -1)
    assert scheduler.on_unload(A, 1000) == [Stop(A)]


def test_pinned_wins_over_what_a_request_asks_for() -> None:
    scheduler = make_scheduler()
    load_idle(scheduler, A, 1)
    scheduler.keep(A, pinned=True)

    _served(scheduler, 2, 1, keep_alive_s=0)

    assert state(scheduler, A) is ModelState.READY


def test_pin_of_a_model_that_was_to_leave_when_idle() -> None:
    """The user changed to another one, then pinned this one."""
    scheduler = make_scheduler()
    generation = load(scheduler, A, 1)
    load_idle(scheduler, B, 2)
    use(scheduler, B, 3)
    scheduler.keep(A, pinned=True)

    assert scheduler.on_released(A, generation, 2) == []


def test_pin_of_a_model_that_others_wait_for() -> None:
    """Its turn does not end; the others are planned anew, without it."""
    scheduler = make_scheduler()
    load(scheduler, A, 1)
    scheduler.on_request(2, B, 1)
    scheduler.on_planned(B, 20, (A,), 1, wait=True)
    scheduler.keep(A, pinned=True)

    assert scheduler.on_wake(QUANTUM_S + 2) == [Plan(B, ())]
    assert state(scheduler, A) is ModelState.READY


# --- two stages ------------------------------------------------------------------------------


def test_idle_model_shrinks_once_then_leaves() -> None:
    """After half of its time; again when it was used meanwhile."""
    scheduler = make_scheduler(keep_alive_s=60)
    load_idle(scheduler, A, 1)

    assert scheduler.on_tick(29) == []
    assert scheduler.on_tick(30) == [Shrink(A)]
    assert scheduler.on_tick(35) == []
    _served(scheduler, 2, 40, keep_alive_s=None)
    assert scheduler.on_tick(70) == [Shrink(A)]
    assert scheduler.on_tick(100) == [Stop(A)]


def test_model_that_stays_for_ever_shrinks_too() -> None:
    scheduler = make_scheduler(keep_alive_s=-1)
    load_idle(scheduler, A, 1)

    assert scheduler.on_tick(299) == []
    assert scheduler.on_tick(300) == [Shrink(A)]


def test_busy_model_does_not_shrink() -> None:
    scheduler = make_scheduler(keep_alive_s=60)
    load(scheduler, A, 1)

    assert scheduler.on_tick(1000) == []


def test_who_leaves_in_the_same_moment_does_not_shrink() -> None:
    """It would only take longer to go."""
    scheduler = make_scheduler(keep_alive_s=60)
    load_idle(scheduler, A, 1)
    load(scheduler, C, 2)
    scheduler.on_request(3, B, 0)
    scheduler.on_planned(B, 20, (A, C), 0, wait=True)

    assert scheduler.on_tick(QUANTUM_S + 1) == [Stop(A)]


# --- memory for others -----------------------------------------------------------------------


def test_pressure_frees_the_cheapest_idle_models() -> None:
    """As many as it takes; what is leaving already counts; nothing that runs is touched."""
    scheduler = make_scheduler()
    load_idle(scheduler, A, 1, load_s=9)
    load_idle(scheduler, B, 2, load_s=1)
    load(scheduler, C, 3, load_s=1)

    (stop,) = of(Stop, scheduler.on_pressure(10, 5))
    assert (stop.model, stop.why) == (B, Why.PRESSURE)
    assert scheduler.on_pressure(10, 6) == []
    assert scheduler.on_pressure(11, 7) == [Stop(A)]
    assert scheduler.on_pressure(10**9, 8) == []


def test_candidates_are_named_the_cheapest_first() -> None:
    """What leaves already, then what is quickly back."""
    scheduler = make_scheduler()
    load_idle(scheduler, A, 1, load_s=9)
    load_idle(scheduler, B, 2, load_s=1)
    load_idle(scheduler, C, 3, load_s=20)
    scheduler.on_unload(C, 4)

    (plan,) = of(Plan, scheduler.on_request(4, type(A)("d"), 5))

    assert [one.model for one in plan.candidates] == [C, B, A]


def test_a_stop_says_why() -> None:
    """For metrics and the history."""
    scheduler = make_scheduler(keep_alive_s=10)
    events: list[Callable[[], list[Effect]]] = [
        lambda: scheduler.on_tick(10),
        lambda: scheduler.on_free(1),
        lambda: scheduler.on_unload(A, 1),
        lambda: scheduler.on_suspect(A, scheduler._models[A].generation, 1),
        lambda: scheduler.on_hung(A, 1),
        lambda: scheduler.on_close(ServerOff("off"), 1),
    ]
    reasons: list[Why] = []
    for event in events:
        load_idle(scheduler, A, 1)
        reasons += [stop.why for stop in of(Stop, event())]
        scheduler.on_exited(A, None, 20)

    assert reasons == [Why.IDLE, Why.FREE, Why.UNLOAD, Why.BROKEN, Why.BROKEN, Why.CLOSED]


@pytest.mark.parametrize("purpose", [Purpose.LOAD, Purpose.USE])
def test_why_of_a_change(purpose: Purpose) -> None:
    """A use dismisses the others; a load alone does not."""
    scheduler = make_scheduler()
    load_idle(scheduler, A, 1)
    load_idle(scheduler, B, 2)

    stops = of(Stop, scheduler.on_request(3, B, 1, purpose))

    assert [stop.why for stop in stops] == ([Why.USE] if purpose is Purpose.USE else [])
