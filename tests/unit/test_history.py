from __future__ import annotations

import sqlite3
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import pytest

from stoker.errors import StoreTooNew
from stoker.events import EventBus
from stoker.history import MIGRATIONS, History, Kind, Stopwatch, connect, migrate, record_events
from stoker.schemas import ErrorView, Goodbye, ModelChanged, ModelView, PullChanged, PullView
from stoker.types import ModelState, PullState


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[History]:
    history = await History.open(path)
    try:
        yield history
    finally:
        await history.close()


@contextmanager
def database(path: str | Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(path)
    try:
        with connection:
            yield connection
    finally:
        connection.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "history.sqlite3"


@pytest.mark.anyio
async def test_runs_come_back_newest_first_after_a_restart(path: Path) -> None:
    """What was recorded is there when the file is opened again."""
    async with opened(path) as history:
        history.note(Kind.LOAD, "starter", 1.5, "ready")
        history.note(Kind.PULL, "owner/repo", 60.0, "done")
        history.note(Kind.JOB, "scrub", 3.0, "sound")

    async with opened(path) as history:
        runs = await history.recent()

    assert [(run.kind, run.name, run.seconds, run.result) for run in runs] == [
        (Kind.JOB, "scrub", 3.0, "sound"),
        (Kind.PULL, "owner/repo", 60.0, "done"),
        (Kind.LOAD, "starter", 1.5, "ready"),
    ]
    assert all(abs((datetime.now(UTC) - run.at).total_seconds()) < 60 for run in runs)


@pytest.mark.anyio
async def test_recent_can_be_narrowed(path: Path) -> None:
    async with opened(path) as history:
        for number in range(3):
            history.note(Kind.LOAD, f"m{number}", 1.0, "ready")
            history.note(Kind.JOB, "scrub", 1.0, "sound")

        loads = await history.recent(Kind.LOAD, limit=2)

    assert [run.name for run in loads] == ["m2", "m1"]


@pytest.mark.anyio
async def test_the_last_good_load_of_each_model_is_known(path: Path) -> None:
    """Failed ones, later pulls and what is no number are left out."""
    async with opened(path) as history:
        history.note(Kind.LOAD, "a", 9.0, "ready")
        history.note(Kind.LOAD, "a", 2.0, "ready")
        history.note(Kind.LOAD, "a", 60.0, "worker_failed")
        history.note(Kind.PULL, "a", 50.0, "ready")
        history.note(Kind.LOAD, "b", 1.5, "ready")
        history.note(Kind.LOAD, "c", 1.0, "memory_short")
        await history.recent()
        with database(path) as other:
            other.execute("INSERT INTO runs VALUES (99, 'load', 'd', 0, 'soon', 'ready')")
            other.execute("INSERT INTO runs VALUES (98, 'load', 'e', 0, 9e999, 'ready')")

        assert await history.load_seconds() == {"a": 2.0, "b": 1.5}


@pytest.mark.anyio
async def test_rows_that_are_none_of_ours_are_passed_over(path: Path) -> None:
    """Another program, or a newer Stoker, may have written them."""
    async with opened(path) as history:
        history.note(Kind.CRASH, "m", 3.0, "out_of_memory")
        await history.recent()
        with database(path) as other:
            other.executemany(
                "INSERT INTO runs VALUES (?, ?, 'x', ?, ?, 'ready')",
                (
                    (91, "dance", 0, 1.0),
                    (92, "load", "yesterday", 1.0),
                    (93, "load", 9e300, 1.0),
                    (94, "load", 0, "long"),
                ),
            )

        runs = await history.recent()

    assert [(run.kind, run.result) for run in runs] == [(Kind.CRASH, "out_of_memory")]


@pytest.mark.anyio
async def test_a_history_of_the_first_version_is_carried_on(path: Path) -> None:
    """Its rows stay, and the kinds that came later find their place."""
    with database(path) as connection:
        migrate(connection, MIGRATIONS[:1])
        connection.execute("INSERT INTO runs VALUES (1, 'load', 'm', 0, 2.5, 'ready')")

    async with opened(path) as history:
        history.note(Kind.UNLOAD, "m", 60.0, "idle")
        runs = await history.recent()
        loads = await history.load_seconds()

    assert [(run.kind, run.seconds) for run in runs] == [(Kind.UNLOAD, 60.0), (Kind.LOAD, 2.5)]
    assert loads == {"m": 2.5}


@pytest.mark.anyio
async def test_a_note_after_the_end_is_lost_in_silence(path: Path) -> None:
    """The last worker may end after the history was closed."""
    async with opened(path) as history:
        history.note(Kind.LOAD, "m", 1.0, "ready")
    history.note(Kind.UNLOAD, "m", 1.0, "closed")

    async with opened(path) as history:
        assert [run.kind for run in await history.recent()] == [Kind.LOAD]


@pytest.mark.anyio
async def test_prune_drops_only_what_is_older(path: Path) -> None:
    async with opened(path) as history:
        history.note(Kind.LOAD, "old", 1.0, "ready")
        await history.recent()
        between = datetime.now(UTC)
        history.note(Kind.LOAD, "new", 1.0, "ready")

        kept_all = await history.prune(between - timedelta(days=1))
        dropped = await history.prune(between)
        left = await history.recent()

    assert (kept_all, dropped) == (0, 1)
    assert [run.name for run in left] == ["new"]


@pytest.mark.anyio
@pytest.mark.parametrize("rubbish", [b"not a database, but long enough to be read as one" * 40])
async def test_a_file_that_is_no_database_is_moved_aside(path: Path, rubbish: bytes) -> None:
    """The daemon starts with an empty history, and the bad file is kept."""
    await anyio.Path(path).write_bytes(rubbish)

    async with opened(path) as history:
        history.note(Kind.LOAD, "starter", 1.0, "ready")
        runs = await history.recent()

    assert [run.name for run in runs] == ["starter"]
    assert path.with_name("history.sqlite3.broken").read_bytes() == rubbish


@pytest.mark.anyio
async def test_a_damaged_page_is_found_when_opening(path: Path) -> None:
    async with opened(path) as history:
        history.note(Kind.LOAD, "m", 1.0, "ready")
    raw = bytearray(await anyio.Path(path).read_bytes())
    raw[4096:8192] = b"\xff" * 4096  # the table's page; the header stays sound
    await anyio.Path(path).write_bytes(raw)

    async with opened(path) as history:
        runs = await history.recent()

    assert runs == []
    assert path.with_name("history.sqlite3.broken").read_bytes() == raw


@pytest.mark.anyio
async def test_a_newer_history_is_kept_aside(path: Path) -> None:
    """After a downgrade the newer file is not touched, only renamed."""
    with database(path) as connection:
        connection.execute("CREATE TABLE runs (something TEXT)")
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")

    async with opened(path) as history:
        history.note(Kind.LOAD, "starter", 1.0, "ready")
        assert len(await history.recent()) == 1

    with database(path.with_name("history.sqlite3.broken")) as kept:
        version = kept.execute("PRAGMA user_version").fetchone()[0]
    assert version == len(MIGRATIONS) + 1


@pytest.mark.anyio
async def test_without_a_place_to_write_nothing_fails(tmp_path: Path) -> None:
    """A history that cannot be opened loses its rows and raises nothing."""
    async with opened(tmp_path / "no" / "such" / "folder") as history:
        history.note(Kind.LOAD, "starter", 1.0, "ready")

        assert await history.recent() == []
        assert await history.prune(datetime.now(UTC)) == 0


@pytest.mark.anyio
async def test_a_lost_table_fails_softly(path: Path) -> None:
    async with opened(path) as history:
        with database(path) as other:
            other.execute("DROP TABLE runs")

        history.note(Kind.LOAD, "starter", 1.0, "ready")

        assert await history.recent() == []


@pytest.mark.anyio
async def test_the_event_loop_stays_free(path: Path) -> None:
    """SQLite runs in a thread of its own."""
    async with opened(path) as history:
        history.note(Kind.LOAD, "starter", 1.0, "ready")

        assert any(thread.name.startswith("history") for thread in threading.enumerate())


def test_migrations_run_once_each_and_keep_rows(path: Path) -> None:
    first, second = "CREATE TABLE t (a)", "ALTER TABLE t ADD COLUMN b DEFAULT 7"
    with database(path) as connection:
        migrate(connection, [first])
        connection.execute("INSERT INTO t VALUES (1)")

    with database(path) as connection:
        migrate(connection, [first, second])
        migrate(connection, [first, second])

        assert connection.execute("SELECT a, b FROM t").fetchall() == [(1, 7)]
        assert connection.execute("PRAGMA user_version").fetchone() == (2,)


def test_a_migration_that_fails_changes_nothing(path: Path) -> None:
    with database(path) as connection:
        migrate(connection, ["CREATE TABLE t (a)"])

        with pytest.raises(sqlite3.OperationalError):
            migrate(connection, ["", "CREATE TABLE u (a); CREATE TABLE t (a)"])

        tables = connection.execute("SELECT name FROM sqlite_master").fetchall()
        assert tables == [("t",)]
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)


def test_connect_refuses_a_newer_version_and_closes_the_file(path: Path) -> None:
    with database(path) as connection:
        connection.execute("PRAGMA user_version = 99")

    with pytest.raises(StoreTooNew):
        connect(path)


# --- events ----------------------------------------------------------------------------------


def pull(state: PullState, error: ErrorView | None = None) -> PullChanged:
    return PullChanged(pull=PullView(id="p1", reference="owner/repo", state=state, error=error))


def test_a_failure_is_recorded_with_its_code() -> None:
    watch = Stopwatch()
    error = ErrorView(code="disk_full", message="no room", hint="free some")

    watch.on(pull(PullState.FETCHING), 0.0)

    assert watch.on(pull(PullState.FAILED, error), 4.0) == ("owner/repo", 4.0, "disk_full")


def test_a_pull_is_timed_from_its_first_event() -> None:
    watch = Stopwatch()

    assert watch.on(pull(PullState.QUEUED), 1.0) is None
    assert watch.on(pull(PullState.PAUSED), 2.0) is None
    assert watch.on(pull(PullState.DONE), 9.0) == ("owner/repo", 8.0, "done")
    assert watch.on(Goodbye(), 9.0) is None


@pytest.mark.anyio
async def test_events_become_rows(path: Path) -> None:
    """A recorder on the bus writes down which pulls end; models are no matter of its."""
    bus = EventBus()
    async with opened(path) as history, anyio.create_task_group() as tasks:
        tasks.start_soon(record_events, history, bus)
        await anyio.wait_all_tasks_blocked()

        for state in (ModelState.LOADING, ModelState.READY):
            bus.publish(ModelChanged(model=ModelView(id="m", state=state)))
        bus.publish(pull(PullState.QUEUED))
        bus.publish(pull(PullState.DONE))
        with anyio.fail_after(10):
            while not await history.recent():
                await anyio.lowlevel.checkpoint()
        runs = await history.recent()
        tasks.cancel_scope.cancel()

    assert [(run.kind, run.name) for run in runs] == [(Kind.PULL, "owner/repo")]


def test_a_signed_address_is_not_recorded() -> None:
    """What follows the question mark of a URL may be a secret."""
    watch = Stopwatch()
    pull = PullView(id="p1", reference="https://h/m.gguf?sig=geheim", state=PullState.DONE)

    ended = watch.on(PullChanged(pull=pull), 1.0)

    assert ended is not None
    assert ended[0] == "https://h/m.gguf"
