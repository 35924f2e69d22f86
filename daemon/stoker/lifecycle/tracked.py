"""A model as the scheduler keeps track of it, and who waits for it. Pure state.

Not for: any decision (`scheduler`), or how others see a model (`effects.Standing`).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum, auto

from stoker.errors import StokerError
from stoker.lifecycle.effects import Standing
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
    state: ModelState = ModelState.UNLOADED
    waiters: deque[Waiter] = field(default_factory=deque)
    in_flight: int = 0
    places: int = 0  # requests that the worker serves at once
    size_bytes: int = 0  # predicted
    generation: int = 0  # counts workers, so that a late release does not touch the next one
    ready_at: float = 0.0
    last_used: float = 0.0
    stopping: bool = False  # a Stop is on its way
    parting: bool = False  # it leaves as soon as it is idle: the user changed to another model
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

    def has_room_for(self, purpose: Purpose) -> bool:
        """Whether it is ready and, for a request, has a free place."""
        free = purpose is not Purpose.REQUEST or self.in_flight < self.places
        return self.state is ModelState.READY and free

    def standing(self) -> Standing:
        """For views. A model that will be loaded for somebody is queued."""
        state = self.state
        if self.waiters and state in {ModelState.UNLOADED, ModelState.FAILED}:
            state = ModelState.QUEUED
        error = self.error if state is ModelState.FAILED else None
        return Standing(
            state, self.in_flight, len(self.waiters), self.last_used, self.keep_alive_s, error
        )

    def fail(self, error: StokerError, retry_at: float, *, counts: bool) -> None:
        """It could not be loaded, or crashed; until then nobody else tries."""
        self.state = ModelState.FAILED
        self.error = error
        self.failures += counts
        self.retry_at = retry_at

    def next_waiter(self) -> Waiter | None:
        """Taken out of the queue: who needs no place first, then as they came."""
        if self.state is not ModelState.READY:
            return None
        for waiter in self.waiters:
            if self.has_room_for(waiter.purpose):
                self.waiters.remove(waiter)
                return waiter
        return None
