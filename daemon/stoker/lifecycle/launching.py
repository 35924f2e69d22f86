"""All that belongs to the start and to the end of one worker.

Around a start: its conversations come back; when it fails, the next rung of the ladder is tried.
Around an end: conversations are saved, its memory is waited for, what it took at most is learnt.
Not for: which model is loaded (`workers`), or the process itself (`stoker.engine`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import structlog

from stoker.engine.base import ExitReport
from stoker.engine.explain import explain
from stoker.engine.upstream import Upstream
from stoker.errors import InternalError, MemoryShort, WorkerFailed, WorkerTimeout
from stoker.lifecycle.conversations import Conversations
from stoker.lifecycle.effects import Why
from stoker.lifecycle.planning import Basis, Means, digest_of, learn, look
from stoker.lifecycle.reclaim import Reclaim
from stoker.lifecycle.rungs import Rungs
from stoker.lifecycle.running import Job, Running, own_bytes
from stoker.tuning.launch import LaunchPlan
from stoker.types import FailureKind

log = structlog.get_logger(__name__)


class Launcher:
    """One per lifecycle; used from the event loop's thread only."""

    def __init__(
        self,
        means: Means,
        conversations: Conversations | None,
        rungs: Rungs,
        clock: Callable[[], float],
    ) -> None:
        """Without ``conversations`` none are kept."""
        self._means = means
        self._conversations = conversations
        self._rungs = rungs
        self._clock = clock
        self._reclaim = Reclaim(means.hardware)

    # --- starts ------------------------------------------------------------------------------

    async def basis(self, job: Job, fits: Callable[[Basis], bool]) -> Basis:
        """See `planning.look`; on the rung that worked last. Memory that was freed is there."""
        await self._reclaim.settled()
        basis = await look(self._means, job.model, fits)
        rung = await self._rungs.rung(digest_of(basis.loadable.manifest), basis.runtime)
        return replace(basis, rung=rung)

    async def load(self, job: Job, again: Callable[[Basis], LaunchPlan]) -> Running:
        """A worker for the job's plan, or for a humbler one when the engine fails with it.

        ``again`` plans with the basis of a lower rung. Raises as `Engine.launch` does.
        """
        began = self._clock()
        while True:
            if job.plan is None or job.basis is None:
                raise InternalError("a launch without a plan")
            try:
                running = await self.start(job.basis, job.plan)
            except WorkerFailed as error:
                await self._step_down(job, error, self._clock() - began, again)
            else:
                digest = digest_of(running.manifest)
                self._rungs.worked(digest, running.plan.runtime, running.rung)
                return running

    async def _step_down(
        self,
        job: Job,
        error: WorkerFailed,
        spent_s: float,
        again: Callable[[Basis], LaunchPlan],
    ) -> None:
        """Give the job the plan of the next rung. Raises the explained error when there is none."""
        basis, plan = job.basis, job.plan
        if basis is None or plan is None:
            raise error
        loadable = basis.loadable
        explained = explain(
            error, plan, loadable.facts, available_bytes=basis.hardware.headroom_bytes
        )
        rung = self._rungs.climb(
            digest_of(loadable.manifest), plan.runtime, basis.rung, error, plan, basis.wanted
        )
        if rung is None or spent_s > self._means.settings.load_timeout_s:
            raise explained from error
        log.warning("load_retried", model=str(job.model), kind=error.facts.get("kind"), rung=rung)
        fresh = await look(self._means, job.model, lambda _: True)  # the free memory of now
        job.basis = replace(fresh, rung=rung)
        try:
            job.plan = again(job.basis)
        except MemoryShort:
            raise explained from error

    async def start(self, basis: Basis, plan: LaunchPlan) -> Running:
        """A worker that is ready, and nobody's yet. Raises as `Engine.launch` does."""
        engine, kept = self._means.engine, self._conversations
        timeout_s = self._means.settings.load_timeout_s
        if kept is not None:
            plan = await kept.prepare(digest_of(basis.loadable.manifest), plan)
            worker = await kept.beside(plan, engine.launch(plan, timeout_s=timeout_s))
        else:
            worker = await engine.launch(plan, timeout_s=timeout_s)
        folder = plan.conversations if worker.runtime == plan.runtime else None
        plan = replace(plan, runtime=worker.runtime, conversations=folder)
        upstream = Upstream(worker.address, worker.key)
        try:
            if kept is not None:
                await kept.restore(upstream, plan)
        except BaseException:
            await worker.stop(0)
            upstream.close()
            raise
        return Running(
            basis.loadable.manifest,
            plan,
            basis.wanted,
            worker,
            upstream,
            since=self._clock(),
            rung=basis.rung,
            fresh_bytes=own_bytes(worker),
        )

    async def carry_over(self, old: Running, new: Running) -> None:
        """The new worker remembers what the old one does; nothing when they are too different."""
        if self._conversations is not None and not old.leases:
            await self._conversations.carry_over(old.upstream, old.plan, new.upstream, new.plan)

    # --- meanwhile ---------------------------------------------------------------------------

    def look(self, running: Running) -> None:
        """What it takes now; called every five seconds."""
        running.worker.peak_bytes()
        running.filled = max(running.filled, running.pulse.kv_used or 0.0)

    async def learn(self, running: Running) -> None:
        """Plans will count on what it took at most. Never raises."""
        await learn(self._means, running.manifest, running.plan, running.worker.peak_bytes())

    def answered(self, running: Running) -> None:
        """It gave a good answer."""
        self._rungs.answered(digest_of(running.manifest))

    # --- ends --------------------------------------------------------------------------------

    async def stop(self, running: Running, grace_s: float) -> None:
        """Return when its process is gone. What it computed of conversations is saved before.

        Not when it is broken, or stopped in the middle of something.
        """
        kept, draft = self._conversations, None
        sound = running.why is not Why.BROKEN and not running.leases
        if kept is not None and running.plan.conversations and sound:
            draft = await kept.save(running.upstream, running.plan)
        self.look(running)
        await self._reclaim.note(running.taken_bytes, running.plan.memory.gpu_bytes)
        try:
            await running.worker.stop(grace_s)
        except WorkerTimeout as error:
            log.error("worker_stuck", pid=running.worker.pid, reason=error.message)  # noqa: TRY400
        finally:
            if kept is not None and draft is not None:
                await kept.keep(draft)
        await self._learn_all(running)  # somebody may wait for the memory, and this for the disk

    async def ended(self, running: Running, report: ExitReport) -> None:
        """Its process is gone: what is to be learnt from that, for the next plan of the model."""
        hung = running.asked and running.why is Why.BROKEN
        kind = FailureKind.UNKNOWN if hung else None if running.asked else report.kind
        if kind is not None:
            digest, plan = digest_of(running.manifest), running.plan
            self._rungs.crashed(digest, plan.runtime, running.rung, kind, plan, running.wanted)
            if self._conversations is not None:
                await self._conversations.distrust(running.upstream)
        if not running.asked:
            await self._learn_all(running)

    async def _learn_all(self, running: Running) -> None:
        """At the end of its life: also that it took less than was planned."""
        peak_bytes, filled = running.worker.peak_bytes(), running.filled
        await learn(self._means, running.manifest, running.plan, peak_bytes, filled=filled)
