"""One pull as its watchers see it: state, progress, and what its user wants of it now."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

import anyio

from stoker.errors import StokerError
from stoker.pull.meter import Meter
from stoker.pull.state import Saved
from stoker.schemas import ErrorView, PullView
from stoker.store.partial import PartialKey
from stoker.types import ModelId, PullState

if TYPE_CHECKING:
    from stoker.pull.wanted import Wanted

TICK_S: Final = 0.25  # between two progress events of one pull


@dataclass(eq=False)
class Job:
    """Written by its own task, and by `Puller` between two runs of that task.

    The byte counts alone may be set from any thread.
    """

    id: str
    reference: str
    name: str | None
    wanted: Wanted | None  # None: restored, and not worked out yet
    publish: Callable[[PullView], None]
    state: PullState = PullState.QUEUED
    model: ModelId | None = None
    intent: Literal["run", "pause", "cancel"] = "run"
    scope: anyio.CancelScope | None = None  # of the running task
    idle: anyio.Event = field(default_factory=anyio.Event)  # set while no task runs
    keys: list[PartialKey] = field(default_factory=list)
    bytes_before: int = 0  # of the files that are complete
    bytes_current: int = 0  # of the file that is on its way
    bytes_total: int | None = None
    note: str | None = None
    error: ErrorView | None = None
    _meter: Meter = field(default_factory=Meter)
    _told: PullView | None = None

    @property
    def bytes_done(self) -> int:
        done = self.bytes_before + self.bytes_current
        return done if self.bytes_total is None else min(done, self.bytes_total)

    def enter(self, state: PullState, note: str | None = None) -> None:
        """Change the state and tell."""
        self.state = state
        self.note = note
        self.tell()

    def fail(self, error: StokerError) -> None:
        self.error = ErrorView(
            code=error.code, message=error.message, hint=error.hint, facts=dict(error.facts)
        )
        self.enter(PullState.FAILED)

    def begin(self) -> None:
        """A new run: what an earlier one measured no longer counts."""
        self.intent = "run"
        self.error = None
        self.bytes_before = self.bytes_current = 0
        self._meter = Meter()
        self.enter(PullState.QUEUED)

    def tell(self) -> None:
        """Publish the view, unless it has been published already."""
        view = self.view()
        if view != self._told:
            self._told = view
            self.publish(view)

    async def tick(self) -> None:
        """Measure and tell, until cancelled."""
        while True:
            if self.state is PullState.FETCHING:
                self._meter.add(time.monotonic(), self.bytes_done)
            self.tell()
            await anyio.sleep(TICK_S)

    def view(self) -> PullView:
        fetching = self.state is PullState.FETCHING
        remaining = (self.bytes_total or 0) - self.bytes_done
        return PullView(
            id=self.id,
            reference=self.reference,
            model=self.model.text if self.model else None,
            state=self.state,
            bytes_done=self.bytes_done,
            bytes_total=self.bytes_total,
            bytes_per_s=self._meter.speed() if fetching else 0.0,
            eta_s=self._meter.eta(remaining) if fetching and self.bytes_total else None,
            note=self.note,
            error=self.error,
        )

    def saved(self) -> Saved:
        paused = self.state is PullState.PAUSED
        return Saved(self.id, self.reference, self.name, paused, tuple(self.keys))
