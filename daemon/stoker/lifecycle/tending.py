"""What an eye is kept on while nobody asks: idle models, hung workers, memory, and the clock.

Decides nothing itself: it looks, and tells the scheduler. Not for: requests (`leases`), or when
it looks (`stoker.jobs`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import structlog
from anyio.to_thread import run_sync

from stoker.hardware.facts import HardwareFacts
from stoker.lifecycle import suspend
from stoker.lifecycle.effects import Effect
from stoker.lifecycle.planning import Means
from stoker.lifecycle.pressure import Pressure, stall_share
from stoker.lifecycle.scheduler import Scheduler
from stoker.lifecycle.suspend import Clockwork
from stoker.lifecycle.workers import Workers
from stoker.types import ModelState

log = structlog.get_logger(__name__)


class Tending:
    """One per lifecycle; used from the event loop's thread only."""

    def __init__(
        self,
        means: Means,
        scheduler: Scheduler,
        workers: Workers,
        dispatch: Callable[[Iterable[Effect]], None],
        clock: Callable[[], float],
    ) -> None:
        self._means = means
        self._scheduler = scheduler
        self._workers = workers
        self._dispatch = dispatch
        self._clock = clock
        self._clockwork = Clockwork()
        self._pressure = Pressure()

    def tick(self) -> None:
        """Unload what has been idle for its keep_alive, and what has hung. Every five seconds."""
        self._mind_the_gap()
        self._dispatch(self._scheduler.on_tick(self._clock()))
        for model in self._workers.inspect():
            self._dispatch(self._scheduler.on_hung(model, self._clock()))

    async def relieve(self) -> None:
        """Other programs need memory: let idle models go. Every five seconds."""
        if not self._anything_to_give():
            self._pressure.rest()
            return
        hardware, stalled = await run_sync(self._look)
        need_bytes = self._pressure.look(
            hardware,
            promised_bytes=self._workers.promised_bytes,
            reserve=self._means.settings.memory_reserve_bytes,
            stalled=stalled,
        )
        if need_bytes:
            log.info("memory_short", need_bytes=need_bytes)
            self._dispatch(self._scheduler.on_pressure(need_bytes, self._clock()))

    def _look(self) -> tuple[HardwareFacts, float | None]:
        return self._means.hardware(), stall_share()

    def _anything_to_give(self) -> bool:
        standings = map(self._scheduler.standing, self._scheduler.known())
        return any(
            one.state is ModelState.READY and not one.in_flight and not one.pinned
            for one in standings
        )

    def _mind_the_gap(self) -> None:
        """Time in which nobody could do anything counts for nothing."""
        gap = self._clockwork.look(*suspend.clocks())
        if gap is None:
            return
        log.warning(
            "clock_gap",
            slept_s=round(gap.slept_s),
            stalled_s=round(gap.stalled_s),
            wall_jump_s=round(gap.wall_jump_s),
        )
        if gap.woke:
            self._scheduler.on_gap(gap.stalled_s, self._clock())
            self._workers.woke()
