"""Models for whoever needs one: leases, loads and unloads, told to the scheduler and carried out.

All state changes happen between two awaits on the event loop's thread: an event goes into the
scheduler and its effects are dispatched at once, so there is never a moment in which the
scheduler believes something else than what is on its way. Not for: decisions (`scheduler`,
`eviction`, `loading`), or the worker processes (`workers`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Final

import anyio
import structlog
from anyio.abc import TaskStatus
from anyio.to_thread import run_sync

from stoker.engine.base import Engine
from stoker.errors import BadReference, Overtaken, ShuttingDown, StokerError, UnknownModel
from stoker.events import EventBus
from stoker.hardware.facts import HardwareFacts
from stoker.lifecycle.announce import Announcer
from stoker.lifecycle.budget import Room, with_memory
from stoker.lifecycle.busy import Busy
from stoker.lifecycle.conversations import Conversations
from stoker.lifecycle.default import DefaultModel
from stoker.lifecycle.effects import (
    Abort,
    Effect,
    Grant,
    Plan,
    Reject,
    Shrink,
    Start,
    Stop,
    Waiting,
)
from stoker.lifecycle.eviction import Candidate
from stoker.lifecycle.last_served import LastServed
from stoker.lifecycle.launching import Launcher
from stoker.lifecycle.leases import Leases
from stoker.lifecycle.planning import Known, Means, Seen, as_told, digest_of
from stoker.lifecycle.record import CANCELLED, Note, Record, nobody
from stoker.lifecycle.rungs import Rungs
from stoker.lifecycle.running import Lease, model_view
from stoker.lifecycle.scheduler import Scheduler
from stoker.lifecycle.tending import Tending
from stoker.lifecycle.tickets import Seat
from stoker.lifecycle.tracked import Purpose
from stoker.lifecycle.workers import Workers
from stoker.metrics import Metrics
from stoker.paths import Paths
from stoker.schemas import DefaultChanged, FreedView, ModelView, StoreChanged
from stoker.settings import Settings
from stoker.store.store import Store
from stoker.tuning.launch import LaunchPlan
from stoker.types import Capability, Digest, ModelId, ModelState

log = structlog.get_logger(__name__)

_LEAST_WAIT_S: Final = 0.001  # a timer that fires a hair early would be set again and again
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
        places: Paths,
        known: Known | None = None,
        note: Note = nobody,
        seen: Seen = as_told,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self._scheduler = Scheduler(
            max_queue=settings.max_queue, keep_alive_s=settings.keep_alive_s
        )
        means = Means(store, engine, hardware, settings, bus, metrics, known, seen)
        limit_bytes = settings.conversations_bytes if settings.keep_conversations else 0
        self._conversations = Conversations(places.conversations, limit_bytes)
        self._rungs = Rungs(places.rungs, self._start)
        launcher = Launcher(means, self._conversations, self._rungs, clock)
        self._record = Record(metrics, note)
        self._workers = Workers(
            means, launcher, self._record, self._scheduler, self._dispatch, clock
        )
        self._tending = Tending(means, self._scheduler, self._workers, self._dispatch, clock)
        self.relieve = self._tending.relieve
        self._last = LastServed(places.last_served, self._workers.start)
        self._default = DefaultModel(
            places.default_model,
            served=lambda: self._last.model,
            knows=store.knows,
            only=self._only_model,
            start=self._workers.start,
        )
        self._leases = Leases(
            store=store,
            settings=settings,
            scheduler=self._scheduler,
            workers=self._workers,
            last=self._last,
            dispatch=self._dispatch,
            record=self._record,
            clock=clock,
        )
        self._bus = bus
        self._announcer = Announcer(bus, self.view)
        self._told_default: ModelId | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._changed = anyio.Event()
        self._busy = Busy(clock)
        self.on_busy = self._busy.watch
        self._ending = False
        metrics.watch(self.views)

    # --- life --------------------------------------------------------------------------------

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Own every task and worker until cancelled; then no worker is left."""
        await self._default.recall()
        await self._last.recall()
        manifests = self._store.list()
        for manifest in manifests:
            if manifest.pinned or str(manifest.id) in self._settings.models:
                self._leases.tell_wishes(manifest.id, pinned=manifest.pinned)
        stored = frozenset(map(digest_of, manifests))
        await run_sync(self._conversations.tidy, stored)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._watch_store)
                await self._workers.run(task_status=task_status)
        finally:
            self._set_alarm(None)
            self._leases.refuse_all(ShuttingDown("Stoker is stopping"))
            self._announcer.close()

    async def restore(self) -> None:
        """Load what served last. Never raises: a daemon without a model is still a daemon."""
        model = self._last.model if self._settings.restore_last else None
        if model is not None:
            await self._bring_back(model)

    def recall_load_times(self, seconds: Mapping[str, float]) -> None:
        """How long loads took before this daemon started, by model."""
        for name, taken in seconds.items():
            try:
                self._scheduler.recall_load_s(ModelId.parse(name), taken)
            except BadReference:
                continue  # a row that somebody else wrote

    def tick(self) -> None:
        """Unload what has been idle for its keep_alive, and what has hung.

        Called every five seconds by a job.
        """
        self._tending.tick()
        self._announcer.pulse()

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
            await self._leases.hold(str(model), Purpose.RESTORE)
        except StokerError as error:
            log.warning("restore_failed", model=str(model), code=error.code, reason=error.message)

    # --- requests ----------------------------------------------------------------------------

    def lease(
        self,
        model: str,
        *,
        capability: Capability | None = None,
        keep_alive_s: float | None = None,
        seat: Seat | None = None,
    ) -> AbstractAsyncContextManager[Lease]:
        """Use a model: it is loaded when it is not, and stays loaded inside the context.

        ``keep_alive_s`` is how long it stays afterwards, until somebody else uses it; None: as
        long as it always does. With the ``seat``, `waiting` tells how it stands in the queue.

        Raises UnknownModel, NotCapable, BlobDamaged, MemoryShort, QueueFull, WaitTimeout,
        WorkerFailed, WorkerTimeout, ServerOff, ShuttingDown.
        """
        return self._leases.lease(model, capability, keep_alive_s=keep_alive_s, seat=seat)

    def waiting(self, seat: Seat) -> Waiting | None:
        """How a request stands in the queue; None when it does not wait."""
        return self._leases.waiting(seat)

    async def load(self, model: str, *, keep_alive_s: float | None = None) -> ModelView:
        """Return when the model is ready. Raises as `lease` does."""
        return self.view(await self._leases.hold(model, Purpose.LOAD, keep_alive_s))

    async def use(self, model: str) -> ModelView:
        """Make it the default, and return when it is ready; all others leave but the pinned ones.

        They leave when no request runs on them or waits for them any more. Requests that name no
        model go to the new one from now on. When its load fails, the default stays what it was
        and is loaded again if it had to leave. Raises as `lease` does, and Overtaken when
        another model was used meanwhile: the newest use wins, and a load that only an older one
        waits for is given up.
        """
        found, began = self._leases.resolve(model), self._clock()
        before = self._default.get()
        was_loaded = before is not None and before != found and self.in_use(before)
        result = ModelState.READY.value
        try:
            with self._default.changing(found):
                await self._leases.hold(str(found), Purpose.USE)
        except BaseException as error:
            result = error.code if isinstance(error, StokerError) else CANCELLED
            if was_loaded and before is not None and not isinstance(error, Overtaken):
                self._workers.start(self._bring_back, before)
            raise
        finally:
            self._record.switched(found, self._clock() - began, result)
            self._tell_default()
        return self.view(found)

    def default_model(self) -> ModelId | None:
        """Where requests go that name no model; None when nothing says so."""
        return self._default.get()

    async def pin(self, model: str, *, pinned: bool) -> ModelView:
        """Whether it may be evicted or unloaded for being idle; nothing is loaded.

        Raises UnknownModel.
        """
        found = self._store.find(model).id
        await run_sync(partial(self._store.pin, found, pinned=pinned))
        self._leases.tell_wishes(found, pinned=pinned)
        self._announcer.tell(found)
        return self.view(found)

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
        await self._stop(found)
        return self.view(found)

    async def forget(self, model: ModelId) -> None:
        """As `unload`, for a model that is being removed or was found damaged.

        Nothing of its conversations is left.
        """
        await self._stop(model, for_good=True)
        try:
            digest = self.digest_of(model)
        except UnknownModel:
            return
        self._rungs.forget(digest)
        await run_sync(self._conversations.forget, digest)

    async def _stop(self, model: ModelId, *, for_good: bool = False) -> None:
        """End the workers of this moment; ``for_good``: and any that a request begins meanwhile."""
        self._last.forget(model)
        old = [running for name, running in self._workers.all() if name == model]

        def gone() -> bool:
            if for_good or not old:
                return self._workers.is_gone(model)
            return not any(one is other for _, one in self._workers.all() for other in old)

        self._dispatch(self._scheduler.on_unload(model, self._clock()))
        with anyio.move_on_after(self._settings.drain_timeout_s):
            await self._until(gone)
            return
        if for_good:
            self._dispatch(self._scheduler.on_unload(model, self._clock(), force=True))
        else:
            self._dispatch(self._scheduler.on_overdue(model, self._clock()))
        self._workers.stop(model)  # also one that the scheduler does not know any more
        with anyio.fail_after(_GONE_TIMEOUT_S):
            await self._until(gone)

    # --- questions ---------------------------------------------------------------------------

    def views(self) -> tuple[ModelView, ...]:
        """Every stored model, and where it stands."""
        return tuple(self.view(manifest.id) for manifest in self._store.list())

    def view(self, model: ModelId) -> ModelView:
        """One model, whether stored or not."""
        now = self._clock()
        return model_view(
            model,
            self._scheduler.standing(model),
            self._workers.get(model),
            now,
            expected_load_s=self._scheduler.expected_load_s(model),
            loading_s=self._scheduler.loading_s(model, now),
            default=model == self._default.get(),
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

    def room_for(
        self, model: ModelId, hardware: HardwareFacts
    ) -> tuple[Room, tuple[Candidate, ...]]:
        """What a load of this model would find, had its own workers gone, and who may leave for it.

        ``hardware`` is as of a moment ago. A renewal on its way is left out: it gives way to loads.
        """
        own = [running for name, running in self._workers.all() if name == model]
        others = [running for name, running in self._workers.all() if name != model]
        room = Room(
            with_memory(
                hardware,
                sum(running.taken_bytes for running in own),
                sum(running.plan.memory.gpu_bytes for running in own),
            ),
            promised_bytes=sum(running.promised_bytes for running in others),
            taken_bytes=sum(running.counted_bytes for running in others),
            limit_bytes=self._settings.memory_limit_bytes,
        )
        candidates = self._workers.with_gpu(self._scheduler.candidates(self._clock()))
        return room, tuple(one for one in candidates if one.model != model)

    async def rung(self, model: Digest, runtime: str) -> int:
        """How far a load would be held back, after loads that failed (`ladder`). Never raises."""
        return await self._rungs.rung(model, runtime)

    def digest_of(self, model: ModelId) -> Digest:
        """Names the content of a stored model. Raises UnknownModel."""
        return digest_of(self._store.find(str(model)))

    def _start(self, task: Callable[..., object], *args: object) -> None:
        self._workers.start(task, *args)

    # --- effects -----------------------------------------------------------------------------

    def _dispatch(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            match effect:
                case Grant():
                    self._leases.answer(effect.ticket, effect)
                case Reject():
                    self._leases.answer(effect.ticket, effect.error)
                case Plan():
                    self._workers.plan(effect)
                case Start():
                    self._workers.launch()
                case Abort():
                    self._workers.abort()
                case Stop():
                    self._workers.stop(effect.model, effect.why)
                case Shrink():
                    self._workers.start(self._workers.shrink, effect.model)
        self._workers.forget_job()
        self._announce()

    def _announce(self) -> None:
        """Tell what changed; wake those who wait for a change."""
        scheduler = self._scheduler
        busy = bool(scheduler.in_flight or scheduler.queued or self._workers.loading)
        self._busy.set(busy=busy)
        for model in self._scheduler.known():
            self._announcer.look(model, self._scheduler.standing(model))
        self._tell_default()
        self._set_alarm(self._scheduler.wake_at)
        self._changed.set()
        self._changed = anyio.Event()

    def _only_model(self) -> ModelId | None:
        manifests = self._store.list()
        return manifests[0].id if len(manifests) == 1 else None

    async def _watch_store(self) -> None:
        """A model that comes or goes may change the default."""
        with self._bus.subscribe(client=False, resources=False) as changes:
            async for event in changes:
                if event is None or isinstance(event, StoreChanged):
                    self._tell_default()

    def _tell_default(self) -> None:
        """Publish where requests go that name no model, when that is news."""
        before, now = self._told_default, self._default.get()
        if before == now:
            return
        self._told_default = now
        self._bus.publish(DefaultChanged(model=None if now is None else str(now)))
        for model in (before, now):
            if model is not None:
                self._announcer.tell(model)

    def _set_alarm(self, at: float | None) -> None:
        """The scheduler wants to look again then."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if at is not None and self._workers.active:
            wait_s = max(_LEAST_WAIT_S, at - self._clock())
            self._alarm = asyncio.get_running_loop().call_later(wait_s, self._wake)

    def _wake(self) -> None:
        self._alarm = None
        self._dispatch(self._scheduler.on_wake(self._clock()))

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._changed.wait()
