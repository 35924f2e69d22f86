"""Tells clients what changed of a model: its state at once, its traffic now and then.

A tray listens for as long as its user is logged in, so this lies in the way of every request: a
change of the counts costs a look at a clock here, and one view per `TRAFFIC_S`, however many
requests come and go. Not for: who listens (`events`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from stoker.errors import StokerError
from stoker.events import EventBus
from stoker.lifecycle.effects import Standing
from stoker.schemas import ModelChanged, ModelView
from stoker.types import ModelId, ModelState

TRAFFIC_S: Final = 0.1  # an eye sees no difference; a hundred short requests are one event


class Announcer:
    """One per lifecycle; used from the event loop's thread only."""

    def __init__(self, bus: EventBus, view: Callable[[ModelId], ModelView]) -> None:
        self._bus = bus
        self._view = view
        self._states: dict[ModelId, tuple[ModelState, StokerError | None]] = {}
        self._traffic: dict[ModelId, tuple[int, int]] = {}
        self._due: dict[ModelId, asyncio.TimerHandle] = {}

    def look(self, model: ModelId, standing: Standing) -> None:
        """Publish what is new. Where a model stands finally is always told, at the latest soon."""
        state = standing.state, standing.error
        traffic = standing.in_flight, standing.queued
        if self._states.get(model) != state:
            self._states[model], self._traffic[model] = state, traffic
            self._publish(model)
        elif self._traffic[model] != traffic:
            self._traffic[model] = traffic
            # Once it is due it is told, also when all is as before: who came meanwhile was shown
            # what was then. A client that comes later begins with a snapshot.
            if model not in self._due and self._bus.listened:
                loop = asyncio.get_running_loop()
                self._due[model] = loop.call_later(TRAFFIC_S, self._publish, model)

    def tell(self, model: ModelId) -> None:
        """Publish it as it is now, although it stands where it stood."""
        self._publish(model)

    def close(self) -> None:
        """Nothing is told any more."""
        for timer in self._due.values():
            timer.cancel()
        self._due.clear()

    def _publish(self, model: ModelId) -> None:
        timer = self._due.pop(model, None)
        if timer is not None:
            timer.cancel()
        self._bus.publish(ModelChanged(model=self._view(model)))
