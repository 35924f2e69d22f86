"""Any order of requests, cancels, crashes, ticks and slow effects keeps the promises."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from stoker.errors import MemoryShort, ServerOff, WorkerFailed
from stoker.lifecycle.effects import Abort, Effect, Grant, Plan, Reject, Start, Stop
from stoker.lifecycle.eviction import choose
from stoker.lifecycle.scheduler import Scheduler
from stoker.lifecycle.tracked import Purpose
from stoker.types import ModelId, ModelState

BUDGET = 100
SIZES = {ModelId("s"): 30, ModelId("m"): 50, ModelId("l"): 90, ModelId("xl"): 120}
MODELS = tuple(SIZES)


@dataclass(frozen=True)
class _Sized:
    size: int
    context: int = 8192


class SchedulerMachine(RuleBasedStateMachine):
    """Plays the runtime: carries out effects later, in any order, checking each against reality."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(max_queue=6, keep_alive_s=50)
        self.now = 0.0
        self.tickets = 0
        self.waiting: set[int] = set()
        self.held: list[Grant] = []
        self.late: list[Grant] = []  # held when their worker ended; released some time after
        self.workers: dict[ModelId, int] = {}  # real processes, launching ones included
        self.todo: list[Plan | Start | Abort | Stop] = []
        self.forced: set[ModelId] = set()
        self.closed = False
        self.purposes: dict[int, tuple[ModelId, Purpose]] = {}  # by ticket

    # --- the runtime -------------------------------------------------------------------------

    def apply(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Grant():
                    assert effect.ticket in self.waiting
                    assert effect.model in self.workers
                    self.waiting.discard(effect.ticket)
                    self.held.append(effect)
                case Reject():
                    assert effect.ticket in self.waiting
                    self.waiting.discard(effect.ticket)
                case Start():
                    assert effect.model not in self.workers, "two workers of one model"
                    self.workers[effect.model] = SIZES[effect.model]
                    self.todo.append(effect)
                case Stop():
                    assert effect.model in self.workers
                    assert effect.model in self.forced or not self.in_flight(effect.model), "busy"
                    self.todo.append(effect)
                case Abort():
                    cancelled = [e for e in self.todo if isinstance(e, Plan | Start)]
                    assert len(cancelled) == 1, "nothing to abort"
                    self.todo.remove(cancelled[0])
                    self.todo.append(effect)
                case Plan():
                    assert not [e for e in self.todo if isinstance(e, Plan | Start)], "two loads"
                    self.todo.append(effect)

    def in_flight(self, model: ModelId) -> int:
        return sum(1 for grant in self.held if grant.model == model)

    def plan(self, effect: Plan) -> None:
        free = BUDGET - sum(self.workers.values())
        need = SIZES[effect.model]

        def plan_with(extra: int) -> _Sized | None:
            return _Sized(need) if need <= free + extra else None

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

    def finish(self, effect: Plan | Start | Abort | Stop, *, works: bool) -> None:
        self.todo.remove(effect)
        model = effect.model
        if isinstance(effect, Plan):
            self.plan(effect)
        elif isinstance(effect, Start) and works:
            self.apply(self.scheduler.on_ready(model, 2, self.now))
        elif isinstance(effect, Start):
            del self.workers[model]
            self.apply(self.scheduler.on_failed(model, WorkerFailed("x"), self.now))
        else:
            self.workers.pop(model, None)
            self.forget_worker(model)
            self.apply(self.scheduler.on_exited(model, None, self.now))

    def forget_worker(self, model: ModelId) -> None:
        self.late += [grant for grant in self.held if grant.model == model]
        self.held = [grant for grant in self.held if grant.model != model]
        self.forced.discard(model)

    # --- what may happen ---------------------------------------------------------------------

    @rule(model=st.sampled_from(MODELS), purpose=st.sampled_from(Purpose))
    def request(self, model: ModelId, purpose: Purpose) -> None:
        self.tickets += 1
        self.waiting.add(self.tickets)
        self.purposes[self.tickets] = model, purpose
        self.apply(self.scheduler.on_request(self.tickets, model, self.now, purpose))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(sorted(self.waiting)))
        self.waiting.discard(ticket)
        self.apply(self.scheduler.on_cancelled(ticket, self.now))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        grant = data.draw(st.sampled_from(self.held))
        self.held.remove(grant)
        self.apply(self.scheduler.on_released(grant.model, grant.generation, self.now))

    @precondition(lambda self: self.late)
    @rule(data=st.data())
    def release_late(self, data: st.DataObject) -> None:
        grant = data.draw(st.sampled_from(self.late))
        self.late.remove(grant)
        self.apply(self.scheduler.on_released(grant.model, grant.generation, self.now))

    @precondition(lambda self: self.todo)
    @rule(data=st.data(), works=st.booleans())
    def effect_ends(self, data: st.DataObject, *, works: bool) -> None:
        self.finish(data.draw(st.sampled_from(self.todo)), works=works)

    @rule(seconds=st.sampled_from((0.5, 5.0, 40.0)))
    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.apply(self.scheduler.on_tick(self.now))

    @precondition(lambda self: self.crashable())
    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        model = data.draw(st.sampled_from(self.crashable()))
        del self.workers[model]
        self.todo = [e for e in self.todo if e != Stop(model)]
        self.forget_worker(model)
        self.apply(self.scheduler.on_exited(model, WorkerFailed("x"), self.now))

    @rule(model=st.sampled_from(MODELS), force=st.booleans())
    def unload(self, model: ModelId, *, force: bool) -> None:
        if force:
            self.forced.add(model)
        self.apply(self.scheduler.on_unload(model, self.now, force=force))
        self.forced.discard(model)

    @rule()
    def free(self) -> None:
        self.apply(self.scheduler.on_free(self.now))

    @rule()
    def close(self) -> None:
        self.closed = True
        self.apply(self.scheduler.on_close(ServerOff("off"), self.now))

    @precondition(lambda self: self.closed)
    @rule()
    def cut(self) -> None:
        self.forced.update(MODELS)
        self.apply(self.scheduler.on_cut(self.now))
        self.forced.clear()

    @precondition(lambda self: self.closed)
    @rule()
    def open(self) -> None:
        self.closed = False
        self.scheduler.on_open()

    def crashable(self) -> list[ModelId]:
        loaded = (ModelState.READY, ModelState.DRAINING)
        return [m for m in self.workers if self.scheduler.standing(m).state in loaded]

    # --- the promises ------------------------------------------------------------------------

    @invariant()
    def memory_is_never_overcommitted(self) -> None:
        assert sum(self.workers.values()) <= BUDGET

    @invariant()
    def counts_are_right(self) -> None:
        assert self.scheduler.in_flight == len(self.held)
        assert self.scheduler.queued == len(self.waiting)

    @invariant()
    def only_the_newest_choice_waits(self) -> None:
        asked = [self.purposes[ticket] for ticket in self.waiting]
        assert len({model for model, purpose in asked if purpose is Purpose.USE}) <= 1

    @invariant()
    def nobody_waits_for_what_is_closed(self) -> None:
        assert not (self.closed and self.waiting)

    @invariant()
    def somebody_works_for_those_who_wait(self) -> None:
        """No waiter is forgotten: there is an effect under way, or a request that will end."""
        if self.waiting and not self.todo:
            assert self.held

    def teardown(self) -> None:
        """When requests end and effects come back, every waiter is granted or rejected."""
        for _ in range(500):
            if not self.waiting:
                break
            self.now += 1
            if self.todo:
                self.finish(self.todo[0], works=True)
            elif self.held:
                grant = self.held.pop(0)
                self.apply(self.scheduler.on_released(grant.model, grant.generation, self.now))
            else:
                self.apply(self.scheduler.on_tick(self.now))
        assert not self.waiting


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
