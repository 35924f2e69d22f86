"""The machine notices each rule of the scheduler that is broken: so none is there for nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import pytest
from hypothesis import Phase, Verbosity, settings
from hypothesis.stateful import run_state_machine_as_test

from stoker.lifecycle import eviction, queueing
from stoker.lifecycle.effects import Effect, Start, Stop, Why
from stoker.lifecycle.roster import Roster
from stoker.lifecycle.scheduler import Scheduler
from stoker.lifecycle.tracked import Tracked
from stoker.types import ModelState
from tests.unit.lifecycle.machine import SIZES, SchedulerMachine

Break = Callable[[pytest.MonkeyPatch], None]
_SETTINGS: Final = settings(
    max_examples=1000,
    stateful_step_count=50,
    derandomize=True,
    database=None,
    deadline=None,
    phases=(Phase.generate,),  # it is enough that there is one
    report_multiple_bugs=False,
    verbosity=Verbosity.quiet,
)


def _replace(where: object, name: str, new: Any) -> Break:
    return lambda patch: patch.setattr(where, name, new)


def _around(name: str, change: Callable[[Scheduler, list[Effect]], list[Effect]]) -> Break:
    """The method of the scheduler as it is, with its effects changed."""
    real = getattr(Scheduler, name)

    def changed(self: Scheduler, *args: Any, **named: Any) -> list[Effect]:
        return change(self, real(self, *args, **named))

    return _replace(Scheduler, name, changed)


def _evict_busy(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Tracked, "may_go", property(lambda one: not one.pinned or not one.loaded))
    patch.setattr(
        Scheduler,
        "_leave_if_done",
        staticmethod(lambda one, **_force: _stop(one) if not one.stopping else []),
    )


def _stop(one: Tracked) -> list[Effect]:
    if one.state is not ModelState.DRAINING:
        return []
    one.stopping = True
    return [Stop(one.id, one.leaving)]


def _take_anything(self: Scheduler, need_bytes: int, now: float) -> list[Effect]:
    effects: list[Effect] = []
    for one in self._models:
        if one.loaded and not one.stopping:
            effects += self._make_leave(one, Why.PRESSURE)
    return effects + self._advance(now)


def _keep_pins_only(self: Tracked) -> float:
    return -1 if self.pinned else self.keep_alive_s


def _ignore_pins(self: Tracked) -> float:
    asked = self.asked_keep_alive_s
    return self.keep_alive_s if asked is None else asked


def _start_without_looking(
    self: Scheduler, one: Tracked, victims: tuple[Any, ...], now: float
) -> list[Effect]:
    """The memory of the victims is counted on before they are gone."""
    effects: list[Effect] = []
    one.blockers = ()
    for victim in victims:
        effects += self._make_leave(self._models[victim], Why.ROOM)
    self._working = True
    one.state, one.size_bytes = ModelState.LOADING, SIZES[one.id]
    return [*effects, Start(one.id)]


def _advance_beside_a_load(self: Scheduler, now: float) -> list[Effect]:
    effects: list[Effect] = []
    for one in self._models:
        while (waiter := one.next_waiter()) is not None:
            effects += self._grant(one, waiter, now)
    return effects + self._begin_next(now)


def _by_priority_only(waiting: Any, now: float) -> list[Tracked]:
    return sorted(waiting, key=lambda one: (-one.priority, one.waiters[0].since))


def _newest_first(self: Tracked) -> Any:
    if self.state is not ModelState.READY:
        return None
    for waiter in reversed(self.waiters):
        if self.has_room_for(waiter.purpose):
            self.waiters.remove(waiter)
            return waiter
    return None


def _serve_and_forget(self: Tracked, waiter: Any, now: float) -> None:
    self.in_flight += 1
    self.last_used = now
    self.shrunk = False


def _forget_waiters(scheduler: Scheduler, effects: list[Effect]) -> list[Effect]:
    for one in scheduler._models:
        if one.state is ModelState.UNLOADED and one is not scheduler._current:
            one.waiters.clear()
    return effects


def _open_again(scheduler: Scheduler, effects: list[Effect]) -> list[Effect]:
    scheduler.on_open()
    return effects


def _drop_the_last(self: Scheduler, one: Tracked, error: Any) -> list[Effect]:
    rejected = _REJECT_ALL(self, one, error)
    return rejected[:-1]


def _reject_and_keep(self: Scheduler, one: Tracked, error: Any) -> list[Effect]:
    waiters = one.waiters.copy()
    rejected = _REJECT_ALL(self, one, error)
    one.waiters = waiters
    return rejected


def _any_generation(self: Scheduler, model: Any, generation: int, now: float) -> list[Effect]:
    return _ON_RELEASED(self, model, self._models[model].generation, now)


def _stop_again(one: Tracked, *, force: bool = False) -> list[Effect]:
    done = not one.in_flight or force
    return [Stop(one.id, one.leaving)] if one.state is ModelState.DRAINING and done else []


def _shrink_again(one: Tracked, now: float) -> bool:
    idle = one.idle and not one.pinned
    return idle and now - one.last_used >= eviction.shrink_after(one.stays_s)


_REJECT_ALL: Final = Scheduler._reject_all
_ON_RELEASED: Final = Scheduler.on_released
_nothing: Final[Callable[..., list[Effect]]] = lambda *_args, **_named: []  # noqa: E731

# What is broken, how, and what the machine says of it.
MUTANTS: Final[dict[str, tuple[Break, str]]] = {
    "evicts a busy model": (_evict_busy, "busy"),
    "evicts a pinned model": (
        _replace(Tracked, "evictable", property(lambda _one: True)),
        "pinned",
    ),
    "a pinned model expires": (
        _replace(Tracked, "stays_s", property(_ignore_pins)),
        "a pinned model leaves",
    ),
    "free takes pinned models": (
        _replace(
            Scheduler,
            "on_free",
            lambda self, now: (
                [
                    effect
                    for one in self._models
                    if one.idle
                    for effect in self._make_leave(one, Why.FREE)
                ]
                + self._advance(now)
            ),
        ),
        "a pinned model leaves",
    ),
    "pressure takes what is in use": (
        _replace(Scheduler, "on_pressure", _take_anything),
        "pinned|in use|its turn|room for nobody",
    ),
    "pressure takes nothing": (_replace(Scheduler, "on_pressure", _nothing), "not enough"),
    "forgets who waits when a worker ends": (
        _around("on_exited", _forget_waiters),
        "count|starved|answered|order",
    ),
    "does not answer the last one": (
        _replace(Scheduler, "_reject_all", _drop_the_last),
        "count|starved|order",
    ),
    "answers twice": (_replace(Scheduler, "_reject_all", _reject_and_keep), "twice|count"),
    "a cancelled request still waits": (
        _replace(Scheduler, "on_cancelled", _nothing),
        "count",
    ),
    "never yields": (
        _replace(queueing, "yield_at", lambda _one, _blockers: math.inf),
        "starved|forgotten|never answered|too late",
    ),
    "yields at once": (
        _replace(queueing, "yield_at", lambda _one, _blockers: -math.inf),
        "cut short|linger",
    ),
    "gives a model that was just loaded no turn": (
        _replace(
            queueing,
            "yield_at",
            lambda one, _blockers: (
                -math.inf if one.is_chosen else one.waiters[0].since + queueing.QUANTUM_S
            ),
        ),
        "cut short",
    ),
    "never lingers": (_replace(queueing, "linger_s", lambda *_loads: 0.0), "linger"),
    "lingers for ever": (
        _replace(Roster, "linger_until", lambda *_args: math.inf),
        "starved|forgotten|never answered|too late",
    ),
    "wakes in the past": (_replace(Scheduler, "on_wake", _nothing), "woken for ever"),
    "priorities starve others": (_replace(queueing, "in_order", _by_priority_only), "starved"),
    "counts on memory before it is free": (
        _replace(Scheduler, "_make_room", _start_without_looking),
        "too much memory",
    ),
    "loads two at once": (
        _replace(Scheduler, "_advance", _advance_beside_a_load),
        "two loads|two workers",
    ),
    "starts twice": (
        _around("on_planned", lambda _self, effects: effects * 2),
        "two workers|two loads|stopped twice|answered twice",
    ),
    "never cancels a load": (
        _replace(Scheduler, "_drop_unwanted", _nothing),
        "nobody wants|makes room for nobody",
    ),
    "who was to make room for nobody leaves": (
        _replace(Tracked, "forgive", lambda _one: None),
        "makes room for nobody",
    ),
    "never expires": (
        _replace(Tracked, "is_due", lambda _one, _now: False),
        "does not expire",
    ),
    "ignores what a request asks for": (
        _replace(Tracked, "stays_s", property(_keep_pins_only)),
        "expire|shr[au]nk",
    ),
    "keeps what an earlier request asked for": (
        _replace(Tracked, "serve", _serve_and_forget),
        "expire|shr[au]nk",
    ),
    "shrinks at each tick": (
        _replace(Scheduler, "_may_shrink", staticmethod(_shrink_again)),
        "shrank twice",
    ),
    "never shrinks": (
        _replace(Scheduler, "_may_shrink", staticmethod(lambda _one, _now: False)),
        "not shrunk",
    ),
    "a late release counts for the next worker": (
        _replace(Scheduler, "on_released", _any_generation),
        "count|busy|more than",
    ),
    "stops twice": (
        _replace(Scheduler, "_leave_if_done", staticmethod(_stop_again)),
        "stopped twice",
    ),
    "an older choice goes on": (_replace(Scheduler, "_overtake", _nothing), "two choices"),
    "serves more than there are places": (
        _replace(Tracked, "has_room_for", lambda one, _purpose: one.state is ModelState.READY),
        "more than the worker serves",
    ),
    "serves the newest first": (
        _replace(Tracked, "next_waiter", _newest_first),
        "out of order",
    ),
    "takes requests when it is closed": (
        _around("on_close", _open_again),
        "waits although it is closed",
    ),
    "time asleep counts": (
        _replace(Scheduler, "on_gap", lambda *_args: None),
        "early|cut short|linger",
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_machine_notices(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with the promise that it breaks."""
    mutate, message = MUTANTS[name]
    mutate(monkeypatch)

    with pytest.raises(AssertionError, match=message):
        run_state_machine_as_test(SchedulerMachine, settings=_SETTINGS)


def test_machine_is_content_with_the_scheduler_itself() -> None:
    """By the very same steps: what is noticed is the mutation."""
    run_state_machine_as_test(SchedulerMachine, settings=settings(_SETTINGS, max_examples=50))
