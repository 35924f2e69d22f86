"""On which rung of the ladder each model starts, in a small file. Safe to delete.

What was learnt holds for one model under one runtime: another one is another program, and begins
at the top. After a week one rung down is tried again, because drivers and memory change, too.
What does not read back exactly as it was written is not used: a damaged file costs a few failed
starts, never a load. Not for: what a rung means (`ladder`).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Final, Literal

import anyio
import structlog
from anyio.to_thread import run_sync
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from stoker.errors import StokerError, StoreError
from stoker.lifecycle import ladder
from stoker.lifecycle.ladder import Rung
from stoker.store import disk
from stoker.tuning.launch import LaunchPlan, Wishes
from stoker.types import Digest, FailureKind

log = structlog.get_logger(__name__)

_MOST_BYTES: Final = 1 << 18
_MOST: Final = 500  # models that are held back; the oldest go
_GOOD_FOR: Final = timedelta(days=7)
_CLOCKS: Final = timedelta(days=1)  # what was written later than this from now is not believed
_CRASHES: Final = 3  # in a row; one or two may be a request's fault
_REST_S: Final = 600.0  # after all rungs failed: loads try only one, and fail quickly


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class _Entry(_Document):
    model: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    runtime: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,95}$")]
    rung: Annotated[int, Field(ge=1, le=max(Rung))]
    at: Annotated[AwareDatetime, Field(strict=False)]


class _File(_Document):
    version: Literal[1] = 1
    rungs: Annotated[list[_Entry], Field(max_length=_MOST)] = Field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Remembered:
    rung: int
    at: datetime


_Key = tuple[Digest, str]


class Rungs:
    """One per daemon; used from the event loop's thread only."""

    def __init__(
        self,
        path: Path,
        start: Callable[..., object],
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``start`` runs a coroutine function beside everything else."""
        self._path = path
        self._start = start
        self._now = now
        self._clock = clock
        self._known: dict[_Key, _Remembered] = {}
        self._loaded = False
        self._crashes: Counter[Digest] = Counter()  # in a row, of workers that served
        self._given_up: dict[_Key, float] = {}
        self._lock = anyio.Lock()

    async def rung(self, model: Digest, runtime: str) -> int:
        """Where to begin a load. Never raises."""
        await self._load()
        entry = self._known.get((model, runtime))
        if entry is None:
            return Rung.NORMAL
        return entry.rung - 1 if self._is_old(entry) else entry.rung

    def climb(
        self,
        model: Digest,
        runtime: str,
        rung: int,
        error: StokerError,
        plan: LaunchPlan,
        wanted: Wishes,
    ) -> int | None:
        """A load with this plan failed on ``rung``: where to try it next, at once; None: nowhere.

        Nothing is remembered before a rung `worked`. After all of them failed, this says None
        for ten minutes, so that requests learn soon that the model does not load.
        """
        kind = ladder.kind_of(error)
        if kind is None or self._rests(model, runtime):
            return None
        found = ladder.next_rung(rung, kind, plan, wanted)
        if found is None and rung > Rung.NORMAL:
            self._given_up[model, runtime] = self._clock()
        return found

    def worked(self, model: Digest, runtime: str, rung: int) -> None:
        """A worker on this rung is ready."""
        self._given_up.pop((model, runtime), None)
        entry = self._known.get((model, runtime))
        if entry is not None and entry.rung == rung and not self._is_old(entry):
            return
        if entry is not None or rung > Rung.NORMAL:
            self._remember(model, runtime, rung)

    def crashed(
        self,
        model: Digest,
        runtime: str,
        rung: int,
        kind: FailureKind,
        plan: LaunchPlan,
        wanted: Wishes,
    ) -> None:
        """A worker that served ended by itself. The third in a row counts against its settings."""
        self._crashes[model] += 1
        if self._crashes[model] < _CRASHES:
            return
        del self._crashes[model]
        found = ladder.next_rung(rung, kind, plan, wanted)
        if found is not None:
            self._remember(model, runtime, found)

    def answered(self, model: Digest) -> None:
        """A request was answered to its end. Cheap."""
        self._crashes.pop(model, None)

    def forget(self, model: Digest) -> None:
        """It is no longer here, or the user wants to try again."""
        self._crashes.pop(model, None)
        for key in [key for key in self._given_up if key[0] == model]:
            del self._given_up[key]
        gone = [key for key in self._known if key[0] == model]
        for key in gone:
            del self._known[key]
        if gone:
            self._start(self._write)

    # --- inside ------------------------------------------------------------------------------

    async def _load(self) -> None:
        """Read the file, once. What was learnt meanwhile is newer."""
        if not self._loaded:
            found = await run_sync(_read, self._path)
            self._known = {**found, **self._known}
            self._loaded = True

    def _is_old(self, entry: _Remembered) -> bool:
        age = self._now() - entry.at
        return age > _GOOD_FOR or age < -_CLOCKS

    def _rests(self, model: Digest, runtime: str) -> bool:
        since = self._given_up.get((model, runtime))
        return since is not None and self._clock() - since < _REST_S

    def _remember(self, model: Digest, runtime: str, rung: int) -> None:
        self._known.pop((model, runtime), None)
        if rung > Rung.NORMAL:
            self._known[model, runtime] = _Remembered(rung, self._now())
        log.info("model_held_back", model=str(model), runtime=runtime, rung=rung)
        self._start(self._write)

    async def _write(self) -> None:
        """What is known when it is its turn; the last one writes all."""
        async with self._lock:
            await self._load()
            rungs = [
                _Entry(model=model.hex, runtime=runtime, rung=entry.rung, at=entry.at)
                for (model, runtime), entry in list(self._known.items())[-_MOST:]
            ]
            try:
                await run_sync(_save, self._path, _File(rungs=rungs))
            except StoreError as error:  # it stays in memory, and is learnt again some day
                log.warning("rungs_not_written", reason=error.message)


def _read(path: Path) -> dict[_Key, _Remembered]:
    try:
        found = _File.model_validate_json(disk.read_file(path, _MOST_BYTES))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        reason = f"{error.error_count()} faults" if isinstance(error, ValidationError) else error
        log.warning("rungs_ignored", reason=str(reason)[:200])
        return {}
    return {
        (Digest(one.model), one.runtime): _Remembered(one.rung, one.at.astimezone(UTC))
        for one in found.rungs
    }


def _save(path: Path, content: _File) -> None:
    """Raises StoreError; the old content is then still there."""
    with disk.wrapped("remember what worked", path):
        disk.make_folder(path.parent)
        disk.write_file(path, content.model_dump_json(indent=1).encode() + b"\n", ".tmp")
