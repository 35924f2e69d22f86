"""Carries out loads and stops: the worker processes, and the one load that is on its way.

Tells the scheduler what came of each. Not for: who waits for a model (`runtime`), or any decision
(`scheduler`, `loading`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Final

import anyio
import structlog
from anyio.abc import TaskGroup, TaskStatus

from stoker.engine import heartbeat
from stoker.engine.worker import failure
from stoker.errors import BlobDamaged, CapacityError, InternalError, MemoryShort, StokerError
from stoker.lifecycle.effects import Effect, Plan, Why
from stoker.lifecycle.eviction import Candidate, Choice
from stoker.lifecycle.launching import Launcher
from stoker.lifecycle.planning import Basis, Means
from stoker.lifecycle.record import CANCELLED, Record
from stoker.lifecycle.renewal import Renewals
from stoker.lifecycle.running import Job, Running
from stoker.lifecycle.scheduler import Scheduler
from stoker.schemas import StoreChanged
from stoker.tuning.launch import LaunchPlan
from stoker.types import ModelId, ModelState

log = structlog.get_logger(__name__)

_STOP_GRACE_S: Final = 5.0  # nothing runs any more when a worker is asked to stop
_FORCED_GRACE_S: Final = 0.5
_LEARN_LOOKS: Final = 12  # looks at a worker, five seconds apart, between two writes
_WORTH_BYTES: Final = 128 << 20  # what must come back for an idle worker to be replaced
# Requests given to a worker beyond its slots: short ones (tokenize) need no slot, and a slot that
# falls free is filled at once. The engine has that many HTTP threads to spare.
_EXTRA_PLACES: Final = 4


class Workers:
    """Every worker of the daemon. Used from the event loop's thread only, as `runtime` is.

    What comes of a load or a stop goes into the scheduler, and its effects to ``dispatch``.
    """

    def __init__(
        self,
        means: Means,
        launcher: Launcher,
        record: Record,
        scheduler: Scheduler,
        dispatch: Callable[[Iterable[Effect]], None],
        clock: Callable[[], float],
    ) -> None:
        self._means = means
        self._launcher = launcher
        self._record = record
        self._scheduler = scheduler
        self._dispatch = dispatch
        self._clock = clock
        self._tasks: TaskGroup | None = None
        self._running: dict[ModelId, Running] = {}
        self._retired: list[tuple[ModelId, Running]] = []  # others took over from these
        self._job: Job | None = None
        self._renewals = Renewals(means, self)
        self.renew = self._renewals.renew
        self._looks = 0

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Own every task and worker until cancelled; then no worker is left."""
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                task_status.started()
                await anyio.sleep_forever()
        finally:
            self._tasks = None
            self._means.engine.relax()
            with anyio.CancelScope(shield=True):
                for _, running in self.all():
                    running.why = Why.BROKEN  # whoever was asked to stop in time has done so
                    await self._launcher.stop(running, _FORCED_GRACE_S)
                    running.upstream.close()
                self._running.clear()
                self._retired.clear()

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
        """Every worker, those included that only serve what they began."""
        return (*self._running.items(), *self._retired)

    @property
    def promised_bytes(self) -> int:
        """What workers may still take of the memory that looks free."""
        loaded = sum(running.promised_bytes for _, running in self.all())
        return loaded + self._renewals.promised_bytes

    @property
    def taken_bytes(self) -> int:
        """What workers have taken of the memory that all may take together."""
        return sum(running.counted_bytes for _, running in self.all())

    @property
    def promised_with_load_bytes(self) -> int:
        """As `promised_bytes`, with all that the load on its way was planned to take."""
        plan = self._job.plan if self._job is not None else None
        return self.promised_bytes + (plan.memory.total_bytes if plan is not None else 0)

    def with_gpu(self, candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
        """With what each has of a GPU, which the scheduler does not know."""
        had: dict[ModelId, int] = {}
        for model, running in self.all():
            had[model] = had.get(model, 0) + running.plan.memory.gpu_bytes
        return tuple(replace(one, gpu_bytes=had.get(one.model, 0)) for one in candidates)

    @property
    def loading(self) -> bool:
        return self._job is not None

    @property
    def none_left(self) -> bool:
        return not self.all() and self._job is None and not self._renewals.active

    def is_gone(self, model: ModelId) -> bool:
        """Neither loaded nor being loaded."""
        loading_it = self._job is not None and self._job.model == model
        coming = loading_it or self._renewals.concerns(model)
        return not coming and all(name != model for name, _ in self.all())

    def inspect(self) -> tuple[ModelId, ...]:
        """Look at every worker; the models whose worker has hung. Called every five seconds.

        One that another took over from, and that hangs, is stopped here.
        """
        hung = []
        self._looks += 1
        for model, running in self.all():
            self._launcher.look(running)
            if not running.asked and self._has_hung(running):
                log.warning("worker_hung", model=str(model), pid=running.worker.pid)
                if running.retired:
                    self._end(running, Why.BROKEN)
                else:
                    hung.append(model)
            elif running.leases:
                self.start(running.pulse.take)
            if not self._looks % _LEARN_LOOKS:
                self.start(self._launcher.learn, running)
        return tuple(hung)

    @staticmethod
    def _has_hung(running: Running) -> bool:
        return running.vigil.has_hung(
            running.worker.cpu_s(),
            running.leases,
            running.rate.total,
            running.pulse.latest,
            on_gpu=running.plan.gpu_layers > 0,
        )

    def woke(self) -> None:
        """The machine slept: nobody is judged by that time, and a GPU may have lost its memory."""
        for model, running in self._running.items():
            running.vigil.refresh()
            if running.plan.gpu_layers and not running.leases:
                self.start(self._check, model, running)

    async def _check(self, model: ModelId, running: Running) -> None:
        if await heartbeat.decodes(running.worker, running.plan, timeout_s=heartbeat.DECODE_S):
            return
        if self._running.get(model) is running and not running.asked:
            log.warning("worker_lost_in_sleep", model=str(model), pid=running.worker.pid)
            self._dispatch(self._scheduler.on_hung(model, self._clock()))

    async def shrink(self, model: ModelId) -> None:
        """Give back what an idle worker remembers beyond the last conversations."""
        running = self._running.get(model)
        if running is not None and running.grown_bytes >= _WORTH_BYTES:
            await self._renewals.renew(model, afresh=True)

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

    def stop(self, model: ModelId, why: Why = Why.UNLOAD) -> None:
        self._renewals.cancel(model)
        for name, running in self.all():
            if name == model:
                self._end(running, why)

    def stop_all(self) -> None:
        for model in {name for name, _ in self.all()}:
            self.stop(model, Why.CLOSED)

    def release(self, running: Running, *, good: bool) -> None:
        """A lease on it has ended: a retired one stops with its last."""
        running.leases -= 1
        if good:
            self._launcher.answered(running)
        if running.retired and not running.leases:
            self._end(running, Why.UNLOAD)

    def _end(self, running: Running, why: Why) -> None:
        if not running.asked:
            running.asked = True
            running.why = why
            # One that hangs heeds nothing, and somebody may wait for its memory.
            grace_s = _FORCED_GRACE_S if why is Why.BROKEN else _STOP_GRACE_S
            self.start(self._launcher.stop, running, grace_s)

    def forget_job(self) -> None:
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
        """A renewal gives way when it is in the way of somebody who waits."""
        try:
            choice = await self._choose(job, effect)
        except MemoryShort:
            if not self._renewals.active:
                raise
        else:
            if not choice.victims or not self._renewals.active:
                return choice
        await self._renewals.give_way()
        return await self._choose(job, effect)

    async def _choose(self, job: Job, effect: Plan) -> Choice[LaunchPlan]:
        def choose(basis: Basis) -> Choice[LaunchPlan]:
            return basis.choose(
                promised_bytes=self.promised_bytes,
                taken_bytes=self.taken_bytes,
                candidates=self.with_gpu(effect.candidates),
            )

        basis = await self._launcher.basis(job, lambda basis: not choose(basis).victims)
        job.basis = basis
        return choose(basis)

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
        def again(basis: Basis) -> LaunchPlan:
            """A humbler plan needs nobody's place."""
            promised, taken = self.promised_bytes, self.taken_bytes
            return basis.choose(promised_bytes=promised, taken_bytes=taken).plan

        return await self._launcher.load(job, again)

    async def start_worker(self, basis: Basis, plan: LaunchPlan) -> Running:
        """A worker that is ready, and nobody's yet. Raises as `Engine.launch` does."""
        return await self._launcher.start(basis, plan)

    async def carry_over(self, old: Running, new: Running) -> None:
        await self._launcher.carry_over(old, new)

    def take_over(self, model: ModelId, old: Running, new: Running) -> bool:
        """Send new requests to the new worker; False when the old one serves no more."""
        ready = self._scheduler.standing(model).state is ModelState.READY
        if self._running.get(model) is not old or old.asked or not ready or not self.active:
            return False
        new.rate = old.rate
        old.retired = True
        self._running[model] = new
        self._retired.append((model, old))
        self.start(self._watch, model, new)
        self._record.renewed(model)
        log.info(
            "model_renewed",
            model=str(model),
            pid=new.worker.pid,
            runtime=new.worker.runtime,
            still_on_the_old=old.leases,
        )
        if not old.leases:
            self._end(old, Why.UNLOAD)
        size = new.plan.memory.total_bytes
        places = new.plan.parallel + _EXTRA_PLACES
        self._dispatch(self._scheduler.on_renewed(model, size, places, self._clock()))
        return True

    def _ready(self, job: Job, running: Running) -> None:
        self._job = None
        model, now = job.model, self._clock()
        self._running[model] = running
        self.start(self._watch, model, running)
        seconds = now - job.started_at
        self._record.loaded(model, seconds)
        log.info(
            "model_ready",
            model=str(model),
            pid=running.worker.pid,
            seconds=round(seconds, 2),
            context=running.plan.context,
        )
        places = running.plan.parallel + _EXTRA_PLACES
        effects = self._scheduler.on_ready(model, places, now, seconds)
        size = running.plan.memory.total_bytes  # a humbler plan than the first may have worked
        self._dispatch(effects + self._scheduler.on_renewed(model, size, places, now))

    def _failed(self, job: Job, error: StokerError, *, back_off: bool = True) -> None:
        self._job = None
        self._means.engine.relax()
        now = self._clock()
        self._record.not_loaded(job.model, now - job.started_at, error.code)
        log.warning("load_failed", model=str(job.model), code=error.code, reason=error.message)
        self._dispatch(self._scheduler.on_failed(job.model, error, now, back_off=back_off))

    def _aborted(self, job: Job) -> None:
        """Nothing is left of a load that nobody waits for."""
        self._job = None
        self._means.engine.relax()
        now = self._clock()
        self._record.not_loaded(job.model, now - job.started_at, CANCELLED)
        log.info("load_cancelled", model=str(job.model))
        self._dispatch(self._scheduler.on_exited(job.model, None, now))

    async def _watch(self, model: ModelId, running: Running) -> None:
        """Notice the worker's end, whoever caused it."""
        report = await running.worker.wait()
        running.upstream.close()
        error = None if running.asked or report.asked else failure(report)
        log.info(
            "worker_ended",
            model=str(model),
            pid=running.worker.pid,
            kind=report.kind and report.kind.value,
            returncode=report.returncode,
        )
        # Before its effects: the next plan of the model is to know of it.
        self.start(self._launcher.ended, running, report)
        if self._running.get(model) is not running:
            self._retired.remove((model, running))
            self.settle()
            return
        del self._running[model]
        self._renewals.cancel(model)
        served_s = self._clock() - running.since
        if error is None:
            self._record.left(model, served_s, running.why.value)
        else:
            self._record.crashed(model, served_s, report.kind.value if report.kind else error.code)
        self._dispatch(self._scheduler.on_exited(model, error, self._clock()))

    def settle(self) -> None:
        """Something ended that the scheduler does not know of: wake those who wait for it."""
        self._dispatch(())


def _bug(error: Exception) -> InternalError:
    log.error("load_crashed", exc_info=error)
    return InternalError(f"loading failed: {type(error).__name__}")
