"""Models for whoever needs one: leases, loads and unloads, told to the scheduler and carried out.

All state changes happen between two awaits on the event loop's thread: an event goes into the
scheduler and its effects are dispatched at once, so there is never a moment in which the
scheduler believes something else than what is on its way. Not for: decisions (`scheduler`,
`eviction`, `loading`), or the worker processes (`workers`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Final

import anyio
import structlog
from anyio.abc import TaskStatus

from stoker.engine.base import Engine
from stoker.errors import (
    BadReference,
    BlobDamaged,
    NotCapable,
    ShuttingDown,
    StokerError,
    WaitTimeout,
    WorkerLost,
)
from stoker.events import EventBus
from stoker.hardware.facts import HardwareFacts
from stoker.lifecycle.announce import Announcer
from stoker.lifecycle.busy import Busy
from stoker.lifecycle.effects import Abort, Effect, Grant, Plan, Reject, Start, Stop
from stoker.lifecycle.last_served import LastServed
from stoker.lifecycle.planning import Known, Means, digest_of
from stoker.lifecycle.running import Lease, model_view
from stoker.lifecycle.scheduler import Scheduler
from stoker.lifecycle.tickets import Answer, Tickets
from stoker.lifecycle.tracked import Purpose
from stoker.lifecycle.workers import Workers
from stoker.metrics import Metrics
from stoker.schemas import FreedView, ModelView
from stoker.settings import Settings
from stoker.store.store import Store
from stoker.tuning.launch import LaunchPlan
from stoker.types import Capability, Digest, ModelId, ModelState

log = structlog.get_logger(__name__)

_NOTICE_S: Final = 1.0  # from a cut connection to the report of the process's end
_GONE_TIMEOUT_S: Final = 45.0  # more than `Worker.stop` ever takes
_WANTED: Final = frozenset((ModelState.QUEUED, ModelState.LOADING, ModelState.READY))


class Lifecycle:
    """Loads, serves and unloads models. Made once; used from the event loop's thread only."""

    def __init__(  # noqa: PLR0913  # what `planning.Means` holds, and three more; all by name
        self,
        *,
        store: Store,
        engine: Engine,
        hardware: Callable[[], HardwareFacts],
        settings: Settings,
        bus: EventBus,
        metrics: Metrics,
        last_served: Path,
        known: Known | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self._scheduler = Scheduler(
            max_queue=settings.max_queue, keep_alive_s=settings.keep_alive_s
        )
        means = Means(store, engine, hardware, settings, bus, metrics, known)
        self._workers = Workers(means, self._scheduler, self._dispatch, clock)
        self._tickets = Tickets()
        self._last = LastServed(last_served, self._workers.start)
        self._announcer = Announcer(bus, self.view)
        self._changed = anyio.Event()
        self._busy = Busy(clock)
        self.on_busy = self._busy.watch
        self._ending = False

    # --- life --------------------------------------------------------------------------------

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Own every task and worker until cancelled; then no worker is left."""
        try:
            await self._workers.run(task_status=task_status)
        finally:
            self._tickets.refuse_all(ShuttingDown("Stoker is stopping"))
            self._announcer.close()

    async def restore(self) -> None:
        """Load what served last. Never raises: a daemon without a model is still a daemon."""
        model = await self._last.recall() if self._settings.restore_last else None
        if model is not None:
            await self._bring_back(model)

    def recall_load_times(self, seconds: Mapping[str, float]) -> None:
        """How long loads took before this daemon started, by model."""
        for name, taken in seconds.items():
            try:
                self._workers.load_s.setdefault(ModelId.parse(name), taken)
            except BadReference:
                continue  # a row that somebody else wrote

    def tick(self) -> None:
        """Unload what has been idle for its keep_alive, and what has hung.

        Called every five seconds by a job.
        """
        self._dispatch(self._scheduler.on_tick(self._clock()))
        for model in self._workers.inspect():
            self._dispatch(self._scheduler.on_hung(model, self._clock()))

    # --- on and off --------------------------------------------------------------------------

    def close(self, reason: StokerError) -> tuple[ModelId, ...]:
        """Refuse every request from now on, with this reason, and begin to stop all models.

        Returns those that were loaded or about to be, the least recently used first.
        """
        wanted = [
            (standing.state is not ModelState.READY, standing.idle_since, model)
            for model in self._scheduler.known()
            if (standing := self._scheduler.standing(model)).state in _WANTED
        ]
        if not self._ending:
            self._dispatch(self._scheduler.on_close(reason, self._clock()))
        return tuple(model for _, _, model in sorted(wanted))

    async def drained(self, timeout_s: float) -> None:
        """After `close`: let running requests end in this time, then cut. No worker is left."""
        with anyio.move_on_after(timeout_s):
            await self._until(lambda: self._workers.none_left)
            return
        log.info("drain_forced", in_flight=self._scheduler.in_flight)
        self._dispatch(self._scheduler.on_cut(self._clock()))
        self._workers.stop_all()
        with anyio.move_on_after(_GONE_TIMEOUT_S):
            await self._until(lambda: self._workers.none_left)

    def open(self, models: Iterable[ModelId] = ()) -> None:
        """Take requests again, and load these models in the background, in this order.

        Raises ShuttingDown.
        """
        if self._ending:
            raise ShuttingDown("Stoker is stopping")
        self._scheduler.on_open()
        for model in models:
            self._workers.start(self._bring_back, model)

    async def drain(self, timeout_s: float) -> None:
        """For the daemon's end: `close` and `drained`; nothing opens it again."""
        self.close(ShuttingDown("Stoker is stopping"))
        self._ending = True
        await self.drained(timeout_s)

    async def _bring_back(self, model: ModelId) -> None:
        try:
            await self._hold(str(model), Purpose.RESTORE)
        except StokerError as error:
            log.warning("restore_failed", model=str(model), code=error.code, reason=error.message)

    # --- requests ----------------------------------------------------------------------------

    def lease(
        self, model: str, *, capability: Capability | None = None
    ) -> AbstractAsyncContextManager[Lease]:
        """Use a model: it is loaded when it is not, and stays loaded inside the context.

        Raises UnknownModel, NotCapable, BlobDamaged, MemoryShort, QueueFull, WaitTimeout,
        WorkerFailed, WorkerTimeout, ServerOff, ShuttingDown.
        """
        return self._lease(model, capability, Purpose.REQUEST)

    @asynccontextmanager
    async def _lease(
        self, name: str, capability: Capability | None, purpose: Purpose
    ) -> AsyncIterator[Lease]:
        model = self._resolve(name, capability)
        grant = await self._granted(model, purpose)
        running = self._workers.get(model)
        if running is None:  # it died in the moment between the grant and now
            raise WorkerLost(f"the engine of {model} was lost before the request", sent=False)
        self._last.remember(model)
        running.leases += 1
        try:
            yield Lease(
                model,
                running.worker,
                running.upstream,
                running.plan.context,
                lambda tokens: running.rate.add(tokens, self._clock()),
            )
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
            self._workers.release(running)
            released = self._scheduler.on_released(model, grant.generation, self._clock())
            self._dispatch(released)

    async def load(self, model: str, *, keep_alive_s: float | None = None) -> ModelView:
        """Return when the model is ready. Raises as `lease` does."""
        found = await self._hold(model, Purpose.LOAD, keep_alive_s)
        return self.view(found)

    async def use(self, model: str) -> ModelView:
        """Return when it is ready; all other models that are not pinned leave.

        They leave when no request runs on them or waits for them any more. When the load fails
        they stay. Raises as `lease` does, and CapacityError when another model was used
        meanwhile: the newest use wins, and a load that only an older one waits for is given up.
        """
        return self.view(await self._hold(model, Purpose.USE))

    async def _hold(
        self, model: str, purpose: Purpose, keep_alive_s: float | None = None
    ) -> ModelId:
        async with self._lease(model, None, purpose) as lease:
            self._scheduler.keep(lease.model, keep_alive_s=keep_alive_s)
        return lease.model

    async def renew(self, model: ModelId) -> bool:
        """Replace the worker of a ready model by one with the plan of now, without a gap.

        The new one starts beside the old one and takes over when it is ready; the old one serves
        what it began, then stops. False, and the old one stays, when nothing would change, when
        both do not fit in the memory, or when the new one fails.
        """
        with anyio.move_on_after(self._settings.load_timeout_s):
            await self._until(lambda: not self._workers.loading)
        ready = self._scheduler.standing(model).state is ModelState.READY
        renewed = ready and not self._workers.loading and await self._workers.renew(model)
        if renewed:
            self._announcer.tell(model)
        return renewed

    async def free(self) -> FreedView:
        """Unload all models that are idle and not pinned; return when their workers are gone.

        What served last comes back at the next start all the same.
        """
        effects = self._scheduler.on_free(self._clock())
        going = {
            effect.model: running
            for effect in effects
            if isinstance(effect, Stop) and (running := self._workers.get(effect.model))
        }
        freed = sum(one.resident_bytes for one in going.values())
        self._dispatch(effects)
        with anyio.move_on_after(_GONE_TIMEOUT_S):
            await self._until(
                lambda: all(self._workers.get(model) is not one for model, one in going.items())
            )
        return FreedView(models=tuple(str(model) for model in going), bytes_freed=freed)

    async def unload(self, model: str) -> ModelView:
        """Let running requests end (for a bounded time), stop the worker, return when it is gone.

        Raises UnknownModel.
        """
        found = self._store.find(model).id
        await self.forget(found)
        return self.view(found)

    async def forget(self, model: ModelId) -> None:
        """As `unload`, for a model that is being removed or was found damaged."""
        await self._last.forget(model)
        self._dispatch(self._scheduler.on_unload(model, self._clock()))
        with anyio.move_on_after(self._settings.drain_timeout_s):
            await self._until(lambda: self._workers.is_gone(model))
            return
        self._dispatch(self._scheduler.on_unload(model, self._clock(), force=True))
        self._workers.stop(model)  # also one that the scheduler does not know any more
        with anyio.fail_after(_GONE_TIMEOUT_S):
            await self._until(lambda: self._workers.is_gone(model))

    def _resolve(self, name: str, capability: Capability | None) -> ModelId:
        manifest = self._store.find(name)  # from memory
        if manifest.damaged:
            message = f"{manifest.id} is damaged and is not served"
            raise BlobDamaged(message, model=str(manifest.id))
        if capability is not None and capability not in manifest.capabilities:
            can = ", ".join(manifest.capabilities) or "nothing that Stoker serves"
            message = f"{manifest.id} cannot do this: {capability}; it can do: {can}"
            raise NotCapable(message, model=str(manifest.id))
        self._scheduler.keep(manifest.id, pinned=manifest.pinned)
        return manifest.id

    async def _granted(self, model: ModelId, purpose: Purpose) -> Grant:
        if not self._workers.active:
            raise ShuttingDown("Stoker is not serving")
        with self._tickets.draw() as (ticket, answer):
            try:
                asked = self._scheduler.on_request(ticket, model, self._clock(), purpose)
                self._dispatch(asked)
                if not answer.done():
                    await self._wait_for(answer, model)
                return answer.result()
            except BaseException:
                now = self._clock()
                if answer.done() and not answer.cancelled() and answer.exception() is None:
                    late = answer.result()  # granted in the same moment
                    self._dispatch(self._scheduler.on_released(model, late.generation, now))
                else:
                    self._dispatch(self._scheduler.on_cancelled(ticket, now))
                raise

    async def _wait_for(self, answer: Answer, model: ModelId) -> None:
        wait_s = self._settings.wait_timeout_s
        with anyio.move_on_after(wait_s):
            await asyncio.wait((answer,))
            return
        raise WaitTimeout(f"{model} was not ready within {wait_s:g} s", wait_timeout_s=wait_s)

    # --- questions ---------------------------------------------------------------------------

    def views(self) -> tuple[ModelView, ...]:
        """Every stored model, and where it stands."""
        return tuple(self.view(manifest.id) for manifest in self._store.list())

    def view(self, model: ModelId) -> ModelView:
        """One model, whether stored or not."""
        return model_view(
            model,
            self._scheduler.standing(model),
            self._workers.get(model),
            self._clock(),
            load_s=self._workers.load_s.get(model),
        )

    def states(self) -> Mapping[ModelId, ModelState]:
        """Where each model stands that was ever asked for. Cheap."""
        return {model: self._scheduler.standing(model).state for model in self._scheduler.known()}

    def in_use(self, model: ModelId) -> bool:
        """Whether it is loaded, being loaded or waited for."""
        state = self._scheduler.standing(model).state
        return state not in {ModelState.UNLOADED, ModelState.FAILED}

    def idle_s(self) -> float:
        """How long nothing has run, waited or been loaded; 0 while something does."""
        return self._busy.idle_s

    def plan_of(self, model: ModelId) -> LaunchPlan | None:
        """The plan of its worker; None when it is not ready."""
        running = self._workers.get(model)
        return None if running is None else running.plan

    def digest_of(self, model: ModelId) -> Digest:
        """Names the content of a stored model. Raises UnknownModel."""
        return digest_of(self._store.find(str(model)))

    # --- effects -----------------------------------------------------------------------------

    def _dispatch(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            match effect:
                case Grant():
                    self._tickets.answer(effect.ticket, effect)
                case Reject():
                    self._tickets.answer(effect.ticket, effect.error)
                case Plan():
                    self._workers.plan(effect)
                case Start():
                    self._workers.launch()
                case Abort():
                    self._workers.abort()
                case Stop():
                    self._workers.stop(effect.model)
        self._workers.forget_job()
        self._announce()

    def _announce(self) -> None:
        """Tell what changed; wake those who wait for a change."""
        queued, in_flight = self._scheduler.queued, self._scheduler.in_flight
        self._metrics.queue.set(queued)
        self._metrics.in_flight.set(in_flight)
        self._busy.set(busy=bool(in_flight or queued or self._workers.loading))
        for model in self._scheduler.known():
            self._announcer.look(model, self._scheduler.standing(model))
        self._changed.set()
        self._changed = anyio.Event()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._changed.wait()
