"""Carries out loads and stops: the worker processes, and the one load that is on its way.

Tells the scheduler what came of each. Not for: who waits for a model (`runtime`), or any decision
(`scheduler`, `loading`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import anyio
import structlog
from anyio.abc import TaskGroup, TaskStatus
from anyio.to_thread import run_sync

from stoker.engine.base import Engine
from stoker.engine.upstream import Upstream
from stoker.engine.worker import failure
from stoker.errors import BlobDamaged, CapacityError, InternalError, StokerError, WorkerTimeout
from stoker.events import EventBus
from stoker.hardware.facts import HardwareFacts
from stoker.lifecycle import loading
from stoker.lifecycle.effects import Effect, Plan
from stoker.lifecycle.eviction import Choice
from stoker.lifecycle.running import Job, Running
from stoker.lifecycle.scheduler import Scheduler
from stoker.metrics import Metrics
from stoker.schemas import StoreChanged
from stoker.settings import Settings
from stoker.store.store import Store
from stoker.tuning.launch import LaunchPlan
from stoker.types import ModelId

log = structlog.get_logger(__name__)

_STOP_GRACE_S: Final = 5.0  # nothing runs any more when a worker is asked to stop
_FORCED_GRACE_S: Final = 0.5
# Requests given to a worker beyond its slots: short ones (tokenize) need no slot, and a slot that
# falls free is filled at once. The engine has that many HTTP threads to spare.
_EXTRA_PLACES: Final = 4


@dataclass(frozen=True, slots=True)
class Means:
    """What a load takes."""

    store: Store
    engine: Engine
    hardware: Callable[[], HardwareFacts]
    settings: Settings
    bus: EventBus
    metrics: Metrics


class Workers:
    """Every worker of the daemon. Used from the event loop's thread only, as `runtime` is.

    What comes of a load or a stop goes into the scheduler, and its effects to ``dispatch``.
    """

    def __init__(
        self,
        means: Means,
        scheduler: Scheduler,
        dispatch: Callable[[Iterable[Effect]], None],
        clock: Callable[[], float],
    ) -> None:
        self._means = means
        self._scheduler = scheduler
        self._dispatch = dispatch
        self._clock = clock
        self._tasks: TaskGroup | None = None
        self._running: dict[ModelId, Running] = {}
        self._job: Job | None = None
        self.load_s: dict[ModelId, float] = {}  # how long each model's last good load took

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Own every task and worker until cancelled; then no worker is left."""
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                task_status.started()
                await anyio.sleep_forever()
        finally:
            self._tasks = None
            with anyio.CancelScope(shield=True):
                for running in tuple(self._running.values()):
                    await self._stop_worker(running, _FORCED_GRACE_S)
                    running.upstream.close()
                self._running.clear()

    @property
    def active(self) -> bool:
        """Whether there is somebody to carry things out."""
        return self._tasks is not None

    def start(self, task: Callable[..., object], *args: object) -> None:
        """Run a coroutine function beside everything else, until the daemon ends."""
        if self._tasks is not None:  # else the daemon is ending, and `run` stops all workers
            self._tasks.start_soon(task, *args)  # type: ignore[arg-type]  # all are coroutines

    # --- questions ---------------------------------------------------------------------------

    def get(self, model: ModelId) -> Running | None:
        return self._running.get(model)

    def all(self) -> tuple[tuple[ModelId, Running], ...]:
        return tuple(self._running.items())

    @property
    def loading(self) -> bool:
        return self._job is not None

    @property
    def none_left(self) -> bool:
        return not self._running and self._job is None

    def is_gone(self, model: ModelId) -> bool:
        """Neither loaded nor being loaded."""
        loading_it = self._job is not None and self._job.model == model
        return model not in self._running and not loading_it

    # --- orders ------------------------------------------------------------------------------

    def plan(self, effect: Plan) -> None:
        if self._job is None or self._job.model != effect.model:
            self._job = Job(effect.model, started_at=self._clock())
        self._job.scope = anyio.CancelScope()
        self.start(self._do_plan, self._job, effect)

    def launch(self) -> None:
        if self._job is not None:
            self._job.scope = anyio.CancelScope()
            self.start(self._do_launch, self._job)

    def abort(self) -> None:
        if self._job is not None:
            self._job.scope.cancel()

    def stop(self, model: ModelId) -> None:
        running = self._running.get(model)
        if running is not None:
            running.asked = True
            self.start(self._stop_worker, running, _STOP_GRACE_S)

    def settle(self) -> None:
        """After an order: forget a load that nobody waits for and of which nothing was running."""
        if self._job is not None and self._scheduler.current != self._job.model:
            self._job = None

    # --- carrying them out -------------------------------------------------------------------

    async def _do_plan(self, job: Job, effect: Plan) -> None:
        with job.scope:
            try:
                choice = await self._plan(job, effect)
            except StokerError as error:
                if isinstance(error, BlobDamaged):
                    self._means.bus.publish(StoreChanged(id=str(job.model), change="damaged"))
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
        means = self._means
        job.loadable = await run_sync(
            loading.examine, means.store, job.model, abandon_on_cancel=True
        )
        safe_mode = await means.engine.prepare(job.loadable.path)
        hardware = await run_sync(means.hardware, abandon_on_cancel=True)
        return loading.plan_load(
            job.loadable,
            hardware,
            loading.wishes(means.settings, safe_mode=safe_mode),
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
        timeout_s = self._means.settings.load_timeout_s
        worker = await self._means.engine.launch(job.plan, timeout_s=timeout_s)
        upstream = Upstream(worker.address, worker.key)
        return Running(job.loadable.manifest, job.plan, worker, upstream)

    def _ready(self, job: Job, running: Running) -> None:
        self._job = None
        self._running[job.model] = running
        self.start(self._watch, job.model, running)
        seconds = self._clock() - job.started_at
        self.load_s[job.model] = seconds
        self._means.metrics.loads.labels("ok").inc()
        self._means.metrics.load_seconds.observe(seconds)
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
        self._means.metrics.loads.labels(error.code).inc()
        log.warning("load_failed", model=str(job.model), code=error.code, reason=error.message)
        self._dispatch(
            self._scheduler.on_failed(job.model, error, self._clock(), back_off=back_off)
        )

    def _aborted(self, job: Job) -> None:
        """Nothing is left of a load that nobody waits for."""
        self._job = None
        self._means.metrics.loads.labels("cancelled").inc()
        log.info("load_cancelled", model=str(job.model))
        self._dispatch(self._scheduler.on_exited(job.model, None, self._clock()))

    async def _watch(self, model: ModelId, running: Running) -> None:
        """Notice the worker's end, whoever caused it."""
        report = await running.worker.wait()
        running.upstream.close()
        self._running.pop(model, None)
        self._means.metrics.worker_resident_bytes.remove(str(model))
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


def _bug(error: Exception) -> InternalError:
    log.error("load_crashed", exc_info=error)
    return InternalError(f"loading failed: {type(error).__name__}")
