"""Decides loads, evictions and queueing: an event in, a list of effects out. Pure.

No I/O, no clock, no logging: the runtime (`runtime`) tells the time, carries out the effects and
reports what came of them. One model is loaded at a time, in the order of the oldest waiting
request. A request goes through these steps:

1. nothing is served (the server is off, the daemon is stopping), or the model failed a moment
   ago: rejected
2. the model is ready and has a free place (`Purpose` says who needs one): granted
3. too many wait already: rejected
4. it waits. When its model is the next to load: plan, evict what is idle, start; when only busy
   models could make room, wait for them, and after `QUANTUM_S` let them take no new requests
   (so that two models that do not fit together take turns, instead of one starving the other).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final

from stoker.errors import CapacityError, QueueFull, StokerError
from stoker.lifecycle.effects import Abort, Effect, Grant, Plan, Reject, Standing, Start, Stop
from stoker.lifecycle.eviction import Candidate
from stoker.lifecycle.tracked import Purpose, Tracked, Waiter
from stoker.types import ModelId, ModelState

# Seconds a model may serve before it must yield to one that waits: long against a load from a
# warm disk (1 to 5 s), short against a person's patience.
QUANTUM_S: Final = 30.0
_BACKOFF_S: Final = (0.0, 1.0, 2.0, 4.0, 8.0, 15.0)  # after so many failures in a row


class Scheduler:
    """See the module. Methods named ``on_…`` take an event and return what must be done."""

    def __init__(self, *, max_queue: int, keep_alive_s: float) -> None:
        self._max_queue = max_queue
        self._keep_alive_s = keep_alive_s
        self._models: dict[ModelId, Tracked] = {}
        self._current: Tracked | None = None  # being planned, made room for, or launched
        self._working = False  # a Plan or a Start of the current model is out
        self._aborting = False
        self._awaited: set[ModelId] = set()  # must exit before the current model is planned again
        self._blockers: tuple[ModelId, ...] = ()  # the current model waits until these are idle
        self._closed: StokerError | None = None  # why nothing is served at all

    # --- questions ---------------------------------------------------------------------------

    def standing(self, model: ModelId) -> Standing:
        one = self._models.get(model)
        return Standing(keep_alive_s=self._keep_alive_s) if one is None else one.standing()

    def known(self) -> tuple[ModelId, ...]:
        return tuple(self._models)

    @property
    def current(self) -> ModelId | None:
        """The model that is being planned, made room for, launched or aborted."""
        return self._current.id if self._current is not None else None

    @property
    def queued(self) -> int:
        return sum(len(one.waiters) for one in self._models.values())

    @property
    def in_flight(self) -> int:
        return sum(one.in_flight for one in self._models.values())

    # --- requests ----------------------------------------------------------------------------

    def on_request(
        self, ticket: int, model: ModelId, now: float, purpose: Purpose = Purpose.REQUEST
    ) -> list[Effect]:
        """Somebody needs the model; the ticket is granted or rejected, now or later.

        The newest `USE` wins: whoever waits for an older choice of the user is rejected.
        """
        one = self._model(model)
        if self._closed is not None:
            return [Reject(ticket, self._closed)]
        if one.error is not None and now < one.retry_at:
            return [Reject(ticket, one.error)]
        has_room = one.has_room_for(purpose)
        if has_room and purpose is Purpose.REQUEST:  # nearly always; nobody else is concerned
            return self._grant(one, Waiter(ticket, now), now)
        if self.queued >= self._max_queue and not has_room:
            message = f"{self.queued} requests are waiting already"
            return [Reject(ticket, QueueFull(message, queued=self.queued, limit=self._max_queue))]
        one.waiters.append(Waiter(ticket, now, purpose))
        effects = self._overtake(one) if purpose is Purpose.USE else []
        return effects + self._advance(now)

    def on_cancelled(self, ticket: int, now: float) -> list[Effect]:
        """Nobody waits for this ticket any more; a granted one is released instead."""
        for one in self._models.values():
            kept = deque(waiter for waiter in one.waiters if waiter.ticket != ticket)
            if len(kept) != len(one.waiters):
                one.waiters = kept
                return self._drop_unwanted(one) + self._advance(now)
        return []

    def on_released(self, model: ModelId, generation: int, now: float) -> list[Effect]:
        one = self._model(model)
        if generation != one.generation or not one.in_flight:
            return []
        one.in_flight -= 1
        one.last_used = now
        one.failures = 0
        effects = self._leave_if_done(one) + self._advance(now)
        return effects + self._part_if_idle(one)

    def on_suspect(self, model: ModelId, generation: int, now: float) -> list[Effect]:
        """The worker broke a connection: it takes no new requests and leaves when it is idle."""
        one = self._model(model)
        if generation == one.generation and one.state is ModelState.READY:
            one.state = ModelState.DRAINING
        return self._leave_if_done(one) + self._advance(now)

    def on_hung(self, model: ModelId, now: float) -> list[Effect]:
        """The worker does nothing any more: it is stopped, whatever it should have been doing."""
        one = self._model(model)
        if not one.loaded:
            return []
        one.state = ModelState.DRAINING
        return self._leave_if_done(one, force=True) + self._advance(now)

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
        if wait:
            one.state = ModelState.UNLOADED
            self._blockers = tuple(victims)
            return self._unblock(now) or self._advance(now)
        if not all(self._model(victim).may_go for victim in victims):
            return [self._plan(one)]  # one of them got a request meanwhile
        return self._make_room(victims)

    def on_ready(self, model: ModelId, places: int, now: float) -> list[Effect]:
        one = self._model(model)
        if one is not self._current or self._aborting:
            return []
        one.state = ModelState.READY
        one.places = max(1, places)
        one.generation += 1
        one.in_flight = 0
        one.error = None
        one.parting = False
        one.ready_at = one.last_used = now
        self._done_with_current()
        return self._advance(now)

    def on_renewed(self, model: ModelId, size_bytes: int, places: int, now: float) -> list[Effect]:
        """Another worker took over; requests on the one before count until they are released."""
        one = self._model(model)
        one.size_bytes, one.places = size_bytes, max(1, places)
        return self._advance(now)

    def on_failed(
        self, model: ModelId, error: StokerError, now: float, *, back_off: bool = True
    ) -> list[Effect]:
        """Planning or launching failed; nothing of it is left. All who wait learn why."""
        one = self._model(model)
        if one is not self._current:
            return []
        self._note_failure(one, error, now, back_off=back_off)
        self._done_with_current()
        return self._reject_all(one, error) + self._advance(now)

    def on_exited(self, model: ModelId, error: StokerError | None, now: float) -> list[Effect]:
        """The worker, or the aborted load, is gone. ``error`` when it ended on its own."""
        one = self._model(model)
        if one is self._current:
            self._done_with_current()
        one.state = ModelState.UNLOADED
        one.in_flight = 0
        one.generation += 1
        one.size_bytes = 0
        one.stopping = False
        effects: list[Effect] = []
        if error is not None:
            self._note_failure(one, error, now)
            if now < one.retry_at:
                effects = self._reject_all(one, error)
        self._awaited.discard(model)
        if self._current is not None and not self._working and not self._awaited:
            effects.append(self._plan(self._current))
        return effects + self._advance(now)

    # --- wishes ------------------------------------------------------------------------------

    def keep(
        self, model: ModelId, *, keep_alive_s: float | None = None, pinned: bool | None = None
    ) -> None:
        """How long the model stays when idle (-1: for ever), and whether it may be evicted."""
        one = self._model(model)
        if keep_alive_s is not None:
            one.keep_alive_s = keep_alive_s
        if pinned is not None:
            one.pinned = pinned

    def on_unload(self, model: ModelId, now: float, *, force: bool = False) -> list[Effect]:
        """Stop the model when its requests have ended; with ``force`` at once."""
        one = self._model(model)
        error = CapacityError(f"{model} was unloaded while this request waited for it")
        effects = self._reject_all(one, error) + self._drop_unwanted(one)
        if one.loaded:
            one.state = ModelState.DRAINING
            effects += self._leave_if_done(one, force=force)
        elif one.state is ModelState.FAILED:
            one.state = ModelState.UNLOADED
            one.error = None
        return effects + self._advance(now)

    def on_tick(self, now: float) -> list[Effect]:
        """Unload what has been idle for its keep_alive; look again whether there is room."""
        effects: list[Effect] = []
        for one in self._models.values():
            expires = one.keep_alive_s >= 0 and not one.pinned
            if expires and one.idle and now - one.last_used >= one.keep_alive_s:
                effects += self._make_leave(one)
        if self._current is not None and self._blockers:
            effects += self._unblock(now)
            if self._blockers:  # other programs may have freed memory
                effects.append(self._plan(self._current))
        return effects + self._advance(now)

    def on_free(self, now: float) -> list[Effect]:
        """Unload what is idle and not pinned; nothing that runs or waits is touched."""
        effects: list[Effect] = []
        for one in self._models.values():
            if one.idle and not one.pinned:
                effects += self._make_leave(one)
        return effects + self._advance(now)

    def on_close(self, reason: StokerError, now: float) -> list[Effect]:
        """Take no requests any more, for this reason; stop each model when its requests ended."""
        self._closed = reason
        effects: list[Effect] = []
        for one in self._models.values():
            effects += self._reject_all(one, reason)
        for model in self.known():
            effects += self.on_unload(model, now)
        return effects

    def on_cut(self, now: float) -> list[Effect]:
        """After `on_close`: running requests had their time, all models are stopped at once."""
        effects: list[Effect] = []
        for model in self.known():
            effects += self.on_unload(model, now, force=True)
        return effects

    def on_open(self) -> None:
        """Take requests again."""
        self._closed = None

    # --- inside ------------------------------------------------------------------------------

    def _model(self, model: ModelId) -> Tracked:
        return self._models.setdefault(model, Tracked(model, self._keep_alive_s))

    def _grant(self, one: Tracked, waiter: Waiter, now: float) -> list[Effect]:
        one.in_flight += 1
        one.last_used = now
        granted: list[Effect] = [Grant(waiter.ticket, one.id, one.generation)]
        if waiter.purpose is not Purpose.REQUEST:
            one.parting = False
        return granted + (self._dismiss_others(one) if waiter.purpose is Purpose.USE else [])

    def _overtake(self, chosen: Tracked) -> list[Effect]:
        """The user chose this model: what was chosen before and is not there yet is void."""
        effects: list[Effect] = []
        for one in self._models.values():
            void = [waiter for waiter in one.waiters if waiter.is_choice]
            if one is not chosen and void:
                one.waiters = deque(waiter for waiter in one.waiters if not waiter.is_choice)
                message = f"{chosen.id} was chosen before {one.id} was ready"
                error = CapacityError(message, hint=f"To change back: stoker use {one.id}")
                effects += [Reject(waiter.ticket, error) for waiter in void]
                effects += self._drop_unwanted(one)
        return effects

    def _dismiss_others(self, used: Tracked) -> list[Effect]:
        """The user changed to this model: the others leave when nothing runs or waits on them.

        Pinned ones stay.
        """
        effects: list[Effect] = []
        for one in self._models.values():
            if one is not used:
                one.parting = one.loaded and not one.pinned
                effects += self._part_if_idle(one)
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

    def _done_with_current(self) -> None:
        self._current = None
        self._working = self._aborting = False
        self._awaited.clear()
        self._blockers = ()

    def _advance(self, now: float) -> list[Effect]:
        """Grant what can be granted; when no load is on its way, begin the next."""
        effects: list[Effect] = []
        for one in self._models.values():
            while (waiter := one.next_waiter()) is not None:
                effects += self._grant(one, waiter, now)
        if self._current is None:
            waiting = [one for one in self._models.values() if one.waiters and not one.loaded]
            if waiting:
                self._current = min(waiting, key=lambda one: one.waiters[0].since)
                effects.append(self._plan(self._current))
        elif self._blockers and self._room_may_be_there():
            effects.append(self._plan(self._current))
        return effects

    def _plan(self, one: Tracked) -> Plan:
        if not self._blockers:  # one that looks again is still queued
            one.state = ModelState.LOADING
        self._working = True
        self._blockers = ()
        others = [other for other in self._models.values() if other.loaded and other.evictable]
        others.sort(key=lambda other: (other.state is ModelState.READY, other.last_used))
        candidates = tuple(
            Candidate(other.id, other.size_bytes, busy=not other.may_go) for other in others
        )
        return Plan(one.id, candidates)

    def _room_may_be_there(self) -> bool:
        return all(self._model(blocker).may_go for blocker in self._blockers)

    def _unblock(self, now: float) -> list[Effect]:
        """Busy models yield to one that waited a quantum, when they served one themselves."""
        if self._current is None or not self._current.waiters:
            return []
        if now - self._current.waiters[0].since < QUANTUM_S:
            return []
        blockers = [self._model(blocker) for blocker in self._blockers]
        if any(one.loaded and now - one.ready_at < QUANTUM_S for one in blockers):
            return []
        return self._make_room(self._blockers)

    def _make_room(self, victims: Iterable[ModelId]) -> list[Effect]:
        """Let the victims go; the last exit plans the current model again."""
        effects: list[Effect] = []
        self._blockers = ()
        for victim in victims:
            one = self._model(victim)
            if one.loaded:
                self._awaited.add(victim)
                effects += self._make_leave(one)
        if not self._awaited and self._current is not None:
            effects.append(self._plan(self._current))
        return effects

    def _make_leave(self, one: Tracked) -> list[Effect]:
        one.state = ModelState.DRAINING
        return self._leave_if_done(one)

    def _part_if_idle(self, one: Tracked) -> list[Effect]:
        return self._make_leave(one) if one.parting and one.idle else []

    def _leave_if_done(self, one: Tracked, *, force: bool = False) -> list[Effect]:
        done = not one.in_flight or force
        if one.state is not ModelState.DRAINING or one.stopping or not done:
            return []
        one.stopping = True
        return [Stop(one.id)]

    def _drop_unwanted(self, one: Tracked) -> list[Effect]:
        """A load that nobody waits for any more is cancelled."""
        if one is not self._current or one.waiters or self._aborting:
            return []
        if self._working:
            self._aborting = True
            return [Abort(one.id)]
        one.state = ModelState.UNLOADED
        self._done_with_current()
        return []
