"""What happened to models, pulls and jobs, in SQLite, for `stoker` to show and people to ask.

Never the truth about anything: the daemon works the same without it. So no method raises for a
database that is broken, locked or read-only; that is logged, and the row is lost. Not for:
requests. Who asked what, and when, is written down nowhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Final, Self, TypeVar

import structlog

from stoker.errors import StoreTooNew
from stoker.events import EventBus
from stoker.schemas import Event, PullChanged
from stoker.types import ModelState

log = structlog.get_logger(__name__)

T = TypeVar("T")
Row = tuple[str, str, float, float, str]

# Each script takes the database from version N to N+1. Only ever add one at the end.
MIGRATIONS: Final = (
    """
    CREATE TABLE runs (
        id INTEGER PRIMARY KEY,
        kind TEXT NOT NULL,
        name TEXT NOT NULL,
        at REAL NOT NULL,       -- end, seconds since 1970
        seconds REAL NOT NULL,
        result TEXT NOT NULL
    );
    CREATE INDEX runs_by_time ON runs (at);
    """,
    # The kinds unload, crash and switch, which the readers of version 1 do not understand.
    """
    CREATE INDEX runs_by_kind ON runs (kind, name);
    """,
)

_BUSY_S: Final = 2.0  # somebody may look into the file with the sqlite3 command


class Kind(StrEnum):
    """What a row tells of; `seconds` and `result` are the words after it."""

    LOAD = "load"  # until its worker was ready or it failed: ready, cancelled, an error code
    UNLOAD = "unload"  # how long it had been loaded: why it left (`lifecycle.effects.Why`)
    CRASH = "crash"  # how long it had been loaded: the failure's kind, or an error code
    SWITCH = "switch"  # until the model that the user chose was there: ready, an error code
    PULL = "pull"  # the whole pull: done, cancelled, an error code
    JOB = "job"  # the run: what it did, in words


@dataclass(frozen=True, slots=True)
class Run:
    """Something that took a while and ended."""

    kind: Kind
    name: str
    at: datetime
    seconds: float
    result: str


class History:
    """One per daemon. Every call runs in one worker thread, in order."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._executor = ThreadPoolExecutor(1, "history")
        self._connection: sqlite3.Connection | None = None  # used in the worker thread only

    @classmethod
    async def open(cls, path: Path) -> Self:
        """Open or create the database; one that cannot be used is moved aside. Never raises."""
        history = cls(path)
        await history._call(history._open, None)
        return history

    async def close(self) -> None:
        """Write what is under way and close the file."""
        await self._call(self._close, None)
        self._executor.shutdown(wait=False)

    def note(self, kind: Kind, name: str, seconds: float, result: str) -> None:
        """Write that this has just ended. Does not wait; later reads see it."""
        row = (kind.value, name, datetime.now(UTC).timestamp(), seconds, result)
        with contextlib.suppress(RuntimeError):  # it was closed: the daemon is ending
            self._executor.submit(self._softly, partial(self._insert, row), 0)

    async def recent(self, kind: Kind | None = None, limit: int = 100) -> list[Run]:
        """The newest first."""
        nothing: list[Row] = []
        rows = await self._call(lambda: self._select(kind, limit), nothing)
        return [run for row in rows if (run := _run(row)) is not None]

    async def load_seconds(self) -> dict[str, float]:
        """How long the last good load of each model took."""
        nothing: list[tuple[str, float]] = []
        return dict(await self._call(self._select_loads, nothing))

    async def prune(self, older_than: datetime) -> int:
        """Delete what ended before; the count of rows deleted."""
        at = older_than.timestamp()
        return await self._call(lambda: self._write("DELETE FROM runs WHERE at < ?", (at,)), 0)

    async def _call(self, work: Callable[[], T], otherwise: T) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, self._softly, work, otherwise)

    # --- in the worker thread ----------------------------------------------------------------

    def _softly(self, work: Callable[[], T], otherwise: T) -> T:
        try:
            return work()
        except (sqlite3.Error, OSError) as error:
            log.warning("history_failed", error=str(error))
            return otherwise

    def _open(self) -> None:
        try:
            self._connection = connect(self._path)
        except sqlite3.OperationalError:
            raise  # locked, read-only or no room: the file itself may be sound
        except (sqlite3.DatabaseError, StoreTooNew) as error:
            log.warning("history_moved_aside", path=str(self._path), error=str(error))
            _move_aside(self._path)
            self._connection = connect(self._path)

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _write(self, statement: str, values: Sequence[object]) -> int:
        if self._connection is None:
            return 0
        with self._connection:
            return self._connection.execute(statement, values).rowcount

    def _insert(self, row: Row) -> int:
        insert = "INSERT INTO runs (kind, name, at, seconds, result) VALUES (?, ?, ?, ?, ?)"
        return self._write(insert, row)

    def _select_loads(self) -> list[tuple[str, float]]:
        if self._connection is None:
            return []
        # With MAX in a query, SQLite takes the other columns from that very row.
        rows = self._connection.execute(
            "SELECT name, seconds, MAX(id) FROM runs WHERE kind = ? AND result = ? GROUP BY name",
            (Kind.LOAD.value, ModelState.READY.value),
        )
        # Anybody may write to the file, and SQLite holds a column to no type.
        return [
            (str(name), seconds)
            for name, seconds, _ in rows
            if isinstance(seconds, float) and math.isfinite(seconds)
        ]

    def _select(self, kind: Kind | None, limit: int) -> list[Row]:
        if self._connection is None:
            return []
        return self._connection.execute(
            "SELECT kind, name, at, seconds, result FROM runs"
            " WHERE ?1 IS NULL OR kind = ?1 ORDER BY id DESC LIMIT ?2",
            (kind.value if kind else None, limit),
        ).fetchall()


def _run(row: Row) -> Run | None:
    """None for what is no row of ours: anybody may write to the file."""
    kind, name, at, seconds, result = row
    try:
        ended = datetime.fromtimestamp(at, UTC)
        return Run(Kind(kind), str(name), ended, float(seconds), str(result))
    except (ValueError, TypeError, OverflowError, OSError):
        return None


def connect(path: Path) -> sqlite3.Connection:
    """An open database of the present version. Raises sqlite3.DatabaseError, StoreTooNew."""
    connection = sqlite3.connect(path, timeout=_BUSY_S)
    try:
        _check(connection)
        migrate(connection, MIGRATIONS)
        # No write-ahead log: writes are rare, and one file is easier to move and to remove.
        connection.execute("PRAGMA synchronous = NORMAL")
    except BaseException:
        connection.close()
        raise
    return connection


def _check(connection: sqlite3.Connection) -> None:
    verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if verdict != "ok":
        raise sqlite3.DatabaseError(verdict)


def migrate(connection: sqlite3.Connection, scripts: Sequence[str]) -> None:
    """Bring the database to version len(scripts), each step all or nothing.

    Raises StoreTooNew, with nothing changed, when it is past that already.
    """
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > len(scripts):
        msg = f"the history has version {version}, this Stoker knows {len(scripts)}"
        raise StoreTooNew(msg)
    for number, script in enumerate(scripts[version:], version + 1):
        step = f"BEGIN IMMEDIATE; {script}; PRAGMA user_version = {number}; COMMIT;"
        try:
            connection.executescript(step)
        except sqlite3.Error:
            connection.rollback()
            raise


def _move_aside(path: Path) -> None:
    """Keep it under another name; the one that was kept before makes room."""
    path.replace(path.with_name(f"{path.name}.broken"))
    path.with_name(f"{path.name}-journal").unlink(missing_ok=True)  # belongs to the broken one


# --- from events to rows ---------------------------------------------------------------------


async def record_events(history: History, bus: EventBus) -> None:
    """Write down every pull that ends, until cancelled."""
    stopwatch = Stopwatch()
    with bus.subscribe(client=False) as subscription:
        async for event in subscription:
            ended = stopwatch.on(event, time.monotonic()) if event is not None else None
            if ended is not None:
                history.note(Kind.PULL, *ended)


class Stopwatch:
    """How long pulls took, from the events that tell of them. No clock of its own."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}

    def on(self, event: Event, now: float) -> tuple[str, float, str] | None:
        """The pull that this event ends: its reference, seconds and result."""
        if not isinstance(event, PullChanged):
            return None
        pull = event.pull
        since = self._since.setdefault(pull.id, now)
        if not pull.state.ended:
            return None
        del self._since[pull.id]
        result = pull.error.code if pull.error else pull.state.value
        address, _, secret = pull.reference.partition("?")  # a URL's query may be a signature
        name = address if secret and "://" in address else pull.reference
        return name, now - since, result
