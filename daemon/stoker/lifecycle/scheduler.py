"""Decides loads, evictions and queueing: an event in, a list of effects out. Pure.

No I/O, no clock, no logging: the runtime (`runtime`) tells the time, carries out the effects and
reports what came of them. One model is loaded at a time. A request goes through these steps:

1. nothing is served (the server is off, the daemon is stopping), or the model failed a moment
   ago: rejected
2. the model is ready and has a free place (`Purpose` says who needs one): granted
3. too many wait already: rejected
4. it waits. When its model is the next to load (`queueing` knows): plan, evict what is idle and
   does not linger, start. When only busy models could make room, wait for them, and after a
   quantum let them take no new requests. While the first in the queue waits so, others that fit
   without anybody leaving are loaded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final

from stoker.errors import CapacityError, Overtaken, QueueFull, StokerError
from stoker.lifecycle import eviction, queueing
from stoker.lifecycle.effects import (
    Abort,
    Effect,
    Grant,
    Plan,
    Reject,
    Shrink,
    Standing,
    Start,
    Stop,
    Waiting,
    Why,
)
from stoker.lifecycle.eviction import Candidate
from stoker.lifecycle.roster import Roster
from stoker.lifecycle.tracked import Purpose, Tracked, Waiter
from stoker.types import ModelId, ModelState

_BACKOFF_S: Final = (0.0, 1.0, 2.0, 4.0, 8.0, 15.0)  # after so many failures in a row


class Scheduler:
    """See the module. Methods named ``on_…`` take an event and return what must be done."""

    def __init__(self, *, max_queue: int, keep_alive_s: float) -> None:
        self._max_queue = max_queue
        self._keep_alive_s = keep_alive_s
        self._models = Roster(keep_alive_s)
        self._current: Tracked | None = None  # being planned, made room for, or launched
        self._working = False  # a Plan or a Start of the current model is out
        self._aborting = False
        self._awaited: set[ModelId] = set()  # must exit before the current model is planned again
        self._wake_at: float | None = None
        self._closed: StokerError | None = None  # why nothing is served at all

    # --- questions ---------------------------------------------------------------------------

    def standing(self, model: ModelId) -> Standing:
        one = self._models.get(model)
        return Standing(keep_alive_s=self._keep_alive_s) if one is None else one.standing()

    def known(self) -> tuple[ModelId, ...]:
        return tuple(one.id for one in self._models)

    @property
    def current(self) -> ModelId | None:
        """The model that is being planned, made room for, launched or aborted."""
        return self._current.id if self._current is not None else None

    @property
    def queued(self) -> int:
        return self._models.queued

    @property
    def in_flight(self) -> int:
        return sum(one.in_flight for one in self._models)

    @property
    def wake_at(self) -> float | None:
        """When `on_wake` has something to decide, if nothing else happens before."""
        return self._wake_at if self._current is None else None

    def candidates(self, now: float) -> tuple[Candidate, ...]:
        """The loaded models that may leave for another one, in the order in which they would."""
        return self._models.candidates(now)

    def expected_load_s(self, model: ModelId) -> float | None:
        """How long it takes to load, about; None when that was never measured."""
        return self._models.load_s.get(model)

    def loading_s(self, model: ModelId, now: float) -> float | None:
        """How long it has been loading; None when it is not."""
        return self._models.loading_s(model, now)

    def waiting(self, ticket: int, now: float) -> Waiting | None:
        """Where a request stands; None when it does not wait."""
        return self._models.waiting(ticket, self._current, self._awaited, now)

    # --- requests ----------------------------------------------------------------------------

    def on_request(
        self,
        ticket: int,
        model: ModelId,
        now: float,
        purpose: Purpose = Purpose.REQUEST,
        *,
        keep_alive_s: float | None = None,
    ) -> list[Effect]:
        """Somebody needs the model; the ticket is granted or rejected, now or later.

        The newest `USE` wins: whoever waits for an older choice of the user is rejected.
        ``keep_alive_s`` holds from the grant to the next one, which names another or none.
        """
        one = self._models[model]
        if self._closed is not None:
            return [Reject(ticket, self._closed)]
        if one.error is not None and now < one.retry_at:
            return [Reject(ticket, one.error)]
        has_room = one.has_room_for(purpose)
        waiter = Waiter(ticket, now, purpose, keep_alive_s)
        if has_room and purpose is Purpose.REQUEST:  # nearly always; nobody else is concerned
            return self._grant(one, waiter, now)
        if self.queued >= self._max_queue and not has_room:
            return [Reject(ticket, self._full(one, now))]
        one.waiters.append(waiter)
        effects = self._overtake(one) if purpose is Purpose.USE else []
        return effects + self._advance(now)

    def on_cancelled(self, ticket: int, now: float) -> list[Effect]:
        """Nobody waits for this ticket any more; a granted one is released instead."""
        for one in self._models:
            kept = deque(waiter for waiter in one.waiters if waiter.ticket != ticket)
            if len(kept) != len(one.waiters):
                one.waiters = kept
                return self._drop_unwanted(one) + self._advance(now)
        return []

    def on_released(self, model: ModelId, generation: int, now: float) -> list[Effect]:
        one = self._models[model]
        if generation != one.generation or not one.in_flight:
            return []
        one.in_flight -= 1
        one.last_used = now
        one.failures = 0
        effects = self._leave_if_done(one) + self._advance(now) + self._part_if_idle(one)
        return effects + (self._make_leave(one, Why.IDLE) if one.is_due(now) else [])

    def on_suspect(self, model: ModelId, generation: int, now: float) -> list[Effect]:
        """The worker broke a connection: it takes no new requests and leaves when it is idle."""
        one = self._models[model]
        if generation == one.generation and one.loaded:
            one.state, one.leaving = ModelState.DRAINING, Why.BROKEN
        return self._leave_if_done(one) + self._advance(now)

    def on_hung(self, model: ModelId, now: float) -> list[Effect]:
        """The worker does nothing any more: it is stopped, whatever it should have been doing."""
        one = self._models[model]
        if not one.loaded:
            return []
        return self._make_leave(one, Why.BROKEN, force=True) + self._advance(now)

    # --- what came of effects ----------------------------------------------------------------

    def on_planned(
        self, model: ModelId, size_bytes: int, victims: Sequence[ModelId], now: float, *, wait: bool
    ) -> list[Effect]:
        """``victims`` must go first; with ``wait`` some of them are busy."""
        one = self._current
        if one is None or one.id != model or self._aborting:
            return []
        self._working = False
        if not victims:
            one.size_bytes = size_bytes
            one.state = ModelState.LOADING
            self._working = True
            return [Start(model)]
        if not wait and self._models.line(now)[0] is one:
            others = [self._models[victim] for victim in victims]
            if not all(other.may_go for other in others):
                if now < queueing.yield_at(one, others):
                    return [self._plan(one, now)]  # one of them got a request meanwhile
            elif now >= self._models.linger_until(one, victims):
                one.state = ModelState.LOADING
                return self._make_room(one, victims, now)
        one.state = ModelState.UNLOADED
        one.blockers = tuple(victims)
        self._done_with_current()
        return self._advance(now)

    def on_ready(
        self, model: ModelId, places: int, now: float, load_s: float | None = None
    ) -> list[Effect]:
        """The worker serves; ``load_s`` is how long it took, planning and evictions included."""
        one = self._models[model]
        if one is not self._current or self._aborting:
            return []
        if load_s is not None:
            self._models.load_s[model] = load_s
        one.arrive(places, now)
        self._done_with_current()
        return self._advance(now)

    def on_renewed(self, model: ModelId, size_bytes: int, places: int, now: float) -> list[Effect]:
        """Another worker took over; requests on the one before count until they are released."""
        one = self._models[model]
        one.size_bytes, one.places = size_bytes, max(1, places)
        return self._advance(now)

    def on_failed(
        self, model: ModelId, error: StokerError, now: float, *, back_off: bool = True
    ) -> list[Effect]:
        """Planning or launching failed; nothing of it is left. All who wait learn why."""
        one = self._models[model]
        if one is not self._current:
            return []
        self._note_failure(one, error, now, back_off=back_off)
        self._done_with_current()
        self._look_again()
        return self._reject_all(one, error) + self._advance(now)

    def on_exited(self, model: ModelId, error: StokerError | None, now: float) -> list[Effect]:
        """The worker, or the aborted load, is gone. ``error`` when it ended on its own."""
        one = self._models[model]
        if one is self._current:
            self._done_with_current()
        one.vanish()
        effects: list[Effect] = []
        if error is not None:
            self._note_failure(one, error, now)
            if now < one.retry_at:
                effects = self._reject_all(one, error)
        self._look_again()
        self._awaited.discard(model)
        if self._current is not None and not self._working and not self._awaited:
            effects.append(self._plan(self._current, now))
        return effects + self._advance(now)

    # --- wishes ------------------------------------------------------------------------------

    def keep(
        self,
        model: ModelId,
        *,
        keep_alive_s: float | None = None,
        pinned: bool | None = None,
        priority: int | None = None,
    ) -> None:
        """What holds for the model when a request says nothing else; None: as it is.

        How long it stays when idle (-1: for ever), whether it may be evicted (one that is already
        leaving leaves), and how early it is loaded when others wait as well (the highest first).
        """
        one = self._models[model]
        if keep_alive_s is not None:
            one.keep_alive_s = keep_alive_s
        if pinned is not None:
            one.pinned = pinned
        if priority is not None:
            one.priority = priority

    def recall_load_s(self, model: ModelId, seconds: float) -> None:
        """How long it took to load before this daemon started."""
        self._models.load_s.setdefault(model, seconds)

    def on_unload(self, model: ModelId, now: float, *, force: bool = False) -> list[Effect]:
        """Stop the model when its requests have ended; with ``force`` at once."""
        return self._unload(self._models[model], Why.UNLOAD, force=force) + self._advance(now)

    def on_overdue(self, model: ModelId, now: float) -> list[Effect]:
        """After `on_unload`: its requests had their time. Who came since gets the next worker."""
        one = self._models[model]
        leave = self._make_leave(one, Why.UNLOAD, force=True) if one.loaded else []
        return leave + self._advance(now)

    def on_tick(self, now: float) -> list[Effect]:
        """Unload, or shrink, what has been idle for its time; look again whether there is room."""
        effects: list[Effect] = []
        for one in self._models:
            if one.is_due(now):
                effects += self._make_leave(one, Why.IDLE)
        self._look_again()  # other programs may have freed memory
        effects += self._advance(now)
        for one in self._models:
            if self._may_shrink(one, now):
                one.shrunk = True
                effects.append(Shrink(one.id))
        return effects

    def on_wake(self, now: float) -> list[Effect]:
        """It is `wake_at`, or any other time: nothing is done twice."""
        return self._advance(now)

    def on_free(self, now: float) -> list[Effect]:
        """Unload what is idle and not pinned; nothing that runs or waits is touched."""
        effects: list[Effect] = []
        for one in self._models:
            if one.idle and not one.pinned:
                effects += self._make_leave(one, Why.FREE)
        return effects + self._advance(now)

    def on_pressure(self, need_bytes: int, now: float) -> list[Effect]:
        """Other programs need so much memory: idle models leave, the cheapest first.

        What is leaving already counts. Nothing that runs, waits or is pinned is touched.
        """
        gone = sum(one.size_bytes for one in self._models if one.stopping)
        idle = [other for other in self._models.candidates(now) if not other.busy]
        still = [other for other in idle if not self._models[other.model].stopping]
        effects: list[Effect] = []
        for victim in eviction.relieve(still, need_bytes - gone):
            effects += self._make_leave(self._models[victim], Why.PRESSURE)
        return effects + self._advance(now)

    def on_gap(self, seconds: float, now: float) -> None:
        """The machine slept for so long: nobody was idle, and nobody waited, meanwhile."""
        for one in self._models:
            one.skip(seconds, now)

    def on_close(self, reason: StokerError, now: float) -> list[Effect]:
        """Take no requests any more, for this reason; stop each model when its requests ended."""
        self._closed = reason
        effects: list[Effect] = []
        for one in self._models:
            effects += self._reject_all(one, reason)
        for one in self._models:
            effects += self._unload(one, Why.CLOSED)
        return effects + self._advance(now)

    def on_cut(self, now: float) -> list[Effect]:
        """After `on_close`: running requests had their time, all models are stopped at once."""
        effects: list[Effect] = []
        for one in self._models:
            effects += self._unload(one, Why.CLOSED, force=True)
        return effects + self._advance(now)

    def on_open(self) -> None:
        """Take requests again."""
        self._closed = None

    # --- requests, inside --------------------------------------------------------------------

    def _full(self, one: Tracked, now: float) -> QueueFull:
        coming = [] if one.loaded else [one]
        if self._current is not None and self._current is not one:
            coming.append(self._current)
        loads = [self._models.load_left_s(other.id, now) for other in coming]
        queued = self.queued
        return QueueFull(
            f"{queued} requests are waiting already",
            queued=queued,
            limit=self._max_queue,
            position=queued + 1,
            retry_after_s=queueing.retry_after_s(loads, queued, one.places),
        )

    def _grant(self, one: Tracked, waiter: Waiter, now: float) -> list[Effect]:
        one.serve(waiter, now)
        granted: list[Effect] = [Grant(waiter.ticket, one.id, one.generation)]
        if waiter.purpose is not Purpose.REQUEST:
            one.parting = False
        return granted + (self._dismiss_others(one) if waiter.purpose is Purpose.USE else [])

    def _overtake(self, chosen: Tracked) -> list[Effect]:
        """The user chose this model: what was chosen before and is not there yet is void."""
        effects: list[Effect] = []
        for one in self._models:
            void = [waiter for waiter in one.waiters if waiter.is_choice]
            if one is not chosen and void:
                one.waiters = deque(waiter for waiter in one.waiters if not waiter.is_choice)
                message = f"{chosen.id} was chosen before {one.id} was ready"
                error = Overtaken(message, hint=f"To change back: stoker use {one.id}")
                effects += [Reject(waiter.ticket, error) for waiter in void]
                effects += self._drop_unwanted(one)
        return effects

    def _reject_all(self, one: Tracked, error: StokerError) -> list[Effect]:
        rejected: list[Effect] = [Reject(waiter.ticket, error) for waiter in one.waiters]
        one.waiters.clear()
        return rejected

    def _note_failure(
        self, one: Tracked, error: StokerError, now: float, *, back_off: bool = True
    ) -> None:
        wait_s = _BACKOFF_S[min(one.failures, len(_BACKOFF_S) - 1)] if back_off else 0.0
        one.fail(error, now + wait_s, counts=back_off)

    # --- loads, inside -----------------------------------------------------------------------

    def _advance(self, now: float) -> list[Effect]:
        """Grant what can be granted; when no load is on its way, begin the next."""
        effects: list[Effect] = []
        for one in self._models:
            while (waiter := one.next_waiter()) is not None:
                effects += self._grant(one, waiter, now)
        if self._current is None:
            effects += self._begin_next(now)
        return effects

    def _begin_next(self, now: float) -> list[Effect]:
        self._wake_at = None
        line = self._models.line(now)
        if not line:
            return []
        first = line[0]
        blocked = any(not one.may_go for one in self._models.blockers(first))
        if effects := self._push(first, now):
            return effects
        if blocked and queueing.may_pass(first, now):
            for one in line[1:]:
                if not one.blockers or one.look_again:
                    return self._begin(one, now)
        return []

    def _push(self, first: Tracked, now: float) -> list[Effect]:
        """Load the first in the line; nothing, when it must wait for others until `wake_at`."""
        blockers = self._models.blockers(first)
        idle = all(one.may_go for one in blockers)
        wait_until = (
            self._models.linger_until(first, first.blockers)
            if idle
            else queueing.yield_at(first, blockers)
        )
        if now < wait_until and first.blockers and not first.look_again:
            self._wake_at = wait_until
            return []
        may_leave = all(one.evictable for one in blockers if one.loaded)
        if idle or now < wait_until or not may_leave:
            return self._begin(first, now)
        self._current = first
        return self._make_room(first, first.blockers, now)

    def _begin(self, one: Tracked, now: float) -> list[Effect]:
        self._current = one
        return [self._plan(one, now)]

    def _plan(self, one: Tracked, now: float) -> Plan:
        if not one.blockers:  # one that looks again is still queued
            one.state = ModelState.LOADING
        if one.loading_since is None:
            one.loading_since = now
        self._working = True
        one.blockers, one.look_again = (), False
        return Plan(one.id, self._models.candidates(now))

    def _make_room(self, one: Tracked, victims: Iterable[ModelId], now: float) -> list[Effect]:
        """Let the victims go; the last exit plans the current model again."""
        effects: list[Effect] = []
        one.blockers = ()
        for victim in victims:
            other = self._models[victim]
            if other.loaded:
                self._awaited.add(victim)
                effects += self._make_leave(other, Why.ROOM)
        if not self._awaited:
            effects.append(self._plan(one, now))
        return effects

    def _look_again(self) -> None:
        for one in self._models:
            one.look_again = bool(one.blockers)

    def _done_with_current(self) -> None:
        if self._current is not None:
            self._current.loading_since = None
        self._current = None
        self._working = self._aborting = False
        self._awaited.clear()

    def _drop_unwanted(self, one: Tracked) -> list[Effect]:
        """A load that nobody waits for any more is cancelled; who was to make room serves on."""
        if one.waiters:
            return []
        one.blockers = ()
        if one is not self._current or self._aborting:
            return []
        if self._working:
            self._aborting = True
            return [Abort(one.id)]
        one.state = ModelState.UNLOADED
        for model in self._awaited:
            self._models[model].forgive()
        self._done_with_current()
        return []

    # --- leaving, inside ---------------------------------------------------------------------

    def _unload(self, one: Tracked, why: Why, *, force: bool = False) -> list[Effect]:
        error = CapacityError(f"{one.id} was unloaded while this request waited for it")
        effects = self._reject_all(one, error) + self._drop_unwanted(one)
        if one.loaded:
            effects += self._make_leave(one, why, force=force)
        elif one.state is ModelState.FAILED:
            one.state = ModelState.UNLOADED
            one.error = None
        return effects

    def _dismiss_others(self, used: Tracked) -> list[Effect]:
        """The user changed to this model: the others leave when nothing runs or waits on them.

        Pinned ones stay.
        """
        effects: list[Effect] = []
        for one in self._models:
            if one is not used:
                one.parting = one.loaded and not one.pinned
                effects += self._part_if_idle(one)
        return effects

    def _part_if_idle(self, one: Tracked) -> list[Effect]:
        parts = one.parting and one.idle and not one.pinned
        return self._make_leave(one, Why.USE) if parts else []

    @staticmethod
    def _may_shrink(one: Tracked, now: float) -> bool:
        idle = one.idle and not one.pinned and not one.shrunk
        return idle and now - one.last_used >= eviction.shrink_after(one.stays_s)

    def _make_leave(self, one: Tracked, why: Why, *, force: bool = False) -> list[Effect]:
        if one.state is not ModelState.DRAINING or why is not Why.ROOM:
            one.leaving = why  # whoever makes room may be forgiven; a better reason stays
        one.state = ModelState.DRAINING
        return self._leave_if_done(one, force=force)

    @staticmethod
    def _leave_if_done(one: Tracked, *, force: bool = False) -> list[Effect]:
        done = not one.in_flight or force
        if one.state is not ModelState.DRAINING or one.stopping or not done:
            return []
        one.stopping = True
        return [Stop(one.id, one.leaving)]
