"""A world in which the scheduler lives: workers, memory and clients, and what must never happen.

It keeps its own books of all that matters and compares: nothing here believes what the scheduler
says of itself. `test_scheduler_machine` runs it over the scheduler, `test_mutations` over
schedulers with one rule broken each.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from dataclasses import dataclass, replace

from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from stoker.errors import MemoryShort, Overtaken, QueueFull, ServerOff, WorkerFailed
from stoker.lifecycle.effects import (
    Abort,
    Effect,
    Grant,
    Plan,
    Reject,
    Shrink,
    Start,
    Stop,
    Why,
)
from stoker.lifecycle.eviction import choose
from stoker.lifecycle.scheduler import Scheduler
from stoker.lifecycle.tracked import Purpose
from stoker.types import ModelId, ModelState

BUDGET = 100
SIZES = {ModelId(name): size for name, size in zip("smnlx", (30, 50, 60, 90, 120), strict=True)}
MODELS = tuple(SIZES)
ASKED_FOR = tuple(ModelId(name) for name in "ssmmnnlx")  # what never fits is rare
MAX_QUEUE = 6
KEEP_ALIVE_S = 50.0
QUANTUM_S = 30.0  # as documented; on purpose not what the code says
LINGER_S = 0.25
SERVED_WITHIN_S = 240  # whatever rivals do: the limit, two turns, and the loads between
EPSILON = 1e-6


@dataclass(frozen=True)
class _Sized:
    size: int
    context: int = 8192
    gpu_layers: int = 0
    cpu_experts: int = 0
    embedding: bool = False


@dataclass(frozen=True)
class _Asked:
    """What a ticket is for."""

    model: ModelId
    purpose: Purpose
    since: float
    keep_alive_s: float | None


@dataclass
class _Worker:
    """A real process, from its launch on."""

    size: int
    ready_at: float | None = None
    places: int = 2
    last_used: float = 0
    keep_alive_s: float | None = None  # asked for by the last request
    shrunk: bool = False


class World:
    """The runtime's part: carries out effects later, each checked against the books."""

    scheduler: Scheduler

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(max_queue=MAX_QUEUE, keep_alive_s=KEEP_ALIVE_S)
        self.now = 0.0
        self.asked: dict[int, _Asked] = {}  # by ticket, all there ever were
        self.waiting: set[int] = set()
        self.held: list[Grant] = []
        self.late: list[Grant] = []  # held when their worker ended; released some time after
        self.workers: dict[ModelId, _Worker] = {}
        self.draining: dict[ModelId, bool] = {}  # whether somebody asked for it
        self.todo: list[Plan | Start | Abort | Stop] = []
        self.pinned: set[ModelId] = set()
        self.keep_alive_s = dict.fromkeys(MODELS, KEEP_ALIVE_S)
        self.load_s: dict[ModelId, float] = {}
        self.closed = False

    # --- books -------------------------------------------------------------------------------

    def in_flight(self, model: ModelId) -> int:
        return sum(1 for grant in self.held if grant.model == model)

    def waits_for(self, model: ModelId) -> list[_Asked]:
        return [self.asked[ticket] for ticket in self.waiting if self.asked[ticket].model == model]

    def is_idle(self, model: ModelId) -> bool:
        return not self.in_flight(model) and not self.waits_for(model)

    def stays_s(self, model: ModelId) -> float:
        asked = self.workers[model].keep_alive_s
        return self.keep_alive_s[model] if asked is None else asked

    def idle_models(self) -> list[ModelId]:
        """Those that may be taken by anybody who needs memory."""
        ready = [m for m in self.workers if self.state(m) is ModelState.READY]
        return [m for m in ready if self.is_idle(m) and m not in self.pinned]

    def state(self, model: ModelId) -> ModelState:
        return self.scheduler.standing(model).state

    # --- effects -----------------------------------------------------------------------------

    def apply(
        self,
        effects: list[Effect],
        *,
        asked: Collection[ModelId] = (),
        forced: Collection[ModelId] = (),
    ) -> None:
        """``asked``: somebody wants these gone; ``forced``: whatever runs on them."""
        for effect in effects:
            match effect:
                case Grant():
                    self.on_grant(effect)
                case Reject():
                    self.on_reject(effect)
                case Start():
                    assert effect.model not in self.workers, "two workers of one model"
                    self.workers[effect.model] = _Worker(SIZES[effect.model])
                    self.todo.append(effect)
                case Stop():
                    assert effect.model in self.workers, "stopped what does not run"
                    assert effect not in self.todo, "stopped twice"
                    may_stop = effect.model in forced or not self.in_flight(effect.model)
                    assert may_stop, "stopped a busy model"
                    self.todo.append(effect)
                case Abort():
                    cancelled = [e for e in self.todo if isinstance(e, Plan | Start)]
                    assert len(cancelled) == 1, "nothing to abort"
                    self.todo.remove(cancelled[0])
                    self.todo.append(effect)
                case Plan():
                    assert not [e for e in self.todo if isinstance(e, Plan | Start)], "two loads"
                    self.check_candidates(effect)
                    self.todo.append(effect)
                case Shrink():
                    self.on_shrink(effect.model)
        self.note_leaving({e.model: e.why for e in effects if isinstance(e, Stop)}, asked)

    def on_grant(self, grant: Grant) -> None:
        assert grant.ticket in self.waiting, "answered twice"
        self.waiting.discard(grant.ticket)
        worker, asked = self.workers[grant.model], self.asked[grant.ticket]
        assert worker.ready_at is not None, "granted before the worker was ready"
        assert asked.model == grant.model, "granted another model"
        if asked.purpose is Purpose.REQUEST:
            assert self.in_flight(grant.model) < worker.places, "more than the worker serves"
            older = [
                ticket
                for ticket in self.waiting
                if ticket < grant.ticket
                and (self.asked[ticket].model, self.asked[ticket].purpose)
                == (grant.model, Purpose.REQUEST)
            ]
            assert not older, "served out of order"
        self.held.append(grant)
        worker.last_used, worker.shrunk = self.now, False
        worker.keep_alive_s = asked.keep_alive_s

    def on_reject(self, reject: Reject) -> None:
        assert reject.ticket in self.waiting, "answered twice"
        if isinstance(reject.error, QueueFull):
            assert len(self.waiting) > MAX_QUEUE, "refused although there was room"
            assert reject.error.facts["position"] == len(self.waiting), "a wrong position"
        if isinstance(reject.error, Overtaken):
            purpose = self.asked[reject.ticket].purpose
            assert purpose in {Purpose.USE, Purpose.RESTORE}, "a request was overtaken"
        self.waiting.discard(reject.ticket)

    def on_shrink(self, model: ModelId) -> None:
        worker = self.workers[model]
        assert model in self.idle_models(), "shrank a model in use"
        assert not worker.shrunk, "shrank twice"
        assert self.now - worker.last_used >= self.shrink_after(model), "shrank too early"
        worker.shrunk = True

    def check_candidates(self, plan: Plan) -> None:
        for candidate in plan.candidates:
            worker = self.workers.get(candidate.model)
            assert worker is not None, "a candidate that does not run"
            assert candidate.size_bytes == worker.size, "a wrong size"
            leaves = self.state(candidate.model) is ModelState.DRAINING
            assert leaves or candidate.model not in self.pinned, "a pinned candidate"
            busy = bool(self.in_flight(candidate.model))
            assert candidate.busy or not busy or leaves, "a busy model is called idle"

    def shrink_after(self, model: ModelId) -> float:
        stays_s = self.stays_s(model)
        return 300 if stays_s < 0 else min(300, stays_s / 2)

    # --- leaving -----------------------------------------------------------------------------

    def note_leaving(self, stopped: dict[ModelId, Why], asked: Collection[ModelId]) -> None:
        """Whoever begins to leave must have a reason for it."""
        for model in asked:
            if model in self.draining:
                self.draining[model] = True
        for model in self.workers:
            drains = self.state(model) is ModelState.DRAINING
            if not drains:
                self.draining.pop(model, None)
            elif model not in self.draining:
                self.draining[model] = model in asked
                if model not in asked:
                    self.check_leaving(model, stopped.get(model))

    def check_leaving(self, model: ModelId, why: Why | None) -> None:
        assert model not in self.pinned, "a pinned model leaves"
        worker = self.workers[model]
        idle_s = self.now - worker.last_used
        if why is Why.IDLE:
            assert self.is_idle(model), "a model in use expires"
            assert 0 <= self.stays_s(model) <= idle_s + EPSILON, "it expires too early"
        elif why is not Why.ROOM and why is not None:
            assert self.is_idle(model), "a model in use leaves"
        elif not self.turn_is_over(model):
            assert self.is_idle(model), "its turn was cut short"
            assert idle_s + EPSILON >= self.linger_s(model), "it did not linger"

    def turn_is_over(self, model: ModelId) -> bool:
        assert self.scheduler.current is not None, "it makes room for nobody"
        waiting = self.waits_for(self.scheduler.current)
        ready_at = self.workers[model].ready_at
        assert ready_at is not None
        if any(one.purpose is Purpose.USE for one in waiting):
            return True
        since = max(ready_at, min(one.since for one in waiting))
        return self.now - since + EPSILON >= QUANTUM_S

    def linger_s(self, model: ModelId) -> float:
        assert self.scheduler.current is not None
        loads = self.load_s.get(model), self.load_s.get(self.scheduler.current)
        if loads[0] is None or loads[1] is None:
            return 0.05
        return min(LINGER_S, 0.1 * (loads[0] + loads[1]))

    # --- carrying out ------------------------------------------------------------------------

    def plan(self, effect: Plan) -> None:
        free_bytes = BUDGET - sum(worker.size for worker in self.workers.values())
        need = SIZES[effect.model]

        def plan_with(extra: int, _: int) -> _Sized | None:
            return _Sized(need) if need <= free_bytes + extra else None

        choice = choose(effect.candidates, plan_with)
        if choice is None:
            error = MemoryShort("no room")
            self.apply(self.scheduler.on_failed(effect.model, error, self.now, back_off=False))
            return
        self.apply(
            self.scheduler.on_planned(
                effect.model, need, choice.victims, self.now, wait=choice.wait
            )
        )

    def finish(
        self, effect: Plan | Start | Abort | Stop, *, works: bool, load_s: float | None = None
    ) -> None:
        self.todo.remove(effect)
        model = effect.model
        if isinstance(effect, Plan):
            self.plan(effect)
        elif isinstance(effect, Start) and works:
            worker = self.workers[model]
            worker.ready_at = worker.last_used = self.now
            if load_s is not None:
                self.load_s[model] = load_s
            self.apply(self.scheduler.on_ready(model, worker.places, self.now, load_s))
        elif isinstance(effect, Start):
            self.lose(model)
            self.apply(self.scheduler.on_failed(model, WorkerFailed("x"), self.now))
        else:
            self.lose(model)
            self.apply(self.scheduler.on_exited(model, None, self.now))

    def lose(self, model: ModelId) -> None:
        """Its process is gone."""
        self.workers.pop(model, None)
        self.draining.pop(model, None)
        self.todo = [effect for effect in self.todo if effect != Stop(model)]
        self.late += [grant for grant in self.held if grant.model == model]
        self.held = [grant for grant in self.held if grant.model != model]

    def ask(self, model: ModelId, purpose: Purpose, keep_alive_s: float | None = None) -> int:
        ticket = len(self.asked) + 1
        self.asked[ticket] = _Asked(model, purpose, self.now, keep_alive_s)
        self.waiting.add(ticket)
        self.apply(
            self.scheduler.on_request(ticket, model, self.now, purpose, keep_alive_s=keep_alive_s)
        )
        return ticket

    def end(self, grant: Grant) -> None:
        self.held.remove(grant)
        self.workers[grant.model].last_used = self.now
        self.apply(self.scheduler.on_released(grant.model, grant.generation, self.now))

    def pass_time(self, seconds: float) -> None:
        """A tick of the daemon's clock."""
        self.now += seconds
        self.apply(self.scheduler.on_tick(self.now))
        self.check_clock()
        for model in self.idle_models():
            idle_s = self.now - self.workers[model].last_used
            assert not 0 <= self.stays_s(model) <= idle_s, "it does not expire"
            assert self.workers[model].shrunk or idle_s < self.shrink_after(model), "not shrunk"

    def wake(self) -> None:
        self.apply(self.scheduler.on_wake(self.now))
        self.check_clock()

    def check_clock(self) -> None:
        """A timer that is armed for the past would spin."""
        wake_at = self.scheduler.wake_at
        assert wake_at is None or wake_at > self.now, "woken for ever"

    # --- how it ends -------------------------------------------------------------------------

    def serve_against_rivals(self) -> None:
        """Who waits longest is answered in time, whatever clients of other models do."""
        if not self.waiting:
            return
        ticket = min(self.waiting, key=lambda ticket: self.asked[ticket].since)
        poor = self.asked[ticket].model
        for model in MODELS:
            self.pinned.discard(model)
            self.scheduler.keep(model, pinned=False, priority=-10 if model == poor else 10)
        begun = self.now
        while ticket in self.waiting:
            assert self.now - begun < SERVED_WITHIN_S, "starved"
            for rival in (ModelId("m"), ModelId("n"), ModelId("l")):
                wanted = self.in_flight(rival) + len(self.waits_for(rival)) < 2
                if rival != poor and wanted and len(self.waiting) < MAX_QUEUE:
                    self.ask(rival, Purpose.REQUEST)
            self.live_a_second()

    def live_a_second(self) -> None:
        """One effect comes back, or else the oldest request ends."""
        if self.todo:
            self.finish(self.todo[0], works=True, load_s=1)
        elif self.held:
            self.end(self.held[0])
        self.now += 0.5
        if int(self.now * 2) % 10 == 0:
            self.pass_time(0.5)
        else:
            self.now += 0.5
            wake_at = self.scheduler.wake_at
            if wake_at is not None and wake_at <= self.now:
                self.wake()

    def serve_all(self) -> None:
        """When requests end and effects come back, every waiter is granted or rejected."""
        for _ in range(500):
            if not self.waiting:
                return
            self.live_a_second()
        raise AssertionError("never answered")

    def end_all(self) -> None:
        """When the server is switched off and its requests have ended, no worker is left."""
        self.apply(self.scheduler.on_close(ServerOff("off"), self.now), asked=MODELS)
        for _ in range(100):
            if not self.todo and not self.held:
                break
            self.live_a_second()
        assert not self.workers, "a worker was left"


class SchedulerMachine(World, RuleBasedStateMachine):
    """Any order of requests, cancels, crashes, wishes, and effects that come back late or never."""

    @rule(
        model=st.sampled_from(ASKED_FOR),
        purpose=st.sampled_from(Purpose),
        keep_alive_s=st.sampled_from((None, None, None, None, 0.0, 20.0, -1.0)),
    )
    def request(self, model: ModelId, purpose: Purpose, keep_alive_s: float | None) -> None:
        self.ask(model, purpose, keep_alive_s)

    @rule(model=st.sampled_from(ASKED_FOR), count=st.integers(2, 4))
    def burst(self, model: ModelId, count: int) -> None:
        for _ in range(count):
            self.ask(model, Purpose.REQUEST)

    @initialize(first=st.sampled_from(MODELS), second=st.sampled_from(MODELS), stay=st.booleans())
    def begin(self, first: ModelId, second: ModelId, *, stay: bool) -> None:
        """Nothing much happens where nothing is loaded."""
        self.visit(first, stays=False)
        self.visit(second, stays=stay)

    @rule(model=st.sampled_from(ASKED_FOR), stays=st.booleans())
    def visit(self, model: ModelId, *, stays: bool) -> None:
        """A request that is served at once, if nothing is in its way."""
        ticket = self.ask(model, Purpose.REQUEST)
        self.settle()
        for grant in [grant for grant in self.held if grant.ticket == ticket and not stays]:
            self.end(grant)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(sorted(self.waiting)))
        self.waiting.discard(ticket)
        self.apply(self.scheduler.on_cancelled(ticket, self.now))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.end(data.draw(st.sampled_from(self.held)))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release_all_of_one(self, data: st.DataObject) -> None:
        model = data.draw(st.sampled_from(self.held)).model
        for grant in [grant for grant in self.held if grant.model == model]:
            self.end(grant)

    @precondition(lambda self: self.late)
    @rule(data=st.data())
    def release_late(self, data: st.DataObject) -> None:
        grant = data.draw(st.sampled_from(self.late))
        self.late.remove(grant)
        self.apply(self.scheduler.on_released(grant.model, grant.generation, self.now))

    @precondition(lambda self: self.todo)
    @rule(
        data=st.data(),
        works=st.sampled_from((True, True, True, False)),
        seconds=st.sampled_from((0.0, 0.04, 0.5)),
        load_s=st.sampled_from((None, 0.5, 4.0)),
    )
    def effect_ends(
        self, data: st.DataObject, *, works: bool, seconds: float, load_s: float | None
    ) -> None:
        self.now += seconds
        self.finish(data.draw(st.sampled_from(self.todo)), works=works, load_s=load_s)

    @precondition(lambda self: self.todo)
    @rule()
    def settle(self) -> None:
        for _ in range(20):
            if self.todo:
                self.finish(self.todo[0], works=True, load_s=1)

    @rule(seconds=st.sampled_from((0.5, 5.0, 31.0)))
    def tick(self, seconds: float) -> None:
        self.pass_time(seconds)

    @rule(seconds=st.sampled_from((1.0, 12.0, 40.0)), times=st.integers(2, 4))
    def rest(self, seconds: float, times: int) -> None:
        for _ in range(times):
            self.pass_time(seconds)

    @precondition(lambda self: self.scheduler.wake_at is not None)
    @rule(late_s=st.sampled_from((0.0, 0.01, 1.0)))
    def wake_in_time(self, late_s: float) -> None:
        wake_at = self.scheduler.wake_at
        assert wake_at is not None
        self.now = max(self.now, wake_at + late_s)
        self.wake()

    @rule(seconds=st.sampled_from((0.0, 0.02)))
    def wake_for_nothing(self, seconds: float) -> None:
        self.now += seconds
        self.wake()

    @precondition(lambda self: self.crashable())
    @rule(data=st.data(), mishap=st.sampled_from(("crash", "suspect", "hang")))
    def mishap(self, data: st.DataObject, mishap: str) -> None:
        """One rule for all that ends a worker: else none would live for long."""
        model = data.draw(st.sampled_from(self.crashable()))
        held = [grant for grant in self.held if grant.model == model]
        if mishap == "crash":
            self.lose(model)
            self.apply(self.scheduler.on_exited(model, WorkerFailed("x"), self.now))
        elif mishap == "hang":
            self.apply(self.scheduler.on_hung(model, self.now), asked={model}, forced={model})
        elif held:
            effects = self.scheduler.on_suspect(model, held[0].generation, self.now)
            self.apply(effects, asked={model})

    @precondition(lambda self: self.crashable())
    @rule(data=st.data(), places=st.integers(1, 4))
    def renew(self, data: st.DataObject, places: int) -> None:
        model = data.draw(st.sampled_from(self.crashable()))
        self.workers[model].places = places
        self.apply(self.scheduler.on_renewed(model, SIZES[model], places, self.now))

    @rule(
        model=st.sampled_from(MODELS),
        pinned=st.sampled_from((None, False, False, True)),
        priority=st.sampled_from((None, -1, 0, 5)),
        keep_alive_s=st.sampled_from((None, None, None, 0.0, 10.0, 90.0, -1.0)),
    )
    def keep(
        self,
        model: ModelId,
        pinned: bool | None,  # noqa: FBT001  # a rule's arguments are given by name
        priority: int | None,
        keep_alive_s: float | None,
    ) -> None:
        if pinned is not None:
            (self.pinned.add if pinned else self.pinned.discard)(model)
        if keep_alive_s is not None:
            self.keep_alive_s[model] = keep_alive_s
        self.scheduler.keep(model, pinned=pinned, priority=priority, keep_alive_s=keep_alive_s)

    @precondition(lambda self: self.workers)
    @rule(data=st.data())
    def pin(self, data: st.DataObject) -> None:
        model = data.draw(st.sampled_from(list(self.workers)))
        self.pinned.add(model)
        self.scheduler.keep(model, pinned=True)

    @precondition(lambda self: self.pinned)
    @rule()
    def unpin(self) -> None:
        for model in self.pinned:
            self.scheduler.keep(model, pinned=False)
        self.pinned.clear()

    @rule(
        data=st.data(),
        order=st.sampled_from(
            ("unload", "unload", "force", "overdue", "free", "free", "close", "cut")
        ),
    )
    def order(self, data: st.DataObject, order: str) -> None:
        """What the user wants gone."""
        if order in {"unload", "force"}:
            model, force = data.draw(st.sampled_from(MODELS)), order == "force"
            effects = self.scheduler.on_unload(model, self.now, force=force)
            self.apply(effects, asked={model}, forced={model} if force else ())
        elif order == "overdue":
            model = data.draw(st.sampled_from(MODELS))
            effects = self.scheduler.on_overdue(model, self.now)
            assert not [effect for effect in effects if isinstance(effect, Reject)], "sent away"
            self.apply(effects, asked={model}, forced={model})
        elif order == "free":
            self.apply(self.scheduler.on_free(self.now))
            assert not self.idle_models(), "not all was freed"
        elif order == "close" or self.closed:
            self.closed = True
            self.apply(self.scheduler.on_close(ServerOff("off"), self.now), asked=MODELS)
            if order == "cut":
                effects = self.scheduler.on_cut(self.now)
                self.apply(effects, asked=MODELS, forced=MODELS)

    @rule(need=st.sampled_from((1, 40, 70, 200)))
    def pressure(self, need: int) -> None:
        self.apply(self.scheduler.on_pressure(need, self.now))
        going = [effect.model for effect in self.todo if isinstance(effect, Stop)]
        freed = sum(self.workers[model].size for model in going)
        assert freed >= need or not self.idle_models(), "not enough was freed"

    @rule(seconds=st.sampled_from((10.0, 1000.0)))
    def sleep(self, seconds: float) -> None:
        """The machine is suspended."""
        self.now += seconds
        self.scheduler.on_gap(seconds, self.now)
        for worker in self.workers.values():
            worker.last_used += seconds
            if worker.ready_at is not None:
                worker.ready_at += seconds
        for ticket in self.waiting:
            one = self.asked[ticket]
            self.asked[ticket] = replace(one, since=one.since + seconds)

    @precondition(lambda self: self.closed)
    @rule()
    def open(self) -> None:
        self.closed = False
        self.scheduler.on_open()

    def crashable(self) -> list[ModelId]:
        return [model for model, worker in self.workers.items() if worker.ready_at is not None]

    # --- the promises ------------------------------------------------------------------------

    @invariant()
    def memory_is_never_overcommitted(self) -> None:
        """Workers that are being launched, or stopped, count in full."""
        taken = sum(worker.size for worker in self.workers.values())
        assert taken <= BUDGET, "too much memory"

    @invariant()
    def counts_are_right(self) -> None:
        assert self.scheduler.in_flight == len(self.held), "a wrong count"
        assert self.scheduler.queued == len(self.waiting), "a wrong count"
        assert len(self.waiting) <= MAX_QUEUE, "too many wait"

    @invariant()
    def only_the_newest_choice_waits(self) -> None:
        asked = [self.asked[ticket] for ticket in self.waiting]
        chosen = {one.model for one in asked if one.purpose is Purpose.USE}
        assert len(chosen) <= 1, "two choices"

    @invariant()
    def nobody_waits_for_what_is_closed(self) -> None:
        assert not (self.closed and self.waiting), "waits although it is closed"

    @invariant()
    def somebody_works_for_those_who_wait(self) -> None:
        """An effect is under way, a request will end, or a timer is armed."""
        if self.waiting and not self.todo and not self.held:
            assert self.scheduler.wake_at is not None, "forgotten"

    @invariant()
    def nobody_is_woken_too_late(self) -> None:
        wake_at = self.scheduler.wake_at
        assert wake_at is None or wake_at <= self.now + QUANTUM_S + EPSILON, "woken too late"

    @invariant()
    def nobody_waits_beside_a_free_place(self) -> None:
        for model, worker in self.workers.items():
            waiting = self.waits_for(model)
            if self.state(model) is ModelState.READY and waiting:
                assert self.in_flight(model) >= worker.places, "a place is free"
                assert {one.purpose for one in waiting} == {Purpose.REQUEST}, "needs no place"

    @invariant()
    def what_is_loaded_is_wanted(self) -> None:
        for effect in self.todo:
            if isinstance(effect, Plan | Start):
                assert self.waits_for(effect.model), "nobody wants this load"

    @invariant()
    def who_makes_room_makes_it_for_somebody(self) -> None:
        """Idle ones are stopped at once; busy ones serve on when nobody needs their room."""
        for model, asked in self.draining.items():
            if not asked and Stop(model) not in self.todo:
                assert self.scheduler.current is not None, "it makes room for nobody"

    @invariant()
    def everybody_has_a_place_in_the_queue(self) -> None:
        seen = [self.scheduler.waiting(ticket, self.now) for ticket in self.waiting]
        places = sorted(one.position for one in seen if one is not None)
        assert places == list(range(1, len(self.waiting) + 1)), "a wrong position"

    def teardown(self) -> None:
        if sys.exc_info()[0] is not None:  # a step failed: that is the news
            return
        self.serve_against_rivals()
        self.serve_all()
        self.end_all()
