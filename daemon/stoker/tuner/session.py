"""Measures what a search asks for, and stands still in the moment that somebody needs the machine.

A request stops the labs before it goes anywhere itself (`pause`, from the lifecycle's callback).
When it has ended for a while they go on, and the measurement that was cut is made again. When
that takes too long, or memory or power run out, the session ends; the search keeps its progress.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import anyio
import anyio.lowlevel
import structlog
from anyio.to_thread import run_sync

from stoker.engine.lab import LabInterrupted
from stoker.errors import LabFailed, StokerError
from stoker.hardware.facts import HardwareFacts
from stoker.tuner.gate import Gate
from stoker.tuner.job import Job, in_words
from stoker.tuner.labs import Labs
from stoker.tuner.policy import GIVE_UP_S, RESUME_S, TASTE, Shape, shape_for
from stoker.tuning.launch import Speeds, Trial
from stoker.tuning.search import Search
from stoker.tuning.space import Space

log = structlog.get_logger(__name__)

_MOST_CUTS: Final = 200  # measurements cut short in one session; then requests come too often


class Session:
    """One stretch of measuring for one job."""

    def __init__(
        self,
        job: Job,
        labs: Labs,
        gate: Gate,
        *,
        space: Callable[[Shape], Space],
        hardware: Callable[[], HardwareFacts],
        may_go_on: Callable[[HardwareFacts], str | None],
        changed: Callable[[Job], None],
    ) -> None:
        self._job = job
        self._labs = labs
        self._gate = gate
        self._space = space
        self._hardware = hardware
        self._may_go_on = may_go_on
        self._changed = changed
        self._scope = anyio.CancelScope()
        self._paused = anyio.Event()
        self._woken = anyio.Event()
        self._pauses = 0
        if gate.busy:
            self.pause()
        self.gave_up: str | None = None  # why it ended before the search did

    def pause(self) -> None:
        """At once, from the callback of the lifecycle."""
        self._labs.pause()
        self._pauses += 1
        self._paused.set()

    def give_up(self, why: str) -> None:
        self.gave_up = why
        self._scope.cancel()

    async def run(self) -> None:
        """Until the search is done or was given up. Raises StokerError when nothing works."""
        failure: StokerError | None = None
        with self._scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._mind)
                try:
                    await self._measure_all()
                except StokerError as error:  # not from inside the group, which would wrap it
                    failure = error
                tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _measure_all(self) -> None:
        search = self._job.search or await self._begin()
        self._job.search = search
        cuts = 0
        while (trial := search.next()) is not None:
            if cuts >= _MOST_CUTS:
                self.give_up("requests come too often")
            await self._look_around()
            self._tell("running", in_words(trial))
            started, pauses = time.monotonic(), self._pauses
            try:
                speeds, seconds = await self._measure(trial, self._shape)
            except LabInterrupted:
                cuts += 1
                continue
            except StokerError as error:  # also of a runtime that was removed meanwhile
                if self._pauses != pauses:  # whoever stands still may fail for that alone
                    await self._labs.drop(trial.runtime)
                    cuts += 1
                    continue
                log.info("trial_failed", model=str(self._job.model), reason=error.message)
                await self._labs.drop(trial.runtime)
                search.tell(trial, None, time.monotonic() - started)
                continue
            search.tell(trial, speeds, seconds)

    async def _begin(self) -> Search:
        """A short measurement first: how long the others may be. Raises LabFailed."""
        job = self._job
        if job.basis is None:
            raise LabFailed("a search without a plan")
        self._tell("running", "takes a first look")
        taste: Speeds | None = None
        for _ in range(_MOST_CUTS):
            await self._look_around()
            try:
                taste, _ = await self._measure(job.basis.baseline, TASTE)
            except LabInterrupted:
                continue
            break
        if taste is None:
            self.give_up("requests come too often")
            await anyio.lowlevel.checkpoint()  # the scope ends here
            raise LabFailed("the measurement was interrupted again and again")
        job.shape = shape_for(taste, job.budget_s)
        return Search.start(self._space(job.shape), job.basis.baseline, job.profile, job.budget_s)

    @property
    def _shape(self) -> Shape:
        return self._job.shape or TASTE

    async def _measure(self, trial: Trial, shape: Shape) -> tuple[Speeds, float]:
        """The speeds, and the seconds it took; waiting for others is not counted."""
        started = time.monotonic()
        lab = await self._labs.get(trial)
        opened_s = time.monotonic() - started
        await self._until_awake()  # a request may have come while the lab was opened
        started = time.monotonic()
        speeds = await lab.measure(
            trial, prompt=shape.prompt, generate=shape.generate, streams=shape.streams
        )
        return speeds, opened_s + time.monotonic() - started

    async def _look_around(self) -> None:
        """Between two measurements: nobody waits, and nothing else speaks against going on."""
        await self._until_awake()
        hardware = await run_sync(self._hardware, abandon_on_cancel=True)
        why = self._may_go_on(hardware)
        if why is not None:
            self.give_up(why)
            await anyio.lowlevel.checkpoint()  # the scope ends here

    async def _until_awake(self) -> None:
        while self._paused.is_set():
            await self._woken.wait()

    async def _mind(self) -> None:
        """Wake the labs some time after the last request, or give up."""
        while True:
            await self._paused.wait()
            self._tell("paused", "a request is being answered")
            with anyio.move_on_after(GIVE_UP_S) as patience:
                await self._gate.until_quiet(RESUME_S)
            if patience.cancelled_caught:
                self.give_up("others use the machine")
                return
            if self._gate.busy:  # in this very moment
                continue
            self._paused, woken, self._woken = anyio.Event(), self._woken, anyio.Event()
            self._labs.resume()
            self._tell("running", None)
            woken.set()

    def _tell(self, state: str, note: str | None) -> None:
        self._job.state = "paused" if state == "paused" else "running"
        self._job.note = note
        self._changed(self._job)
