"""Who needs a model, waits for it and uses it: tickets in, leases out.

Not for: what is loaded and when (`scheduler`), carrying that out (`workers`), or the daemon's
life (`runtime`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Final

import anyio

from stoker.errors import (
    BlobDamaged,
    NotCapable,
    ShuttingDown,
    StokerError,
    WaitTimeout,
    WorkerLost,
)
from stoker.lifecycle.effects import Effect, Grant, Waiting
from stoker.lifecycle.last_served import LastServed
from stoker.lifecycle.record import Record
from stoker.lifecycle.running import Lease
from stoker.lifecycle.scheduler import Scheduler
from stoker.lifecycle.tickets import Answer, Seat, Tickets
from stoker.lifecycle.tracked import Purpose
from stoker.lifecycle.workers import Workers
from stoker.settings import ModelSettings, Settings
from stoker.store.store import Store
from stoker.types import Capability, ModelId

_NOTICE_S: Final = 1.0  # from a cut connection to the report of the process's end
_UNSET: Final = ModelSettings()


class Leases:
    """One per lifecycle; used from the event loop's thread only."""

    def __init__(
        self,
        *,
        store: Store,
        settings: Settings,
        scheduler: Scheduler,
        workers: Workers,
        last: LastServed,
        dispatch: Callable[[Iterable[Effect]], None],
        record: Record,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._settings = settings
        self._scheduler = scheduler
        self._workers = workers
        self._last = last
        self._dispatch = dispatch
        self._record = record
        self._clock = clock
        self._tickets = Tickets()

    def answer(self, ticket: int, answer: Grant | StokerError) -> None:
        """The scheduler's word."""
        self._tickets.answer(ticket, answer)

    def refuse_all(self, error: StokerError) -> None:
        self._tickets.refuse_all(error)

    def waiting(self, seat: Seat) -> Waiting | None:
        """How it stands in the queue; None when it does not wait."""
        if seat.ticket is None:
            return None
        return self._scheduler.waiting(seat.ticket, self._clock())

    def resolve(self, name: str, capability: Capability | None = None) -> ModelId:
        """Raises UnknownModel, BlobDamaged, NotCapable."""
        manifest = self._store.find(name)  # from memory
        if manifest.damaged:
            message = f"{manifest.id} is damaged and is not served"
            raise BlobDamaged(message, model=str(manifest.id))
        if capability is not None and capability not in manifest.capabilities:
            can = ", ".join(manifest.capabilities) or "nothing that Stoker serves"
            message = f"{manifest.id} cannot do this: {capability}; it can do: {can}"
            raise NotCapable(message, model=str(manifest.id))
        self.tell_wishes(manifest.id, pinned=manifest.pinned)
        return manifest.id

    def tell_wishes(self, model: ModelId, *, pinned: bool) -> None:
        """What the user set for this model."""
        own = self._settings.models.get(str(model), _UNSET)
        first = model not in self._scheduler.known()  # later a `load` may have said otherwise
        self._scheduler.keep(
            model,
            pinned=pinned,
            priority=own.priority,
            keep_alive_s=own.keep_alive_s if first else None,
        )

    async def hold(self, name: str, purpose: Purpose, keep_alive_s: float | None = None) -> ModelId:
        """Return when the model is ready; for a while from now it stays so much longer."""
        async with self.lease(name, None, purpose) as lease:
            self._scheduler.keep(lease.model, keep_alive_s=keep_alive_s)
        return lease.model

    @asynccontextmanager
    async def lease(
        self,
        name: str,
        capability: Capability | None,
        purpose: Purpose = Purpose.REQUEST,
        *,
        keep_alive_s: float | None = None,
        seat: Seat | None = None,
    ) -> AsyncIterator[Lease]:
        """See `Lifecycle.lease`."""
        model = self.resolve(name, capability)
        grant = await self._granted(model, purpose, keep_alive_s, seat or Seat())
        running = self._workers.get(model)
        if running is None:  # it died in the moment between the grant and now
            raise WorkerLost(f"the engine of {model} was lost before the request", sent=False)
        self._last.remember(model)
        running.leases += 1
        good = False
        try:
            yield Lease(
                model,
                running.worker,
                running.upstream,
                running.plan.context,
                lambda tokens: running.rate.add(tokens, self._clock()),
            )
            good = purpose is Purpose.REQUEST
        except WorkerLost:
            # Nobody else is sent there. A moment for the exit to be noticed, so that it is
            # known as a crash; a worker that lives on is stopped when the others are done.
            if self._workers.get(model) is running:
                suspect = self._scheduler.on_suspect(model, grant.generation, self._clock())
                self._dispatch(suspect)
            with anyio.move_on_after(_NOTICE_S):
                await running.worker.wait()
            raise
        finally:
            self._workers.release(running, good=good)
            released = self._scheduler.on_released(model, grant.generation, self._clock())
            self._dispatch(released)

    async def _granted(
        self, model: ModelId, purpose: Purpose, keep_alive_s: float | None, seat: Seat
    ) -> Grant:
        if not self._workers.active:
            raise ShuttingDown("Stoker is not serving")
        with self._tickets.draw() as (ticket, answer):
            seat.ticket = ticket
            now = self._clock()
            try:
                asked = self._scheduler.on_request(
                    ticket, model, now, purpose, keep_alive_s=keep_alive_s
                )
                self._dispatch(asked)
                if not answer.done():
                    await self._wait_for(answer, model)
                grant = answer.result()
            except BaseException:
                later = self._clock()
                if answer.done() and not answer.cancelled() and answer.exception() is None:
                    late = answer.result()  # granted in the same moment
                    self._dispatch(self._scheduler.on_released(model, late.generation, later))
                else:
                    self._dispatch(self._scheduler.on_cancelled(ticket, later))
                raise
            finally:
                seat.ticket = None
        if purpose is Purpose.REQUEST:
            self._record.waited(model, self._clock() - now)
        return grant

    async def _wait_for(self, answer: Answer, model: ModelId) -> None:
        wait_s = self._settings.wait_timeout_s
        with anyio.move_on_after(wait_s):
            await asyncio.wait((answer,))
            return
        raise WaitTimeout(f"{model} was not ready within {wait_s:g} s", wait_timeout_s=wait_s)
