"""Work that comes round by itself: the table of jobs, and APScheduler to start them.

The only module that imports APScheduler. A job looks, decides with a pure function, and calls one
service. Not for: work that somebody asked for (`api`), or per-request timing (`lifecycle`).
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Protocol

import anyio
import psutil
import structlog
from apscheduler.executors.asyncio import AsyncIOExecutor
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.interval import IntervalTrigger

from stoker import __version__, updates
from stoker.errors import StokerError
from stoker.events import EventBus
from stoker.hardware import measure, probe
from stoker.history import History, Kind, Run
from stoker.lifecycle.runtime import Lifecycle
from stoker.paths import Paths
from stoker.pull.puller import Puller
from stoker.schemas import ResourcesSampled
from stoker.settings import Settings
from stoker.store.store import Store
from stoker.tuner import Tuner
from stoker.verification import Verifier

log = structlog.get_logger(__name__)

DAY_S: Final = 24 * 3600.0
QUARANTINE_DAYS: Final = 30  # long enough to look at what failed, short enough for the disk
ORPHAN_DAYS: Final = 7  # as long as an unfinished download is kept
SCRUB_IDLE_S: Final = 300.0  # nobody comes back within a breath
MEASURE_IDLE_S: Final = 20.0  # before a tuning begins, which would be in the way
SCRUB_LOOK_S: Final = 1.0  # how fast a scrub makes room for a person
UPDATES: Final = "updates"  # its rows in the history say when it asked last
UPDATE_REST_S: Final = 20 * 3600.0  # at most once a day, however often the daemon starts
STOP_S: Final = 10.0  # a hashing thread sees its flag within one chunk


class JobServices(Protocol):
    """The services that jobs use; `api.services.Services` is one."""

    @property
    def settings(self) -> Settings: ...
    @property
    def paths(self) -> Paths: ...
    @property
    def store(self) -> Store: ...
    @property
    def puller(self) -> Puller: ...
    @property
    def lifecycle(self) -> Lifecycle: ...
    @property
    def bus(self) -> EventBus: ...
    @property
    def history(self) -> History: ...
    @property
    def tuner(self) -> Tuner: ...
    def found_update(self, version: str | None) -> None: ...


@dataclass(frozen=True, slots=True)
class Job:
    """`run` tells what it did in a few words, or None when there was nothing to do.

    A run with nothing to tell leaves no row in the history. One that takes longer than
    `limit_s` is cancelled. A job runs once at a time; a start that comes meanwhile is dropped.
    """

    name: str
    every_s: float
    limit_s: float
    run: Callable[[JobServices], Awaitable[str | None]]
    first_s: float | None = None  # after the start; default: after `every_s`


# --- decisions -------------------------------------------------------------------------------


def may_scrub(*, idle_s: float, on_battery: bool, pulls: int) -> bool:
    """Whether hashing disturbs nobody: no request for a while, mains power, no download."""
    return idle_s >= SCRUB_IDLE_S and not on_battery and pulls == 0


def may_measure(*, idle_s: float, on_battery: bool) -> bool:
    """Whether a second of full speed disturbs nobody, and says what the machine can do."""
    return idle_s >= MEASURE_IDLE_S and not on_battery


def cutoff(now: datetime, days: float) -> datetime:
    """The moment so many days before; far settings end at the beginning of time."""
    try:
        return now - timedelta(days=days)
    except OverflowError:
        return datetime.min.replace(tzinfo=UTC)


def last_answer(runs: Sequence[Run], now: datetime) -> str | None:
    """What the update check was told last, when that is too new to ask again."""
    since = cutoff(now, UPDATE_REST_S / DAY_S)
    return next((run.result for run in runs if run.name == UPDATES and run.at > since), None)


# --- jobs ------------------------------------------------------------------------------------


async def expire_idle_models(services: JobServices) -> None:
    services.lifecycle.tick()


async def relieve(services: JobServices) -> None:
    """What the tuner's processes take is no other program's need, and they give it back soon."""
    if not services.tuner.measures:
        await services.lifecycle.relieve()


async def sample_resources(services: JobServices) -> None:
    if services.bus.watched:
        services.bus.publish(ResourcesSampled(resources=probe.resources()))


async def drop_partials(services: JobServices) -> str | None:
    older_than = cutoff(datetime.now(UTC), services.settings.partial_days)
    count = await anyio.to_thread.run_sync(services.store.drop_stale_partials, older_than)
    return f"{count} dropped" if count else None


async def prune_orphans(services: JobServices) -> str | None:
    """Blobs whose pull died before its manifest was written; a pull under way may need its own."""
    if services.puller.active:
        return None
    older_than = cutoff(datetime.now(UTC), ORPHAN_DAYS)
    freed = await anyio.to_thread.run_sync(services.store.prune, older_than)
    return f"{freed} bytes freed" if freed else None


async def prune_quarantine(services: JobServices) -> str | None:
    older_than = cutoff(datetime.now(UTC), QUARANTINE_DAYS)
    count = await anyio.to_thread.run_sync(services.store.prune_quarantine, older_than)
    return f"{count} dropped" if count else None


async def prune_history(services: JobServices) -> str | None:
    count = await services.history.prune(cutoff(datetime.now(UTC), services.settings.history_days))
    return f"{count} dropped" if count else None


async def scrub(services: JobServices) -> str | None:
    """Hash the model that was verified longest ago, if that is long enough, and stop for people."""
    if not _quiet(services):
        return None
    older_than = cutoff(datetime.now(UTC), services.settings.scrub_interval_days)
    candidates = await anyio.to_thread.run_sync(services.store.scrub_candidates, older_than)
    if not candidates:
        return None
    verifier = Verifier(services.store, services.lifecycle, services.bus)
    stop = threading.Event()
    damaged: list[str] = []

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_stop_when_busy, services, stop)
        await verifier.verify(
            candidates[0],
            found=lambda result: None if result.ok else damaged.append(str(result.name)),
            stop=stop,
            gently=True,
        )
        tasks.cancel_scope.cancel()
    if damaged:
        return f"{candidates[0].id}: damaged"
    return f"{candidates[0].id}: {'interrupted' if stop.is_set() else 'sound'}"


async def _stop_when_busy(services: JobServices, stop: threading.Event) -> None:
    while _quiet(services):  # noqa: ASYNC110  # quiet is a matter of the clock; nobody announces it
        await anyio.sleep(SCRUB_LOOK_S)
    stop.set()


def _quiet(services: JobServices) -> bool:
    return may_scrub(
        idle_s=services.lifecycle.idle_s(),
        on_battery=_on_battery(),
        pulls=services.puller.active,
    )


def _on_battery() -> bool:
    battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    return battery is not None and battery.power_plugged is False


async def look_for_update(services: JobServices) -> str | None:
    """Ask whether a newer version is there, if the user wants that; the answer is a row to read."""
    if not services.settings.update_check or services.settings.offline:
        return None
    told = last_answer(await services.history.recent(Kind.JOB, 1000), datetime.now(UTC))
    if told is not None:
        version = told.partition(" ")[0]
        services.found_update(version if updates.newer(__version__, version) else None)
        return None
    try:
        found = await updates.look()
    except StokerError as error:
        log.info("update_check_failed", code=error.code, error=error.message)
        return None
    services.found_update(found)
    return f"{found} is there" if found else "nothing newer"


async def measure_hardware(services: JobServices) -> str | None:
    """How fast memory and the disk are, once for each machine and its limits; a second of work."""
    if not may_measure(idle_s=services.lifecycle.idle_s(), on_battery=_on_battery()):
        return None
    facts = await anyio.to_thread.run_sync(probe.probe)
    kept = await anyio.to_thread.run_sync(measure.known, services.paths, facts)
    if kept is not None and kept.undisturbed:
        return None
    found = await anyio.to_thread.run_sync(measure.measure_once, services.paths, facts)
    speed = found.bandwidth_bytes_per_s
    return None if speed is None or found == kept else f"memory: {speed / 1e9:.1f} GB/s"


async def tune(services: JobServices) -> str | None:
    """Look whether a model's best settings should be measured now; the tuner does the work."""
    return await services.tuner.tick(pulls=services.puller.active)


# Those that run often share their moments: one wake-up of the process, not three.
JOBS: Final = (
    Job("keep_alive", 5, 5, expire_idle_models),
    Job("pressure", 5, 5, relieve),
    Job("resources", 5, 5, sample_resources),
    Job("tune", 5, 60, tune),
    Job("hardware", 600, 60, measure_hardware, first_s=90),
    Job("scrub", 600, 4 * 3600, scrub),
    Job("partials", DAY_S, 600, drop_partials, first_s=300),
    Job("orphans", DAY_S, 600, prune_orphans, first_s=300),
    Job("quarantine", DAY_S, 600, prune_quarantine, first_s=300),
    Job("history", DAY_S, 60, prune_history, first_s=300),
    Job(UPDATES, DAY_S, 60, look_for_update, first_s=300),
)


# --- running them ----------------------------------------------------------------------------


class Jobs:
    """Starts the jobs of the table. `start` and `stop` from the event loop, once each."""

    def __init__(self, services: JobServices, table: tuple[Job, ...] = JOBS) -> None:
        self._services = services
        self._table = table
        self._runs: set[anyio.CancelScope] = set()
        self._none_left = asyncio.Event()
        self._none_left.set()
        self._scheduler: Any = AsyncIOScheduler(
            timezone=UTC,  # no look at the system's zone: intervals need none
            executors={"default": AsyncIOExecutor()},
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
        )

    async def start(self) -> None:
        """Return at once; the first jobs run after their intervals."""
        # It warns of each start that it drops because the job still runs; that is meant.
        logging.getLogger("apscheduler.scheduler").setLevel(logging.ERROR)
        now = datetime.now(UTC)
        for job in self._table:
            self._scheduler.add_job(
                self.run,
                IntervalTrigger(seconds=job.every_s, jitter=_jitter_s(job), timezone=UTC),
                args=[job],
                id=job.name,
                next_run_time=now + timedelta(seconds=job.first_s or job.every_s),
            )
        self._scheduler.start()

    async def stop(self) -> None:
        """Cancel what runs and wait for its end."""
        self._scheduler.pause()
        for scope in list(self._runs):
            scope.cancel()
        with anyio.move_on_after(STOP_S):
            await self._none_left.wait()
        self._scheduler.shutdown(wait=False)
        await asyncio.sleep(0)  # APScheduler shuts down in the loop's next round

    async def run(self, job: Job) -> None:
        """One bounded run; its end is logged and recorded. A job that fails runs again later."""
        with anyio.CancelScope(deadline=anyio.current_time() + job.limit_s) as scope:
            self._runs.add(scope)
            self._none_left.clear()
            try:
                await self._run_and_record(job)
            finally:
                self._runs.discard(scope)
                if not self._runs:
                    self._none_left.set()
        if scope.cancelled_caught:
            log.info("job_cancelled", job=job.name)

    async def _run_and_record(self, job: Job) -> None:
        started = time.monotonic()
        try:
            result = await job.run(self._services)
        except Exception as error:  # a job is a task of its own; the next run may succeed
            log.exception("job_failed", job=job.name)
            result = f"failed: {type(error).__name__}"
        if result is not None:
            seconds = time.monotonic() - started
            log.info("job", job=job.name, seconds=round(seconds, 3), result=result)
            self._services.history.note(Kind.JOB, job.name, seconds, result)


def _jitter_s(job: Job) -> float | None:
    """Daily work of many machines spreads out; what runs often keeps its beat."""
    return 600 if job.every_s >= DAY_S else None
