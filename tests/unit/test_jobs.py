from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import anyio
import anyio.lowlevel
import pytest
from apscheduler.events import EVENT_JOB_MAX_INSTANCES

from stoker import jobs, updates
from stoker.events import EventBus
from stoker.history import History, Kind, Run
from stoker.jobs import JOBS, Job, Jobs, JobServices, cutoff, last_answer, may_scrub
from stoker.paths import Paths, from_environment
from stoker.schemas import ResourcesSampled
from stoker.settings import Settings
from tests.fakes.releases import Releases, release

SOON_S = 0.01
DEADLINE_S = 20


@dataclass
class Calls:
    """Stands for the store, the puller and the lifecycle; notes what a job asks of them."""

    active: int = 0
    idle: float = 1e6
    ticks: int = 0
    relieved: int = 0
    asked: list[tuple[str, datetime]] = field(default_factory=list)

    def tick(self) -> None:
        self.ticks += 1

    async def relieve(self) -> None:
        self.relieved += 1

    def idle_s(self) -> float:
        return self.idle

    def drop_stale_partials(self, older_than: datetime) -> int:
        self.asked.append(("partials", older_than))
        return 2

    def prune_quarantine(self, older_than: datetime) -> int:
        self.asked.append(("quarantine", older_than))
        return 0

    def prune(self, older_than: datetime) -> int:
        self.asked.append(("orphans", older_than))
        return 5

    def scrub_candidates(self, older_than: datetime) -> list[object]:
        self.asked.append(("scrub", older_than))
        return []


@dataclass
class FakeTuner:
    """Begins something whenever no pull runs."""

    pulls: list[int] = field(default_factory=list)
    measures: bool = False

    async def tick(self, *, pulls: int) -> str | None:
        self.pulls.append(pulls)
        return None if pulls else "starter: begins"


@dataclass
class Parts:
    history: History
    calls: Calls = field(default_factory=Calls)
    bus: EventBus = field(default_factory=EventBus)
    settings: Settings = field(default_factory=Settings)
    versions: list[str | None] = field(default_factory=list)
    tuner: FakeTuner = field(default_factory=FakeTuner)
    paths: Paths | None = None

    def found_update(self, version: str | None) -> None:
        self.versions.append(version)

    @property
    def store(self) -> Calls:
        return self.calls

    puller = lifecycle = store

    def services(self) -> JobServices:
        return cast("JobServices", self)


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[Parts]:
    history = await History.open(tmp_path / "history.sqlite3")
    yield Parts(history)
    await history.close()


@asynccontextmanager
async def running(parts: Parts, *table: Job) -> AsyncIterator[Jobs]:
    scheduler = Jobs(parts.services(), table)
    await scheduler.start()
    try:
        yield scheduler
    finally:
        await scheduler.stop()


def job(run: Callable[[JobServices], Awaitable[str | None]], **changes: Any) -> Job:
    fields: dict[str, Any] = {"name": "test", "every_s": SOON_S, "limit_s": 60, "first_s": SOON_S}
    return Job(run=run, **{**fields, **changes})


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    with anyio.fail_after(DEADLINE_S):
        while not await condition():
            await anyio.lowlevel.checkpoint()


# --- decisions -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("idle_s", "on_battery", "pulls", "expected"),
    [
        (300, False, 0, True),
        (1e9, False, 0, True),
        (299.9, False, 0, False),
        (0, False, 0, False),
        (1e9, True, 0, False),
        (1e9, False, 1, False),
    ],
)
def test_a_scrub_disturbs_nobody(
    idle_s: float,
    on_battery: bool,  # noqa: FBT001
    pulls: int,
    expected: bool,  # noqa: FBT001
) -> None:
    assert may_scrub(idle_s=idle_s, on_battery=on_battery, pulls=pulls) is expected


def test_a_cutoff_is_that_many_days_before() -> None:
    now = datetime(2030, 1, 31, tzinfo=UTC)

    assert cutoff(now, 30.5) == datetime(2029, 12, 31, 12, tzinfo=UTC)
    assert cutoff(now, 1e12) < datetime(2, 1, 1, tzinfo=UTC)
    assert cutoff(now, 1e6) < datetime(2, 1, 1, tzinfo=UTC)


def test_the_table_is_cheap_and_bounded() -> None:
    """What runs often wakes the process at most every five seconds, all at the same moment."""
    often = {one.every_s for one in JOBS if one.every_s < 60}

    assert often == {5}
    assert all(one.limit_s > 0 for one in JOBS)
    assert len({one.name for one in JOBS}) == len(JOBS)


# --- running ---------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_job_comes_round_again(parts: Parts) -> None:
    runs = anyio.create_memory_object_stream[int](100)

    async def count(_: JobServices) -> None:
        runs[0].send_nowait(1)

    with runs[0], runs[1]:
        async with running(parts, job(count)):
            with anyio.fail_after(DEADLINE_S):
                for _ in range(3):
                    await runs[1].receive()


@pytest.mark.anyio
async def test_only_a_run_with_something_to_tell_is_recorded(parts: Parts) -> None:
    async def quiet(_: JobServices) -> None:
        return None

    async def loud(_: JobServices) -> str:
        return "2 dropped"

    scheduler = Jobs(parts.services(), ())
    await scheduler.run(job(quiet, name="quiet"))
    await scheduler.run(job(loud, name="loud"))

    recorded = await parts.history.recent()
    assert [(run.kind, run.name, run.result) for run in recorded] == [
        (Kind.JOB, "loud", "2 dropped")
    ]


@pytest.mark.anyio
async def test_a_job_that_fails_is_recorded_and_runs_again(parts: Parts) -> None:
    async def fail(_: JobServices) -> None:
        raise OSError("no such disk")

    async def failed_twice() -> bool:
        return len(await parts.history.recent()) >= 2

    async with running(parts, job(fail)):
        await until(failed_twice)

    assert {run.result for run in await parts.history.recent()} == {"failed: OSError"}


@pytest.mark.anyio
async def test_a_run_that_takes_too_long_is_cancelled(parts: Parts) -> None:
    ended: list[str] = []

    async def hang(_: JobServices) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append("cancelled")

    with anyio.fail_after(DEADLINE_S):
        await Jobs(parts.services(), ()).run(job(hang, limit_s=0.02))

    assert ended == ["cancelled"]


@pytest.mark.anyio
async def test_a_job_never_runs_twice_at_once(parts: Parts) -> None:
    """Starts that come while it runs are dropped."""
    release, dropped = anyio.Event(), anyio.Event()
    now, most = 0, 0

    async def slow(_: JobServices) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await release.wait()
        now -= 1

    async with running(parts, job(slow)) as scheduler:
        scheduler._scheduler.add_listener(lambda _event: dropped.set(), EVENT_JOB_MAX_INSTANCES)
        with anyio.fail_after(DEADLINE_S):
            await dropped.wait()
        release.set()

    assert most == 1


@pytest.mark.anyio
async def test_stop_ends_what_runs_and_starts_nothing_more(parts: Parts) -> None:
    """When stop returns, the job's own cleaning up is done."""
    started = anyio.Event()
    ended: list[str] = []

    async def hang(_: JobServices) -> None:
        started.set()
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()
            ended.append("cleaned up")

    scheduler = Jobs(parts.services(), (job(hang),))
    await scheduler.start()
    with anyio.fail_after(DEADLINE_S):
        await started.wait()
        await scheduler.stop()

    assert ended == ["cleaned up"]
    assert not scheduler._scheduler.running


# --- the jobs themselves ---------------------------------------------------------------------


@pytest.mark.anyio
async def test_keep_alive_ticks_the_lifecycle(parts: Parts) -> None:
    await jobs.expire_idle_models(parts.services())

    assert parts.calls.ticks == 1


@pytest.mark.anyio
async def test_resources_are_sampled_only_for_an_audience(parts: Parts) -> None:
    await jobs.sample_resources(parts.services())
    with parts.bus.subscribe() as subscription:
        await jobs.sample_resources(parts.services())
        with anyio.fail_after(DEADLINE_S):
            event = await anext(aiter(subscription))

    assert isinstance(event, ResourcesSampled)
    assert event.resources.ram_total_bytes > 0


@pytest.mark.anyio
async def test_cleaning_jobs_use_the_settings(parts: Parts) -> None:
    parts.settings = Settings(partial_days=2, scrub_interval_days=10)

    told = await jobs.drop_partials(parts.services())
    nothing = await jobs.prune_quarantine(parts.services())
    await jobs.scrub(parts.services())

    assert (told, nothing) == ("2 dropped", None)
    ages = {what: (datetime.now(UTC) - at) / timedelta(days=1) for what, at in parts.calls.asked}
    assert ages == pytest.approx(
        {"partials": 2, "quarantine": jobs.QUARANTINE_DAYS, "scrub": 10}, abs=0.01
    )


@pytest.mark.anyio
async def test_what_a_measurement_takes_frees_no_models(parts: Parts) -> None:
    parts.tuner.measures = True
    await jobs.relieve(parts.services())
    assert parts.calls.relieved == 0

    parts.tuner.measures = False
    await jobs.relieve(parts.services())
    assert parts.calls.relieved == 1


@pytest.mark.anyio
async def test_orphans_are_left_alone_while_a_pull_runs(parts: Parts) -> None:
    parts.calls.active = 1
    waiting = await jobs.prune_orphans(parts.services())
    parts.calls.active = 0
    freed = await jobs.prune_orphans(parts.services())

    assert (waiting, freed) == (None, "5 bytes freed")
    assert [what for what, _ in parts.calls.asked] == ["orphans"]


@pytest.mark.anyio
async def test_the_history_is_pruned_by_the_settings(parts: Parts) -> None:
    parts.history.note(Kind.LOAD, "m", 1.0, "ready")

    kept = await jobs.prune_history(parts.services())
    parts.settings = Settings(history_days=1e-9)
    pruned = await jobs.prune_history(parts.services())

    assert (kept, pruned) == (None, "1 dropped")


@pytest.mark.anyio
async def test_no_scrub_while_somebody_works(parts: Parts) -> None:
    parts.calls.idle = 10

    assert await jobs.scrub(parts.services()) is None
    assert parts.calls.asked == []


@pytest.mark.anyio
async def test_tuning_hears_of_pulls_and_tells_what_it_began(parts: Parts) -> None:
    began = await jobs.tune(parts.services())
    parts.calls.active = 2
    nothing = await jobs.tune(parts.services())

    assert (began, nothing) == ("starter: begins", None)
    assert parts.tuner.pulls == [0, 2]


@pytest.mark.anyio
async def test_the_machine_is_measured_once(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not while somebody works, nor on battery."""
    parts.paths = from_environment({"STOKER_HOME": str(tmp_path)})
    parts.paths.create()
    parts.calls.idle = 5.0
    assert await jobs.measure_hardware(parts.services()) is None
    parts.calls.idle = 60.0
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "_on_battery", lambda: True)
        assert await jobs.measure_hardware(parts.services()) is None
    assert not parts.paths.measured_hardware.exists()

    told = await jobs.measure_hardware(parts.services())

    assert told is None or told.endswith("GB/s")  # a busy machine may tell nothing plausible
    assert parts.paths.measured_hardware.exists()


# --- the update check ------------------------------------------------------------------------


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Iterator[Releases]:
    with Releases() as found:
        monkeypatch.setenv(updates.OVERRIDE, found.url)
        yield found


WANTED = Settings(update_check=True)


@pytest.mark.anyio
@pytest.mark.parametrize("wishes", [Settings(), Settings(update_check=True, offline=True)])
async def test_nobody_is_asked_for_updates_unless_the_user_wants_it(
    parts: Parts, page: Releases, wishes: Settings
) -> None:
    parts.settings = wishes

    assert await jobs.look_for_update(parts.services()) is None

    assert (page.asked, parts.versions) == ([], [])


@pytest.mark.anyio
async def test_a_newer_version_is_told_and_recorded(parts: Parts, page: Releases) -> None:
    parts.settings = WANTED

    result = await jobs.look_for_update(parts.services())

    assert (result, parts.versions) == ("99.0.0 is there", ["99.0.0"])


@pytest.mark.anyio
async def test_no_newer_version_is_told_too(parts: Parts, page: Releases) -> None:
    """One that was found before may have been withdrawn."""
    parts.settings, page.body = WANTED, release("v0.0.1")

    result = await jobs.look_for_update(parts.services())

    assert (result, parts.versions) == ("nothing newer", [None])


@pytest.mark.anyio
@pytest.mark.parametrize(("tag", "told"), [("v99.0.0", "99.0.0"), ("v0.0.1", None)])
async def test_a_daemon_that_starts_often_asks_once_a_day(
    parts: Parts, page: Releases, tag: str, told: str | None
) -> None:
    """And still knows the answer."""
    parts.settings, page.body = WANTED, release(tag)
    scheduler, check = Jobs(parts.services(), ()), job(jobs.look_for_update, name=jobs.UPDATES)

    for _ in range(3):
        await scheduler.run(check)

    assert len(page.asked) == 1
    assert parts.versions == [told] * 3
    assert len(await parts.history.recent()) == 1


@pytest.mark.anyio
async def test_a_check_that_fails_tells_nothing_and_asks_again(
    parts: Parts, page: Releases
) -> None:
    parts.settings, page.status = WANTED, 500

    first = await jobs.look_for_update(parts.services())
    page.status = 200
    await jobs.look_for_update(parts.services())

    assert (first, parts.versions) == (None, ["99.0.0"])


def test_yesterdays_answer_is_too_old() -> None:
    now = datetime(2030, 1, 2, 12, tzinfo=UTC)
    other = Run(Kind.JOB, "scrub", now, 1.0, "m: sound")
    early = Run(Kind.JOB, jobs.UPDATES, now - timedelta(hours=1), 1.0, "9.9.9 is there")
    old = Run(Kind.JOB, jobs.UPDATES, now - timedelta(hours=21), 1.0, "9.9.8 is there")

    assert last_answer([other, early, old], now) == "9.9.9 is there"
    assert last_answer([other, old], now) is None
