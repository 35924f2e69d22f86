"""Finds out in idle time which settings are the fastest for each model, and puts them to use.

The tuner owns one search at a time. It starts by itself for a loaded model that was never measured
under the present circumstances, or that has become slow; a person may ask for any stored model.
A result is kept by `profiles`, and the model's worker is then replaced without a gap. Whatever
goes wrong here costs a measurement, never an answer. Not for: the rules of a search
(`tuning.search`), or the plan that uses its result (`tuning.plan`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

import anyio
import psutil
import structlog
from anyio.abc import TaskGroup, TaskStatus
from anyio.to_thread import run_sync

from stoker.engine.lab import open_lab
from stoker.errors import (
    LabFailed,
    MachineBusy,
    NotCapable,
    ShuttingDown,
    StokerError,
    UnknownModel,
)
from stoker.events import EventBus
from stoker.hardware.facts import HardwareFacts
from stoker.lifecycle.planning import Seen, as_told, digest_of
from stoker.paths import Paths
from stoker.profiles import Profiles
from stoker.schemas import TuneChanged, TuneView
from stoker.schemas_machine import TuneRequest
from stoker.settings import Settings
from stoker.store.manifest import Manifest
from stoker.store.store import Store
from stoker.tuner import policy
from stoker.tuner.gate import Gate
from stoker.tuner.job import Job, trial_of, tuned_view
from stoker.tuner.labs import OpenLab, labs_for
from stoker.tuner.live import LiveSpeeds
from stoker.tuner.parts import Engines, Models
from stoker.tuner.session import Session
from stoker.tuner.starting import Starting
from stoker.tuner.surveyor import Surveyor
from stoker.tuning import keys
from stoker.tuning.launch import Survey, Tuned
from stoker.tuning.search import BUDGET_S
from stoker.types import Capability, Digest, ModelId, ModelState

log = structlog.get_logger(__name__)

_CANCEL_S: Final = 40.0  # until a cancelled search has left the machine
_LOOK_S: Final = 1.0  # how fast a search begins after a build
_LOADS: Final = frozenset((ModelState.QUEUED, ModelState.LOADING))
_LOOK_AGAIN_S: Final = 60.0  # a quota or the power may have changed; a slow model been noticed
_BUILDING: Final = frozenset(("installing", "testing"))


class Tuner:
    """Used from the event loop's thread, but for `export` and `take`, which any thread may call."""

    def __init__(  # noqa: PLR0913  # the services it stands on, all by name
        self,
        *,
        store: Store,
        lifecycle: Models,
        runtimes: Engines,
        profiles: Profiles,
        settings: Settings,
        bus: EventBus,
        places: Paths,
        hardware: Callable[[], HardwareFacts],
        seen: Seen = as_told,
        opener: OpenLab = open_lab,
        clock: Callable[[], float] = time.monotonic,
        cpu_percent: Callable[[], float] = psutil.cpu_percent,
    ) -> None:
        self._store = store
        self._lifecycle = lifecycle
        self._runtimes = runtimes
        self._profiles = profiles
        self._settings = settings
        self._bus = bus
        self._places = places
        self._hardware = hardware
        self._opener = opener
        self._clock = clock
        self._cpu_percent = cpu_percent  # since the last look
        self._facts: HardwareFacts | None = None  # as they were when last looked at
        self._jobs: dict[ModelId, Job] = {}
        self._wake = anyio.Event()
        self._gate = Gate()
        self._session: Session | None = None
        self._tasks: TaskGroup | None = None
        self._live = LiveSpeeds(clock)
        self._nothing_due: tuple[frozenset[ModelId], float] = frozenset(), 0.0  # when last looked
        self._surveyor = Surveyor(store, profiles, runtimes.library, opener, places.worker_cwd)
        self._starting = Starting(store, lifecycle, runtimes, profiles, settings, hardware, seen)
        lifecycle.on_busy(self._on_busy)

    # --- life --------------------------------------------------------------------------------

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Own every search until cancelled; then no lab is left."""
        self._facts = await run_sync(self._hardware)
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                task_status.started()
                while True:
                    while (job := self._next()) is not None:
                        await self._work(job)
                    self._wake = anyio.Event()
                    await self._wake.wait()
        finally:
            self._tasks = None

    @property
    def measures(self) -> bool:
        """Whether processes that measure take memory now."""
        return self._session is not None

    async def tick(self, *, pulls: int = 0) -> str | None:
        """Begin a search when one is due and nothing speaks against it; says what it began.

        Called every few seconds by a job.
        """
        self._watch_speeds()
        others_cpu = self._cpu_percent() / 100
        if self._tasks is None or self._lifecycle.idle_s() < policy.RESUME_S:
            return None
        self._start_surveys()
        waiting = any(job.state == "waiting" for job in self._jobs.values())
        if waiting or self._session is not None or not self._may_be_due():
            return None
        self._facts = hardware = await run_sync(self._hardware)
        due = self._due(hardware)
        if due is None:
            self._nothing_due = self._loaded(), self._clock()
            return None
        job = self._jobs.get(due.id)
        why = policy.why_not(
            policy.Moment(
                wanted=self._settings.tune,
                idle_s=self._lifecycle.idle_s(),
                pulls=pulls,
                building=self._building(),
                others_cpu=others_cpu,
                hardware=hardware,
            )
        )
        if why is not None:
            if job is not None and job.active and job.note != why:
                job.note = why
                self._tell(job)
            return None
        going_on = job is not None and job.active
        self._enqueue(job if job is not None and job.active else self._new_job(due))
        return f"{due.id}: {'goes on' if going_on else 'begins'}"

    # --- orders ------------------------------------------------------------------------------

    async def start(self, request: TuneRequest) -> TuneView:
        """Search for this model's best settings as soon as no request runs.

        At once the known result, unless ``again``. Raises UnknownModel, NotCapable, MachineBusy,
        ShuttingDown.
        """
        manifest = self._store.find(request.model)
        if not _writes(manifest):
            msg = f"{manifest.id} writes no text; there is nothing to tune about it"
            raise NotCapable(msg, model=str(manifest.id))
        if self._tasks is None:
            raise ShuttingDown("Stoker is not serving")
        if self._building():
            raise MachineBusy("a runtime is being built or tested")
        job = self._jobs.get(manifest.id)
        if job is not None and job.active:
            job.asked = True
            self._enqueue(job)
            return job.view()
        hardware = await run_sync(self._hardware)
        known = self._tuned(digest_of(manifest), hardware)
        if known is not None and not request.again:
            return tuned_view(manifest.id, known)
        job = self._new_job(manifest)
        job.asked, job.budget_s = True, request.seconds or BUDGET_S
        self._enqueue(job)
        return job.view()

    async def cancel(self, model: str) -> TuneView:
        """End its search, if there is one, and drop its progress. Raises UnknownModel."""
        manifest = self._store.find(model)
        job = self._jobs.get(manifest.id)
        if job is None or not job.active:
            return self._view(manifest)
        job.state, job.note, job.ended_at = "cancelled", None, self._clock()
        job.forget_progress()
        if job.scope is not None:
            job.scope.cancel()
            with anyio.move_on_after(_CANCEL_S):
                await job.idle.wait()
        self._tell(job)
        return job.view()

    def list(self) -> tuple[TuneView, ...]:
        """Every stored model that can be tuned, and how far it is."""
        return tuple(self._view(manifest) for manifest in self._store.list() if _writes(manifest))

    def export(self) -> dict[str, object]:
        return self._profiles.export()

    def take(self, document: object) -> int:
        """Blocking. Keep what was measured on a machine like this one. Raises BadTuningFile."""
        return self._profiles.take(document, key=keys.tuning_key(self._hardware()))

    async def survey(self, manifest: Manifest, runtime: str) -> Survey | None:
        """What the engine itself would allocate, from a dry run; None when it does not tell.

        Takes a second or two the first time.
        """
        hardware = await run_sync(self._hardware)
        return await self._surveyor.survey(manifest, runtime, hardware, self._settings)

    # --- what is due -------------------------------------------------------------------------

    def _loaded(self) -> frozenset[ModelId]:
        states = self._lifecycle.states()
        return frozenset(model for model, state in states.items() if state is ModelState.READY)

    def _may_be_due(self) -> bool:
        """Whether it is worth a look at the machine, which costs more than all else here."""
        if not self._settings.tune or self._lifecycle.idle_s() < policy.IDLE_S:
            return False
        loaded = self._loaded()
        before, at = self._nothing_due
        return bool(loaded) and (loaded != before or self._clock() - at >= _LOOK_AGAIN_S)

    def _due(self, hardware: HardwareFacts) -> Manifest | None:
        """The next model to measure by itself: loaded, and never measured like this."""
        for model, state in self._lifecycle.states().items():
            if state is not ModelState.READY:
                continue
            try:
                manifest = self._store.find(str(model))
            except UnknownModel:
                continue
            if _writes(manifest) and not self._rests(model) and self._needs(manifest, hardware):
                return manifest
        return None

    def _needs(self, manifest: Manifest, hardware: HardwareFacts) -> bool:
        tuned = self._tuned(digest_of(manifest), hardware)
        if tuned is None:
            return True
        age_s = (datetime.now(UTC) - datetime.fromisoformat(tuned.at)).total_seconds()
        doubtful = self._live.is_slow(manifest.id) or not tuned.complete
        return doubtful and age_s >= policy.RETUNE_REST_S

    def _rests(self, model: ModelId) -> bool:
        """A search that failed or was cancelled is not begun again by itself for a while."""
        job = self._jobs.get(model)
        if job is None or job.ended_at is None or job.state not in {"failed", "cancelled"}:
            return False
        busy = isinstance(job.error, MachineBusy)
        rest_s = policy.BUSY_REST_S if busy else policy.FAILED_REST_S
        return self._clock() - job.ended_at < rest_s

    def _tuned(self, model: Digest, hardware: HardwareFacts) -> Tuned | None:
        tuned = self._profiles.tuned(model, hardware, self._settings.profile)
        if tuned is not None and not self._runtimes.has(tuned.best.runtime, measured_at=tuned.at):
            return None
        return tuned

    def _building(self) -> bool:
        return any(one.state in _BUILDING for one in self._runtimes.view().runtimes)

    def _watch_speeds(self) -> None:
        for model, state in self._lifecycle.states().items():
            if state is ModelState.READY and self._facts is not None:
                tuned = self._tuned(self._digest(model), self._facts)
                if tuned is not None:
                    self._live.look(self._lifecycle.view(model), tuned.speeds.decode_tokens_per_s)

    def _digest(self, model: ModelId) -> Digest:
        return digest_of(self._store.find(str(model)))

    def _start_surveys(self) -> None:
        """After a first load: what its memory really is, for the next plan."""
        for model, state in self._lifecycle.states().items():
            plan = self._lifecycle.plan_of(model) if state is ModelState.READY else None
            if plan is None or plan.embedding or self._tasks is None:
                continue
            manifest = self._store.find(str(model))
            if self._surveyor.wanted(digest_of(manifest), plan.runtime):
                self._tasks.start_soon(self.survey, manifest, plan.runtime)

    # --- one search --------------------------------------------------------------------------

    def _new_job(self, manifest: Manifest) -> Job:
        job = Job(manifest.id, digest_of(manifest), self._settings.profile)
        self._jobs[manifest.id] = job
        return job

    def _enqueue(self, job: Job) -> None:
        if job.state != "running" and job.scope is None:
            job.state, job.note = "waiting", None
            self._tell(job)
        self._wake.set()

    def _next(self) -> Job | None:
        waiting = [job for job in self._jobs.values() if job.state == "waiting"]
        return next((job for job in waiting if job.asked), waiting[0] if waiting else None)

    async def _work(self, job: Job) -> None:
        """One stretch of a search, to its end or until the machine is needed."""
        job.idle = anyio.Event()
        try:
            with anyio.CancelScope() as job.scope:
                await self._until_possible(job)
                await self._stretch(job)
        except StokerError as error:
            self._failed(job, error)
        except Exception as error:  # task boundary: a bug must not end the daemon
            log.exception("tune_crashed", model=str(job.model))
            self._failed(job, LabFailed(f"tuning failed: {type(error).__name__}"))
        finally:
            job.scope = self._session = None
            job.idle.set()

    async def _until_possible(self, job: Job) -> None:
        """A build ends by its own deadline, and nobody's requests last forever."""
        while self._building():  # it uses every processor; nobody announces its end here
            if job.note is None:
                job.note = "waits for the end of a runtime's build"
                self._tell(job)
            await anyio.sleep(_LOOK_S)
        await self._gate.until_quiet(policy.RESUME_S)

    async def _stretch(self, job: Job) -> None:
        basis, hardware = await self._starting.look(job)
        self._facts = hardware
        if job.basis is None or not job.basis.same_as(basis):
            job.forget_progress()
            job.basis = basis
        self._starting.check_room(job, hardware)
        async with labs_for(
            basis.path,
            self._runtimes.library,
            opener=self._opener,
            cwd=self._places.worker_cwd,
            at_once=self._starting.labs_at_once(basis, hardware),
        ) as labs:
            self._session = session = Session(
                job,
                labs,
                self._gate,
                space=lambda shape: self._starting.space(basis, hardware, shape),
                hardware=self._hardware,
                may_go_on=lambda now: self._may_go_on(job, now),
                changed=self._tell,
            )
            await session.run()
        self._session = None
        if session.gave_up is not None:
            self._paused(job, session.gave_up)
        else:
            await self._finish(job)

    def _may_go_on(self, job: Job, hardware: HardwareFacts) -> str | None:
        self._facts = hardware
        if job.basis is not None and keys.tuning_key(hardware) != job.basis.key:
            return "the machine has changed"
        if not policy.room_bytes(hardware, self._settings.memory_reserve_bytes):
            return "memory is short"
        if hardware.power.throttled and not job.asked:
            return "waits until the processor has cooled down"
        return "a runtime is being built" if self._building() else None

    # --- how it ends -------------------------------------------------------------------------

    async def _finish(self, job: Job) -> None:
        search, basis = job.search, job.basis
        if search is None or basis is None or search.failed or not search.measured:
            raise LabFailed("the settings in use could not be measured")
        result = search.result()
        if not result.compared and not result.complete:
            raise MachineBusy(
                f"Nothing about {job.model} could be compared: the computer's speed changed all"
                " the time, or it may be busy.",
                hint="Close other programs and run `stoker tune` with the model's name.",
            )
        tuned = Tuned(
            key=basis.key,
            profile=job.profile,
            best=result.best,
            speeds=result.speeds,
            baseline=result.baseline,
            trials=result.trials,
            seconds=round(result.seconds, 1),
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            complete=result.complete,
        )
        await run_sync(self._profiles.keep_tuned, job.digest, tuned)
        job.tuned, job.state, job.note, job.ended_at = tuned, "done", None, self._clock()
        job.forget_progress()
        self._live.forget(job.model)
        log.info(
            "tuned",
            model=str(job.model),
            trials=tuned.trials,
            runs=result.runs,
            seconds=tuned.seconds,
            complete=tuned.complete,
            changed=result.best != basis.baseline,
            decode=round(tuned.speeds.decode_tokens_per_s, 1),
            decode_before=round(tuned.baseline.decode_tokens_per_s, 1),
        )
        self._tell(job)
        await self._put_to_use(job.model, tuned)

    async def _put_to_use(self, model: ModelId, tuned: Tuned) -> None:
        plan = self._lifecycle.plan_of(model)
        if plan is None or trial_of(plan) == tuned.best:
            return
        renewed = await self._lifecycle.renew(model)
        log.info("tuned_in_use", model=str(model), renewed=renewed)

    def _paused(self, job: Job, why: str) -> None:
        log.info("tune_paused", model=str(job.model), reason=why)
        # What a person asked for goes on as soon as it can, the rest at the next idle time.
        job.state, job.note = ("waiting" if job.asked else "paused"), why
        if job.asked and why == "memory is short":
            job.state, job.asked = "paused", False
        self._tell(job)

    def _failed(self, job: Job, error: StokerError) -> None:
        if job.state == "cancelled":
            return
        log.warning("tune_failed", model=str(job.model), code=error.code, reason=error.message)
        job.state, job.note, job.error = "failed", None, error
        job.ended_at = self._clock()
        job.forget_progress()
        self._tell(job)

    # --- small parts -------------------------------------------------------------------------

    def _on_busy(self, busy: bool) -> None:  # noqa: FBT001  # as the lifecycle calls it
        """Strictly synchronous: the labs stand still before the request goes anywhere."""
        self._gate.set(busy=busy)
        session = self._session
        if busy and session is not None:
            session.pause()
            if _LOADS & set(self._lifecycle.states().values()):
                session.give_up("a model is being loaded")  # it may need the labs' memory

    def _view(self, manifest: Manifest) -> TuneView:
        job = self._jobs.get(manifest.id)
        if job is not None and (job.active or job.state in {"failed", "cancelled"}):
            return job.view()
        hardware = self._facts or self._hardware()
        tuned = self._tuned(digest_of(manifest), hardware)
        if tuned is not None:
            return tuned_view(manifest.id, tuned)
        return TuneView(model=str(manifest.id), state="none", profile=self._settings.profile)

    def _tell(self, job: Job) -> None:
        self._bus.publish(TuneChanged(tune=job.view()))


def _writes(manifest: Manifest) -> bool:
    """An embedder has one way to run; searches are for models that write."""
    return (
        Capability.CHAT in manifest.capabilities or Capability.COMPLETION in manifest.capabilities
    )
