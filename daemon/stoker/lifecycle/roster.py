"""All models that the scheduler knows, and what can be asked of them together. Pure.

Not for: any change of a model (`scheduler`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from stoker.lifecycle import eviction, queueing
from stoker.lifecycle.effects import Waiting
from stoker.lifecycle.eviction import Candidate
from stoker.lifecycle.tracked import Tracked
from stoker.types import ModelId, ModelState


class Roster:
    """One per scheduler."""

    def __init__(self, keep_alive_s: float) -> None:
        self._keep_alive_s = keep_alive_s
        self._models: dict[ModelId, Tracked] = {}
        self.load_s: dict[ModelId, float] = {}  # how long each model's last good load took

    def __iter__(self) -> Iterator[Tracked]:
        return iter(self._models.values())

    def __getitem__(self, model: ModelId) -> Tracked:
        """The model; known from now on."""
        return self._models.setdefault(model, Tracked(model, self._keep_alive_s))

    def get(self, model: ModelId) -> Tracked | None:
        return self._models.get(model)

    @property
    def queued(self) -> int:
        return sum(len(one.waiters) for one in self)

    def line(self, now: float) -> list[Tracked]:
        """The models that must be loaded for somebody, the next one first."""
        return queueing.in_order((one for one in self if one.waiters and not one.loaded), now)

    def blockers(self, one: Tracked) -> list[Tracked]:
        return [self[blocker] for blocker in one.blockers]

    def candidates(self, now: float) -> tuple[Candidate, ...]:
        """What might leave: what does so already, then what costs least."""
        others = [one for one in self if one.loaded and one.evictable]

        def rank(one: Tracked) -> tuple[bool, float]:
            load_s, idle_s = self.load_s.get(one.id), now - one.last_used
            ready = one.state is ModelState.READY
            return ready, eviction.cost(idle_s=idle_s, load_s=load_s, size_bytes=one.size_bytes)

        others.sort(key=rank)
        return tuple(Candidate(one.id, one.size_bytes, busy=not one.may_go) for one in others)

    def linger_until(self, one: Tracked, victims: Iterable[ModelId]) -> float:
        """When idle models have waited long enough for followers to make room for this one."""
        idle = [other for victim in victims if (other := self[victim]).idle]
        load_s = self.load_s.get(one.id)
        ends = [
            other.last_used + queueing.linger_s(self.load_s.get(other.id), load_s) for other in idle
        ]
        return min(max(ends, default=-math.inf), queueing.yield_at(one, idle))

    def loading_s(self, model: ModelId, now: float) -> float | None:
        """How long it has been loading; None when it is not."""
        one = self.get(model)
        if one is None or one.state is not ModelState.LOADING or one.loading_since is None:
            return None
        return now - one.loading_since

    def load_left_s(self, model: ModelId, now: float) -> float | None:
        """How long its load, begun or not, still takes; None when none was ever measured."""
        load_s = self.load_s.get(model)
        return None if load_s is None else max(0.0, load_s - (self.loading_s(model, now) or 0))

    def waiting(
        self, ticket: int, current: Tracked | None, awaited: Iterable[ModelId], now: float
    ) -> Waiting | None:
        """Where a request stands; None when it does not wait.

        ``current`` is next or being loaded, and ``awaited`` must exit for it.
        """
        place = queueing.position(ticket, self, current, now)
        if place is None:
            return None
        position, one = place
        ahead = (one.id,) if one.loaded else dict.fromkeys((*one.blockers, *sorted(awaited)))
        is_loading = current is not None and current.state is ModelState.LOADING
        loading = current.id if current is not None and is_loading else None
        return Waiting(
            position,
            self.queued,
            one.id,
            one.standing().state,
            loading,
            None if loading is None else self.loading_s(loading, now),
            None if loading is None else self.load_s.get(loading),
            tuple(model for model in ahead if self[model].in_flight),
        )
