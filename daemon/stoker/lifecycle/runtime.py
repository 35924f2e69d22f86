"""Carries out what the scheduler decides, and tells it what came of it.

All state changes happen between two awaits on the event loop's thread: an event goes into the
scheduler and its effects are dispatched at once, so there is never a moment in which the
scheduler believes something else than what is on its way. Not for: decisions (`scheduler`,
`eviction`, `loading`).
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Final

import anyio
import structlog
from anyio.abc import TaskGroup, TaskStatus
from anyio.to_thread import run_sync

from stoker.engine.base import Engine
from stoker.engine.upstream import Upstream
from stoker.engine.worker import failure
from stoker.errors import (
    BlobDamaged,
    CapacityError,
    InternalError,
    NotCapable,
    ShuttingDown,
    StokerError,
    WaitTimeout,
    WorkerLost,
    WorkerTimeout,
)
from stoker.events import EventBus
from stoker.hardware.facts import HardwareFacts
from stoker.lifecycle import last_served, loading
from stoker.lifecycle.effects import Abort, Effect, Grant, Plan, Reject, Start, Stop
from stoker.lifecycle.eviction import Choice
from stoker.lifecycle.running import Job, Lease, Running, model_view
from stoker.lifecycle.scheduler import Scheduler
from stoker.metrics import Metrics
from stoker.schemas import ModelChanged, ModelView, StoreChanged
from stoker.settings import Settings
from stoker.store.store import Store
from stoker.tuning.launch import LaunchPlan
from stoker.types import Capability, ModelId, ModelState

log = structlog.get_logger(__name__)

_STOP_GRACE_S: Final = 5.0  # nothing runs any more when a worker is asked to stop
_FORCED_GRACE_S: Final = 0.5
_NOTICE_S: Final = 1.0  # from a cut connection to the report of the process's end
_GONE_TIMEOUT_S: Final = 45.0  # more than `Worker.stop` ever takes
# Requests given to a worker beyond its slots: short ones (tokenize) need no slot, and a slot that
# falls free is filled at once. The engine has that many HTTP threads to spare.
_EXTRA_PLACES: Final = 4


class Lifecycle:
    """Loads, serves and unloads models. Made once; used from the event loop's thread only."""

    def __init__(
        self,
        *,
        store: Store,
        engine: Engine,
        hardware: Callable[[], HardwareFacts],
        settings: Settings,
        bus: EventBus,
        metrics: Metrics,
        last_served: Path,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._engine = engine
        self._hardware = hardware
        self._settings = settings
        self._bus = bus
        self._metrics = metrics
        self._last_file = last_served
        self._clock = clock
        self._scheduler = Scheduler(
            max_queue=settings.max_queue, keep_alive_s=settings.keep_alive_s
        )
        self._tasks: TaskGroup | None = None
        self._running: dict[ModelId, Running] = {}
        self._job: Job | None = None
        self._waiting: dict[int, asyncio.Future[Grant]] = {}
        self._tickets = itertools.count(1)
        self._changed = anyio.Event()
        self._shown: dict[ModelId, tuple[tuple[object, ...], bool, bool]] = {}
        self._last: ModelId | None = None
        self._last_lock = anyio.Lock()
        self._last_busy = clock()
        self._was_busy = False

    # --- life --------------------------------------------------------------------------------

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Own every task and worker until cancelled; then no worker is left."""
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                task_status.started()
                await anyio.sleep_forever()
        finally:
            self._tasks = None
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(ShuttingDown("Stoker is stopping"))
            with anyio.CancelScope(shield=True):
                for running in tuple(self._running.values()):
                    await self._stop_worker(running, _FORCED_GRACE_S)
                    running.upstream.close()
                self._running.clear()

    async def restore(self) -> None:
        """Load what served last. Never raises: a daemon without a model is still a daemon."""
        if not self._settings.restore_last:
            return
        model = await run_sync(last_served.read, self._last_file)
        if model is None:
            return
        try:
            await self.load(str(model))
        except StokerError as error:
            log.warning("restore_failed", model=str(model), code=error.code, reason=error.message)

    async def drain(self, timeout_s: float) -> None:
        """Refuse new requests, wait for those in flight, stop all. No worker is left."""
        self._dispatch(self._scheduler.on_drain(self._clock()))
        with anyio.move_on_after(timeout_s):
            await self._until(self._all_gone)
            return
        log.info("drain_forced", in_flight=self._scheduler.in_flight)
        self._dispatch(self._scheduler.on_drain(self._clock(), force=True))
        with anyio.move_on_after(_GONE_TIMEOUT_S):
            await self._until(self._all_gone)

    def tick(self) -> None:
        """Unload what has been idle for its keep_alive, and what has hung.

        Called every five seconds by a job.
        """
        self._dispatch(self._scheduler.on_tick(self._clock()))
        for model, running in tuple(self._running.items()):
            resident = running.worker.resident_bytes() or 0
            self._metrics.worker_resident_bytes.labels(str(model)).set(resident)
            requests = self._scheduler.standing(model).in_flight
            if running.vigil.has_hung(running.cpu_s(), requests, running.rate.total):
                log.warning("worker_hung", model=str(model), pid=running.worker.pid)
                self._dispatch(self._scheduler.on_hung(model, self._clock()))

    # --- requests ----------------------------------------------------------------------------

    def lease(
        self, model: str, *, capability: Capability | None = None
    ) -> AbstractAsyncContextManager[Lease]:
        """Use a model: it is loaded when it is not, and stays loaded inside the context.

        Raises UnknownModel, NotCapable, BlobDamaged, MemoryShort, QueueFull, WaitTimeout,
        WorkerFailed, WorkerTimeout, ShuttingDown.
        """
        return self._lease(model, capability)

    @asynccontextmanager
    async def _lease(self, name: str, capability: Capability | None) -> AsyncIterator[Lease]:
        model = self._resolve(name, capability)
        ticket = next(self._tickets)
        grant = await self._granted(ticket, model)
        running = self._running.get(model)
        if running is None:  # it died in the moment between the grant and now
            raise WorkerLost(f"the engine of {model} was lost before the request", sent=False)
        self._remember(model)
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
            suspect = self._scheduler.on_suspect(model, grant.generation, self._clock())
            self._dispatch(suspect)
            with anyio.move_on_after(_NOTICE_S):
                await running.worker.wait()
            raise
        finally:
            released = self._scheduler.on_released(model, grant.generation, self._clock())
            self._dispatch(released)

    async def load(self, model: str, *, keep_alive_s: float | None = None) -> ModelView:
        """Return when the model is ready. Raises as `lease` does."""
        async with self._lease(model, None) as lease:
            self._scheduler.keep(lease.model, keep_alive_s=keep_alive_s)
        return self._view(lease.model)

    async def unload(self, model: str) -> ModelView:
        """Let running requests end (for a bounded time), stop the worker, return when it is gone.

        Raises UnknownModel.
        """
        found = self._store.find(model).id
        await self.forget(found)
        return self._view(found)

    async def forget(self, model: ModelId) -> None:
        """As `unload`, for a model that is being removed or was found damaged."""
        if self._last == model or await run_sync(last_served.read, self._last_file) == model:
            self._remember(None)
        self._dispatch(self._scheduler.on_unload(model, self._clock()))
        with anyio.move_on_after(self._settings.drain_timeout_s):
            await self._until(lambda: self._gone(model))
            return
        self._dispatch(self._scheduler.on_unload(model, self._clock(), force=True))
        with anyio.fail_after(_GONE_TIMEOUT_S):
            await self._until(lambda: self._gone(model))

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

    async def _granted(self, ticket: int, model: ModelId) -> Grant:
        if self._tasks is None:
            raise ShuttingDown("Stoker is not serving")
        future: asyncio.Future[Grant] = asyncio.get_running_loop().create_future()
        self._waiting[ticket] = future
        try:
            self._dispatch(self._scheduler.on_request(ticket, model, self._clock()))
            if not future.done():
                await self._wait_for(future, model)
            return future.result()
        except BaseException:
            if future.done() and not future.cancelled() and future.exception() is None:
                late = future.result()  # granted in the same moment
                self._dispatch(self._scheduler.on_released(model, late.generation, self._clock()))
            else:
                self._dispatch(self._scheduler.on_cancelled(ticket, self._clock()))
            raise
        finally:
            del self._waiting[ticket]

    async def _wait_for(self, future: asyncio.Future[Grant], model: ModelId) -> None:
        wait_s = self._settings.wait_timeout_s
        with anyio.move_on_after(wait_s):
            await asyncio.wait((future,))
            return
        raise WaitTimeout(f"{model} was not ready within {wait_s:g} s", wait_timeout_s=wait_s)

    # --- questions ---------------------------------------------------------------------------

    def views(self) -> tuple[ModelView, ...]:
        """Every stored model, and where it stands."""
        return tuple(self._view(manifest.id) for manifest in self._store.list())

    def view(self, model: ModelId) -> ModelView:
        """One model, whether stored or not."""
        return self._view(model)

    def in_use(self, model: ModelId) -> bool:
        """Whether it is loaded, being loaded or waited for."""
        state = self._scheduler.standing(model).state
        return state not in {ModelState.UNLOADED, ModelState.FAILED}

    def idle_s(self) -> float:
        """How long nothing has run, waited or been loaded; 0 while something does."""
        return max(0.0, self._clock() - self._last_busy) if not self._is_busy() else 0.0

    def _is_busy(self) -> bool:
        return bool(self._scheduler.in_flight or self._scheduler.queued or self._job)

    def _view(self, model: ModelId) -> ModelView:
        return model_view(
            model,
            self._scheduler.standing(model),
            self._running.get(model),
            self._clock(),
            engine=self._engine.name,
            runtime=self._engine.runtime,
        )

    def _gone(self, model: ModelId) -> bool:
        loading_it = self._job is not None and self._job.model == model
        return model not in self._running and not loading_it

    def _all_gone(self) -> bool:
        return not self._running and self._job is None

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._changed.wait()

    # --- effects -----------------------------------------------------------------------------

    def _dispatch(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            match effect:
                case Grant():
                    self._answer(effect.ticket, effect)
                case Reject():
                    self._answer(effect.ticket, effect.error)
                case Plan():
                    self._spawn_plan(effect)
                case Start():
                    self._spawn_launch()
                case Abort():
                    if self._job is not None:
                        self._job.scope.cancel()
                case Stop():
                    self._spawn_stop(effect.model)
        if self._job is not None and self._scheduler.current != self._job.model:
            self._job = None  # nobody waits for it any more, and nothing of it was running
        self._announce()

    def _answer(self, ticket: int, answer: Grant | StokerError) -> None:
        future = self._waiting.get(ticket)
        if future is None or future.done():
            # Its task was cancelled and is about to say so; a grant is then given back there.
            return
        if isinstance(answer, Grant):
            future.set_result(answer)
        else:
            future.set_exception(_fresh(answer))

    def _spawn_plan(self, effect: Plan) -> None:
        if self._job is None or self._job.model != effect.model:
            self._job = Job(effect.model, started_at=self._clock())
        self._job.scope = anyio.CancelScope()
        self._start(self._do_plan, self._job, effect)

    def _spawn_launch(self) -> None:
        if self._job is not None:
            self._job.scope = anyio.CancelScope()
            self._start(self._do_launch, self._job)

    def _spawn_stop(self, model: ModelId) -> None:
        running = self._running.get(model)
        if running is not None:
            running.asked = True
            self._start(self._stop_worker, running, _STOP_GRACE_S)

    def _start(self, task: Callable[..., object], *args: object) -> None:
        if self._tasks is not None:  # else the daemon is ending, and `run` stops all workers
            self._tasks.start_soon(task, *args)  # type: ignore[arg-type]  # all are coroutines

    async def _do_plan(self, job: Job, effect: Plan) -> None:
        with job.scope:
            try:
                choice = await self._plan(job, effect)
            except StokerError as error:
                if isinstance(error, BlobDamaged):
                    self._bus.publish(StoreChanged(id=str(job.model), change="damaged"))
                short = isinstance(error, CapacityError)
                self._failed(job, error, back_off=not short)
                return
            except Exception as error:  # noqa: BLE001  # task boundary: a bug must not end the daemon
                self._failed(job, _bug(error))
                return
            if not job.scope.cancel_called:
                job.plan = choice.plan
                size, now = choice.plan.memory.total_bytes, self._clock()
                self._dispatch(
                    self._scheduler.on_planned(
                        job.model, size, choice.victims, now, wait=choice.wait
                    )
                )
                return
        self._aborted(job)

    async def _plan(self, job: Job, effect: Plan) -> Choice[LaunchPlan]:
        job.loadable = await run_sync(
            loading.examine, self._store, job.model, abandon_on_cancel=True
        )
        safe_mode = await self._engine.prepare(job.loadable.path)
        hardware = await run_sync(self._hardware, abandon_on_cancel=True)
        return loading.plan_load(
            job.loadable,
            hardware,
            loading.wishes(self._settings, safe_mode=safe_mode),
            promised_bytes=sum(one.promised_bytes for one in self._running.values()),
            candidates=effect.candidates,
        )

    async def _do_launch(self, job: Job) -> None:
        with job.scope:
            try:
                running = await self._launch(job)
            except StokerError as error:
                self._failed(job, error)
                return
            except Exception as error:  # noqa: BLE001  # task boundary: a bug must not end the daemon
                self._failed(job, _bug(error))
                return
            if not job.scope.cancel_called:
                self._ready(job, running)
                return
            with anyio.CancelScope(shield=True):  # ready in the moment of the abort
                await running.worker.stop(_FORCED_GRACE_S)
        self._aborted(job)

    async def _launch(self, job: Job) -> Running:
        if job.plan is None or job.loadable is None:
            raise InternalError("a launch without a plan")
        worker = await self._engine.launch(job.plan, timeout_s=self._settings.load_timeout_s)
        upstream = Upstream(worker.address, worker.key)
        return Running(job.loadable.manifest, job.plan, worker, upstream)

    def _ready(self, job: Job, running: Running) -> None:
        self._job = None
        self._running[job.model] = running
        self._start(self._watch, job.model, running)
        seconds = self._clock() - job.started_at
        self._metrics.loads.labels("ok").inc()
        self._metrics.load_seconds.observe(seconds)
        log.info(
            "model_ready",
            model=str(job.model),
            pid=running.worker.pid,
            seconds=round(seconds, 2),
            context=running.plan.context,
        )
        places = running.plan.parallel + _EXTRA_PLACES
        self._dispatch(self._scheduler.on_ready(job.model, places, self._clock()))

    def _failed(self, job: Job, error: StokerError, *, back_off: bool = True) -> None:
        self._job = None
        self._metrics.loads.labels(error.code).inc()
        log.warning("load_failed", model=str(job.model), code=error.code, reason=error.message)
        self._dispatch(
            self._scheduler.on_failed(job.model, error, self._clock(), back_off=back_off)
        )

    def _aborted(self, job: Job) -> None:
        """Nothing is left of a load that nobody waits for."""
        self._job = None
        self._metrics.loads.labels("cancelled").inc()
        log.info("load_cancelled", model=str(job.model))
        self._dispatch(self._scheduler.on_exited(job.model, None, self._clock()))

    async def _watch(self, model: ModelId, running: Running) -> None:
        """Notice the worker's end, whoever caused it."""
        report = await running.worker.wait()
        running.upstream.close()
        self._running.pop(model, None)
        self._metrics.worker_resident_bytes.remove(str(model))
        error = None if running.asked or report.asked else failure(report)
        log.info(
            "worker_ended",
            model=str(model),
            pid=running.worker.pid,
            kind=report.kind and report.kind.value,
            returncode=report.returncode,
        )
        self._dispatch(self._scheduler.on_exited(model, error, self._clock()))

    async def _stop_worker(self, running: Running, grace_s: float) -> None:
        try:
            await running.worker.stop(grace_s)
        except WorkerTimeout as error:
            log.error("worker_stuck", pid=running.worker.pid, reason=error.message)  # noqa: TRY400

    # --- what others see ---------------------------------------------------------------------

    def _announce(self) -> None:
        """Publish what changed; wake those who wait for a change."""
        self._metrics.queue.set(self._scheduler.queued)
        self._metrics.in_flight.set(self._scheduler.in_flight)
        busy = self._is_busy()
        if busy or self._was_busy:
            self._last_busy = self._clock()
        self._was_busy = busy
        for model in self._scheduler.known():
            standing = self._scheduler.standing(model)
            moved = (standing.state, standing.error)
            shown = (moved, standing.in_flight > 0, standing.queued > 0)
            before = self._shown.get(model, ((), False, False))
            self._shown[model] = shown
            # What only a watcher cares for is not worth a view in the middle of a request.
            if before[0] != moved or (before != shown and self._bus.watched):
                self._bus.publish(ModelChanged(model=self._view(model)))
        self._changed.set()
        self._changed = anyio.Event()

    def _remember(self, model: ModelId | None) -> None:
        if model is None or model != self._last:
            self._last = model
            self._start(self._write_last)

    async def _write_last(self) -> None:
        async with self._last_lock:
            try:
                await run_sync(last_served.write, self._last_file, self._last)
            except OSError as error:
                log.warning("last_served_not_written", reason=str(error))


def _fresh(error: StokerError) -> StokerError:
    """A copy to raise: one exception raised by many tasks would collect all their frames."""
    return type(error)(error.message, hint=error.hint, **error.facts)


def _bug(error: Exception) -> InternalError:
    log.error("load_crashed", exc_info=error)
    return InternalError(f"loading failed: {type(error).__name__}")
