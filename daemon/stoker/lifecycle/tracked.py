"""A model as the scheduler keeps track of it, and who waits for it. Pure state.

Not for: any decision (`scheduler`), or how others see a model (`effects.Standing`).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from enum import Enum, auto

from stoker.errors import StokerError
from stoker.lifecycle.effects import Standing, Why
from stoker.types import ModelId, ModelState


class Purpose(Enum):
    """What a ticket is for."""

    REQUEST = auto()  # to be served: it needs a place
    LOAD = auto()  # the model shall be loaded; this and the next two need no place
    USE = auto()  # as LOAD, and all others shall leave; void once the user chose another one
    RESTORE = auto()  # as LOAD, as it was before; void once the user chose another one


@dataclass(frozen=True, slots=True)
class Waiter:
    ticket: int
    since: float
    purpose: Purpose = Purpose.REQUEST
    keep_alive_s: float | None = None  # asked for by the request

    @property
    def is_choice(self) -> bool:
        """Whether it is void once the user chose another model."""
        return self.purpose in {Purpose.USE, Purpose.RESTORE}


@dataclass(slots=True)
class Tracked:
    """One model; written by the scheduler only."""

    id: ModelId
    keep_alive_s: float
    pinned: bool = False
    priority: int = 0
    state: ModelState = ModelState.UNLOADED
    waiters: deque[Waiter] = field(default_factory=deque)
    in_flight: int = 0
    places: int = 0  # requests that the worker serves at once
    size_bytes: int = 0  # predicted
    generation: int = 0  # counts workers, so that a late release does not touch the next one
    loading_since: float | None = None
    ready_at: float = 0.0
    last_used: float = 0.0
    asked_keep_alive_s: float | None = None  # by the last request that was granted
    shrunk: bool = False  # since it was last used
    blockers: tuple[ModelId, ...] = ()  # these must leave before it is loaded, said its last plan
    look_again: bool = False  # that plan is old: there may be more memory now
    stopping: bool = False  # a Stop is on its way
    parting: bool = False  # it leaves as soon as it is idle: the user changed to another model
    leaving: Why = Why.UNLOAD  # why it drains
    failures: int = 0  # in a row
    error: StokerError | None = None
    retry_at: float = 0.0

    @property
    def idle(self) -> bool:
        return self.state is ModelState.READY and not self.in_flight and not self.waiters

    @property
    def loaded(self) -> bool:
        return self.state in {ModelState.READY, ModelState.DRAINING}

    @property
    def evictable(self) -> bool:
        return self.state is ModelState.DRAINING or not self.pinned

    @property
    def may_go(self) -> bool:
        """Idle and not pinned, or on its way out, or gone."""
        return self.stopping or not self.loaded or (self.idle and not self.pinned)

    @property
    def is_chosen(self) -> bool:
        """Whether the user waits for the change to it."""
        return any(waiter.purpose is Purpose.USE for waiter in self.waiters)

    @property
    def stays_s(self) -> float:
        """How long it stays when idle; -1: for ever."""
        if self.pinned:
            return -1
        asked = self.asked_keep_alive_s
        return self.keep_alive_s if asked is None else asked

    def is_due(self, now: float) -> bool:
        """Whether it has been idle for its keep_alive."""
        return self.idle and 0 <= self.stays_s <= now - self.last_used

    def has_room_for(self, purpose: Purpose) -> bool:
        """Whether it is ready and, for a request, has a free place."""
        free = purpose is not Purpose.REQUEST or self.in_flight < self.places
        return self.state is ModelState.READY and free

    def standing(self) -> Standing:
        """For views. A model that will be loaded for somebody is queued."""
        state = self.state
        if self.waiters and state in {ModelState.UNLOADED, ModelState.FAILED}:
            state = ModelState.QUEUED
        return Standing(
            state,
            self.in_flight,
            len(self.waiters),
            self.last_used,
            self.stays_s,
            self.error if state is ModelState.FAILED else None,
            self.pinned,
            self.priority,
        )

    def serve(self, waiter: Waiter, now: float) -> None:
        """One more request runs on it."""
        self.in_flight += 1
        self.last_used = now
        self.asked_keep_alive_s = waiter.keep_alive_s
        self.shrunk = False

    def arrive(self, places: int, now: float) -> None:
        """A new worker is ready."""
        self.state = ModelState.READY
        self.places = max(1, places)
        self.generation += 1
        self.in_flight = 0
        self.error = None
        self.parting = self.shrunk = False
        self.asked_keep_alive_s = None
        self.ready_at = self.last_used = now

    def vanish(self) -> None:
        """Its worker, or its load, is gone."""
        self.state = ModelState.UNLOADED
        self.in_flight = 0
        self.generation += 1
        self.size_bytes = 0
        self.stopping = False

    def fail(self, error: StokerError, retry_at: float, *, counts: bool) -> None:
        """It could not be loaded, or crashed; until then nobody else tries."""
        self.state = ModelState.FAILED
        self.error = error
        self.failures += counts
        self.retry_at = retry_at

    def forgive(self) -> None:
        """Nobody needs the room any more for which it was to leave: it serves on."""
        yields = self.state is ModelState.DRAINING and self.leaving is Why.ROOM
        if yields and not self.stopping:
            self.state = ModelState.READY

    def skip(self, seconds: float, now: float) -> None:
        """So many seconds passed in which nobody could come: they do not count."""
        self.last_used = min(now, self.last_used + seconds)
        self.ready_at = min(now, self.ready_at + seconds)
        self.waiters = deque(
            replace(waiter, since=min(now, waiter.since + seconds)) for waiter in self.waiters
        )

    def next_waiter(self) -> Waiter | None:
        """Taken out of the queue: who needs no place first, then as they came."""
        if self.state is not ModelState.READY:
            return None
        for waiter in self.waiters:
            if self.has_room_for(waiter.purpose):
                self.waiters.remove(waiter)
                return waiter
        return None
