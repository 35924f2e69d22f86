from __future__ import annotations

import pytest

from stoker.errors import Overtaken, QueueFull, ServerOff, StokerError, WorkerFailed
from stoker.lifecycle.effects import Abort, Grant, Plan, Reject, Start, Stop, Why
from stoker.lifecycle.eviction import Candidate
from stoker.lifecycle.queueing import QUANTUM_S
from stoker.lifecycle.scheduler import Scheduler
from stoker.lifecycle.tracked import Purpose
from stoker.types import ModelState
from tests.unit.lifecycle.steps import A, B, C, load, make_scheduler, of, state, use

# --- one model -------------------------------------------------------------------------------


def test_first_request_loads_and_is_granted() -> None:
    """Plan, start, grant, in that order and once each."""
    scheduler = make_scheduler()

    assert scheduler.on_request(1, A, 0) == [Plan(A, ())]
    assert state(scheduler, A) is ModelState.LOADING
    assert scheduler.on_planned(A, 10, (), 0, wait=False) == [Start(A)]
    assert scheduler.on_ready(A, 1, 0) == [Grant(1, A, 1)]
    assert state(scheduler, A) is ModelState.READY


def test_requests_during_a_load_do_not_start_another() -> None:
    """All who wait are granted when the one load is ready."""
    scheduler = make_scheduler()
    scheduler.on_request(1, A, 0)

    assert scheduler.on_request(2, A, 0) == []
    scheduler.on_planned(A, 10, (), 0, wait=False)
    assert scheduler.on_ready(A, 4, 0) == [Grant(1, A, 1), Grant(2, A, 1)]


def test_places_bound_what_runs_at_once() -> None:
    """A request beyond the places waits for a release, in order."""
    scheduler = make_scheduler()
    generation = load(scheduler, A, 1, places=1)

    assert scheduler.on_request(2, A, 1) == []
    assert scheduler.on_request(3, A, 1) == []
    assert scheduler.on_released(A, generation, 2) == [Grant(2, A, generation)]


def test_queue_is_bounded() -> None:
    """Too many waiting requests are told so, with numbers."""
    scheduler = make_scheduler(max_queue=1)
    scheduler.on_request(1, A, 0)

    (reject,) = of(Reject, scheduler.on_request(2, A, 0))

    assert isinstance(reject.error, QueueFull)
    assert reject.error.facts == {"queued": 1, "limit": 1, "position": 2, "retry_after_s": 6}


def test_unwanted_load_is_cancelled() -> None:
    """When the last waiter leaves, the load is aborted; the next request begins anew."""
    scheduler = make_scheduler()
    scheduler.on_request(1, A, 0)
    scheduler.on_planned(A, 10, (), 0, wait=False)

    assert scheduler.on_cancelled(1, 1) == [Abort(A)]
    assert scheduler.on_request(2, A, 1) == []
    assert scheduler.on_exited(A, None, 2) == [Plan(A, ())]


def test_load_with_another_waiter_goes_on() -> None:
    """One of two leaving changes nothing for the other."""
    scheduler = make_scheduler()
    scheduler.on_request(1, A, 0)
    scheduler.on_request(2, A, 0)

    assert scheduler.on_cancelled(1, 1) == []
    scheduler.on_planned(A, 10, (), 0, wait=False)
    assert scheduler.on_ready(A, 1, 2) == [Grant(2, A, 1)]


def test_ready_after_the_abort_is_ignored() -> None:
    """A worker that became ready in the moment of the abort is not served from."""
    scheduler = make_scheduler()
    scheduler.on_request(1, A, 0)
    scheduler.on_planned(A, 10, (), 0, wait=False)
    scheduler.on_cancelled(1, 1)

    assert scheduler.on_ready(A, 1, 1) == []
    assert scheduler.on_exited(A, None, 2) == []
    assert state(scheduler, A) is ModelState.UNLOADED


# --- failures --------------------------------------------------------------------------------


def _broken() -> StokerError:
    return WorkerFailed("it broke", kind="unknown")


def test_failed_load_rejects_all_and_the_next_request_tries_again() -> None:
    """The first failure is not held against the next request."""
    scheduler = make_scheduler()
    error = _broken()
    scheduler.on_request(1, A, 0)
    scheduler.on_request(2, A, 0)

    assert scheduler.on_failed(A, error, 1) == [Reject(1, error), Reject(2, error)]
    assert state(scheduler, A) is ModelState.FAILED
    assert scheduler.standing(A).error is error
    assert scheduler.on_request(3, A, 1) == [Plan(A, ())]


def test_repeated_failures_back_off_briefly() -> None:
    """The second failure in a row answers at once for a second, then it is tried again."""
    scheduler = make_scheduler()
    error = _broken()
    for ticket in (1, 2):
        scheduler.on_request(ticket, A, 0)
        scheduler.on_failed(A, error, 0)

    assert scheduler.on_request(3, A, 0.5) == [Reject(3, error)]
    assert scheduler.on_request(4, A, 1.0) == [Plan(A, ())]


def test_shortage_is_not_held_against_anyone() -> None:
    """What failed for lack of memory is tried again at once, however often."""
    scheduler = make_scheduler()
    for ticket in range(5):
        assert scheduler.on_request(ticket, A, 0) == [Plan(A, ())]
        scheduler.on_failed(A, _broken(), 0, back_off=False)


def test_crash_in_flight_loads_again_for_the_next() -> None:
    """A late release of the dead worker's request does not touch the new worker's count."""
    scheduler = make_scheduler()
    generation = load(scheduler, A, 1)

    scheduler.on_exited(A, _broken(), 1)
    assert state(scheduler, A) is ModelState.FAILED
    assert scheduler.on_request(2, A, 1) == [Plan(A, ())]
    scheduler.on_planned(A, 10, (), 1, wait=False)
    scheduler.on_ready(A, 1, 1)
    scheduler.on_released(A, generation, 2)

    assert scheduler.standing(A).in_flight == 1


def test_crash_with_waiters_loads_again_for_them() -> None:
    """Requests that had not begun do not suffer from another one's crash."""
    scheduler = make_scheduler()
    load(scheduler, A, 1)
    scheduler.on_request(2, A, 1)

    assert scheduler.on_exited(A, _broken(), 2) == [Plan(A, ())]


# --- two models ------------------------------------------------------------------------------


def test_idle_model_makes_room() -> None:
    """Stop, wait for the exit, plan again with the memory that is really free, start."""
    scheduler = make_scheduler()
    generation = load(scheduler, A, 1)
    scheduler.on_released(A, generation, 1)

    assert scheduler.on_request(2, B, 2) == [Plan(B, (Candidate(A, 10, busy=False),))]
    stops = scheduler.on_planned(B, 20, (A,), 2, wait=False)
    assert [(stop, stop.why) for stop in of(Stop, stops)] == [(Stop(A), Why.ROOM)]
    assert state(scheduler, B) is ModelState.LOADING
    assert scheduler.on_exited(A, None, 3) == [Plan(B, ())]
    assert scheduler.on_planned(B, 20, (), 3, wait=False) == [Start(B)]


def test_victim_that_got_a_request_is_spared() -> None:
    """Between plan and stop the world may change: then it is planned again."""
    scheduler = make_scheduler()
    generation = load(scheduler, A, 1)
    scheduler.on_released(A, generation, 1)
    scheduler.on_request(2, B, 2)
    scheduler.on_request(3, A, 2)

    effects = scheduler.on_planned(B, 20, (A,), 2, wait=False)

    assert effects == [Plan(B, (Candidate(A, 10, busy=True),))]


def test_busy_model_is_waited_for() -> None:
    """A busy model is never stopped; when it stays idle for a moment there is a new plan."""
    scheduler = make_scheduler()
    generation = load(scheduler, A, 1)
    scheduler.on_request(2, B, 1)

    assert scheduler.on_planned(B, 20, (A,), 1, wait=True) == []
    assert state(scheduler, B) is ModelState.QUEUED
    assert scheduler.on_released(A, generation, 2) == []
    assert scheduler.wake_at is not None
    assert scheduler.on_wake(scheduler.wake_at) == [Plan(B, (Candidate(A, 10, busy=False),))]


def test_steady_stream_of_requests_yields_after_a_quantum() -> None:
    """After the quantum the served model takes no new requests, and ends when it is idle."""
    scheduler = make_scheduler()
    generation = load(scheduler, A, 1, places=2)
    scheduler.on_request(2, B, 1)
    scheduler.on_planned(B, 20, (A,), 1, wait=True)
    assert scheduler.on_request(3, A, 2) == [Grant(3, A, generation)]

    later = QUANTUM_S + 2
    assert Stop(A) not in scheduler.on_tick(later)
    assert scheduler.on_request(4, A, later) == []
    assert scheduler.on_released(A, generation, later) == []
    assert scheduler.on_released(A, generation, later) == [Stop(A)]
    assert scheduler.on_exited(A, None, later) == [Plan(B, ())]


def test_fresh_model_keeps_its_quantum() -> None:
    """Who waited long does not push out a model that was loaded a moment ago."""
    scheduler = make_scheduler()
    load(scheduler, A, 1, now=100)
    scheduler.on_request(2, B, 100)
    scheduler.on_planned(B, 20, (A,), 100, wait=True)

    effects = scheduler.on_tick(100 + QUANTUM_S - 1)

    assert of(Stop, effects) == []
    assert state(scheduler, A) is ModelState.READY


def test_models_are_loaded_in_the_order_of_their_oldest_request() -> None:
    """One load at a time; the next is whoever waits longest."""
    scheduler = make_scheduler()
    scheduler.on_request(1, A, 0)
    assert scheduler.on_request(2, B, 1) == []
    scheduler.on_planned(A, 10, (), 1, wait=False)

    assert of(Plan, scheduler.on_ready(A, 1, 2)) == [Plan(B, (Candidate(A, 10, busy=True),))]


def test_leaving_while_waiting_for_room_lets_the_next_load() -> None:
    """A load that had not begun needs no abort."""
    scheduler = make_scheduler()
    load(scheduler, A, 1)
    scheduler.on_request(2, B, 1)
    scheduler.on_planned(B, 20, (A,), 1, wait=True)

    assert scheduler.on_cancelled(2, 2) == []
    assert scheduler.current is None
    assert state(scheduler, B) is ModelState.UNLOADED


def test_pinned_model_is_no_candidate() -> None:
    """A pinned model neither makes room nor expires."""
    scheduler = make_scheduler(keep_alive_s=1)
    generation = load(scheduler, A, 1)
    scheduler.keep(A, pinned=True)
    scheduler.on_released(A, generation, 1)

    assert scheduler.on_tick(100) == []
    assert scheduler.on_request(2, B, 100) == [Plan(B, ())]


# --- leaving ---------------------------------------------------------------------------------


def test_idle_model_expires() -> None:
    """keep_alive counts from the last release, and -1 means for ever."""
    scheduler = make_scheduler(keep_alive_s=10)
    generation = load(scheduler, A, 1)
    assert scheduler.on_tick(100) == []
    scheduler.on_released(A, generation, 100)

    assert of(Stop, scheduler.on_tick(109)) == []
    assert scheduler.on_tick(110) == [Stop(A)]
    assert state(scheduler, A) is ModelState.DRAINING

    scheduler.on_exited(A, None, 111)
    scheduler.keep(A, keep_alive_s=-1)
    generation = load(scheduler, A, 2, now=111)
    scheduler.on_released(A, generation, 111)
    assert of(Stop, scheduler.on_tick(1e9)) == []


def test_unload_waits_for_what_runs() -> None:
    """New requests wait for the next worker; the running one ends in peace."""
    scheduler = make_scheduler()
    generation = load(scheduler, A, 1)

    assert scheduler.on_unload(A, 1) == []
    assert scheduler.on_request(2, A, 1) == []
    assert scheduler.on_released(A, generation, 2) == [Stop(A)]
    assert scheduler.on_exited(A, None, 3) == [Plan(A, ())]


def test_forced_unload_stops_at_once() -> None:
    """With force nobody is waited for, and the stop is asked for once."""
    scheduler = make_scheduler()
    load(scheduler, A, 1)
    scheduler.on_unload(A, 1)

    assert scheduler.on_unload(A, 2, force=True) == [Stop(A)]
    assert scheduler.on_unload(A, 3, force=True) == []


def test_an_overdue_unload_leaves_who_came_since() -> None:
    """The worker is stopped with what runs on it; who waits gets the next one."""
    scheduler = make_scheduler()
    load(scheduler, A, 1)
    scheduler.on_unload(A, 1)
    scheduler.on_request(2, A, 2)

    assert scheduler.on_overdue(A, 3) == [Stop(A)]
    assert scheduler.on_overdue(A, 3) == []
    assert scheduler.on_exited(A, None, 4) == [Plan(A, ())]


def test_unload_during_the_load_aborts_it() -> None:
    """Who waited for it is told."""
    scheduler = make_scheduler()
    scheduler.on_request(1, A, 0)

    effects = scheduler.on_unload(A, 1)

    assert [reject.ticket for reject in of(Reject, effects)] == [1]
    assert of(Abort, effects) == [Abort(A)]


def test_close_refuses_and_stops() -> None:
    """Waiting and new requests are refused, running ones end, then the workers stop."""
    scheduler = make_scheduler()
    generation = load(scheduler, A, 1)
    scheduler.on_request(2, B, 1)

    effects = scheduler.on_close(ServerOff("off"), 2)

    assert [type(reject.error) for reject in of(Reject, effects)] == [ServerOff]
    assert of(Abort, effects) == [Abort(B)]
    assert of(Stop, effects) == []
    assert isinstance(of(Reject, scheduler.on_request(3, A, 3))[0].error, ServerOff)
    assert scheduler.on_released(A, generation, 4) == [Stop(A)]


def test_cut_stops_what_still_runs() -> None:
    """After the time that a close gives to running requests."""
    scheduler = make_scheduler()
    load(scheduler, A, 1)
    scheduler.on_close(ServerOff("off"), 2)

    assert scheduler.on_cut(3) == [Stop(A)]


def test_open_serves_again() -> None:
    """As if nothing had been."""
    scheduler = make_scheduler()
    scheduler.on_close(ServerOff("off"), 0)

    scheduler.on_open()

    assert scheduler.on_request(1, A, 1) == [Plan(A, ())]


# --- changing models -------------------------------------------------------------------------


def _two_loaded(*, b_pinned: bool = False) -> tuple[Scheduler, int]:
    """A is idle, B serves one request; the scheduler and that request's generation."""
    scheduler = make_scheduler()
    scheduler.on_released(A, load(scheduler, A, 1), 0)
    scheduler.keep(B, pinned=b_pinned)
    return scheduler, load(scheduler, B, 2)


def test_use_lets_the_idle_others_go() -> None:
    """At once; the one in use stays."""
    scheduler, generation = _two_loaded()

    assert use(scheduler, B, 3) == [Grant(3, B, generation), Stop(A)]
    assert state(scheduler, B) is ModelState.READY


def test_use_lets_a_busy_other_go_when_it_is_done() -> None:
    """It serves what runs on it and what waits for it; nobody is cut or refused."""
    scheduler, generation = _two_loaded()
    scheduler.on_request(3, B, 1)

    assert [type(effect) for effect in use(scheduler, A, 4)] == [Grant]
    assert scheduler.on_released(B, generation, 2) == [Grant(3, B, generation)]
    assert scheduler.on_released(B, generation, 3) == [Stop(B)]
    assert state(scheduler, A) is ModelState.READY


def test_use_leaves_a_pinned_one() -> None:
    scheduler, generation = _two_loaded(b_pinned=True)

    use(scheduler, A, 3)

    assert scheduler.on_released(B, generation, 2) == []


@pytest.mark.parametrize("purpose", [Purpose.LOAD, Purpose.USE])
def test_who_is_wanted_after_all_stays(purpose: Purpose) -> None:
    """A load, or a use, of a model that was about to leave; even if it has no free place."""
    scheduler, generation = _two_loaded()
    use(scheduler, A, 3)

    (grant,) = of(Grant, scheduler.on_request(4, B, 1, purpose))

    assert scheduler.on_released(B, grant.generation, 2) == []
    assert scheduler.on_released(B, generation, 2) == []
    assert state(scheduler, B) is ModelState.READY


def test_the_newest_use_wins() -> None:
    """Who waits for an older one is told, its load is given up, and nobody leaves for it."""
    scheduler, generation = _two_loaded()
    scheduler.on_released(B, generation, 1)
    use(scheduler, C, 3, now=2)

    effects = use(scheduler, B, 4, now=3)

    (reject,) = of(Reject, effects)
    assert (reject.ticket, type(reject.error)) == (3, Overtaken)
    assert reject.error.hint == "To change back: stoker use c"
    assert of(Abort, effects) == [Abort(C)]
    assert of(Stop, effects) == [Stop(A)]
    assert scheduler.on_exited(C, None, 4) == []
    assert state(scheduler, B) is ModelState.READY


def test_a_load_that_somebody_else_waits_for_goes_on() -> None:
    """Also when the use that began it was overtaken; the newest use stays as it is."""
    scheduler, generation = _two_loaded()
    scheduler.on_released(B, generation, 1)
    use(scheduler, C, 3, now=2)
    scheduler.on_request(4, C, 2)

    effects = use(scheduler, B, 5, now=3)

    assert of(Abort, effects) == []
    scheduler.on_planned(C, 10, (), 4, wait=False)
    assert scheduler.on_ready(C, 1, 4) == [Grant(4, C, 1)]
    assert state(scheduler, B) is ModelState.READY


def test_the_same_use_twice_is_one() -> None:
    """Both callers get their answer."""
    scheduler = make_scheduler()
    use(scheduler, A, 1)

    assert use(scheduler, A, 2) == []
    scheduler.on_planned(A, 10, (), 1, wait=False)
    assert scheduler.on_ready(A, 1, 1) == [Grant(1, A, 1), Grant(2, A, 1)]


def test_a_use_that_is_refused_overtakes_nothing() -> None:
    """The load of the one before goes on."""
    scheduler = make_scheduler()
    for failed in (0, 0):  # the second time in a row it is not tried again at once
        scheduler.on_request(1, B, failed)
        scheduler.on_failed(B, WorkerFailed("x"), failed)
    use(scheduler, A, 2, now=0)

    (reject,) = use(scheduler, B, 3, now=0)

    assert isinstance(reject, Reject)
    assert reject.ticket == 3
    assert scheduler.current == A


def test_use_overtakes_what_was_to_be_restored() -> None:
    """But not what somebody asked to load."""
    scheduler = make_scheduler()
    scheduler.on_request(1, A, 0, Purpose.RESTORE)
    scheduler.on_request(2, B, 0, Purpose.LOAD)

    effects = use(scheduler, C, 3)

    assert [one.ticket for one in of(Reject, effects)] == [1]
    assert state(scheduler, B) is ModelState.QUEUED


def test_a_model_that_left_may_come_back_for_good() -> None:
    """A request that loads it again does not find it about to leave."""
    scheduler, generation = _two_loaded()
    use(scheduler, A, 3)
    scheduler.on_released(B, generation, 2)
    scheduler.on_exited(B, None, 3)

    again = load(scheduler, B, 4, now=4)

    assert scheduler.on_released(B, again, 5) == []


def test_free_unloads_what_is_idle() -> None:
    """Nothing that runs is touched, and nothing that is pinned."""
    scheduler, generation = _two_loaded()

    assert scheduler.on_free(1) == [Stop(A)]
    assert scheduler.on_free(2) == []
    scheduler.on_released(B, generation, 3)
    scheduler.keep(B, pinned=True)
    assert scheduler.on_free(4) == []
