"""Tells clients what changed of a model: its state at once, its traffic now and then.

A tray listens for as long as its user is logged in, so this lies in the way of every request: a
change of the counts costs a look at a clock here, and one view per `TRAFFIC_S`, however many
requests come and go. What moves without anybody doing anything (speed, memory) is told when the
runtime's timer comes round, and only if it moved. Not for: who listens (`events`).
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
_MEMORY_STEP: Final = 16 << 20  # less than what a menu shows of memory
_KV_STEP: Final = 0.02
_LOADED: Final = frozenset((ModelState.READY, ModelState.DRAINING))

_State = tuple[ModelState, StokerError | None, bool, int]
_Traffic = tuple[int, int, float]
_Figures = tuple[float | None, ...]


class Announcer:
    """One per lifecycle; used from the event loop's thread only."""

    def __init__(self, bus: EventBus, view: Callable[[ModelId], ModelView]) -> None:
        self._bus = bus
        self._view = view
        self._states: dict[ModelId, _State] = {}
        self._traffic: dict[ModelId, _Traffic] = {}
        self._figures: dict[ModelId, _Figures] = {}
        self._due: dict[ModelId, asyncio.TimerHandle] = {}

    def look(self, model: ModelId, standing: Standing) -> None:
        """Publish what is new. Where a model stands finally is always told, at the latest soon."""
        state = standing.state, standing.error, standing.pinned, standing.priority
        traffic = standing.in_flight, standing.queued, standing.keep_alive_s
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

    def pulse(self) -> None:
        """Publish the loaded models whose figures moved since they were told; for a timer.

        So a client need not ask how fast a long answer comes, or that nothing comes any more.
        """
        if not self._bus.listened:
            return
        for model, (state, *_) in self._states.items():
            if state in _LOADED:
                view = self._view(model)
                if _figures(view) != self._figures.get(model):
                    self._publish(model, view)

    def close(self) -> None:
        """Nothing is told any more."""
        for timer in self._due.values():
            timer.cancel()
        self._due.clear()

    def _publish(self, model: ModelId, view: ModelView | None = None) -> None:
        timer = self._due.pop(model, None)
        if timer is not None:
            timer.cancel()
        view = view or self._view(model)
        self._figures[model] = _figures(view)
        self._bus.publish(ModelChanged(model=view))


def _figures(view: ModelView) -> _Figures:
    """What a person would see of it, as coarse as that. Not what a client's clock tells."""
    memory = view.memory
    resident = memory.resident_bytes if memory is not None else None
    return (
        view.tokens_per_s,
        view.kv_used and view.kv_used // _KV_STEP,
        resident and resident // _MEMORY_STEP,
        view.rung,
    )
