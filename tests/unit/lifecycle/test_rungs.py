"""What is remembered of failures, in memory and in the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest

from stoker.errors import WorkerFailed, WorkerTimeout
from stoker.lifecycle.ladder import Rung
from stoker.lifecycle.rungs import Rungs
from stoker.tuning.launch import LaunchPlan, Wishes
from stoker.tuning.plan import make_plan
from stoker.types import Digest, FailureKind
from tests.fakes.hardware import machine
from tests.fakes.models import STARTER

pytestmark = pytest.mark.anyio

MODEL, OTHER = Digest("ab" * 32), Digest("cd" * 32)
RUNTIME = "builtin-1"
CRASH, OOM = FailureKind.CRASH, FailureKind.OUT_OF_MEMORY
NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)
WANTED = Wishes()
PLAN: LaunchPlan = make_plan("m", Path("m.gguf"), STARTER, machine(), WANTED, runtime=RUNTIME)


def failed(kind: FailureKind) -> WorkerFailed:
    return WorkerFailed("x", kind=kind.value, tail=[])


class Bench:
    """Rungs over a file, with clocks that the test moves; `settle` runs what was started."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.now = NOON
        self.seconds = 0.0
        self._started: list[Callable[..., Any]] = []
        self.rungs = self.restarted()

    def restarted(self) -> Rungs:
        """As after a restart of the daemon."""
        self.rungs = Rungs(
            self.path, self._started.append, now=lambda: self.now, clock=lambda: self.seconds
        )
        return self.rungs

    async def settle(self) -> None:
        while self._started:
            await self._started.pop()()

    async def rung(self) -> int:
        return await self.rungs.rung(MODEL, RUNTIME)

    def climb(self, rung: int, error: Any) -> int | None:
        return self.rungs.climb(MODEL, RUNTIME, rung, error, PLAN, WANTED)

    def crash(self, kind: FailureKind = CRASH, rung: int = 0) -> None:
        self.rungs.crashed(MODEL, RUNTIME, rung, kind, PLAN, WANTED)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "state" / "rungs.json")


async def test_what_worked_is_where_the_next_load_begins(bench: Bench) -> None:
    assert await bench.rung() == 0
    assert bench.climb(0, failed(OOM)) == Rung.HALF_CONTEXT
    assert await bench.rung() == 0  # nothing is remembered before it worked

    bench.rungs.worked(MODEL, RUNTIME, Rung.HALF_CONTEXT)

    assert await bench.rung() == Rung.HALF_CONTEXT
    await bench.settle()
    bench.restarted()
    assert await bench.rung() == Rung.HALF_CONTEXT


async def test_another_model_and_another_runtime_begin_at_the_top(bench: Bench) -> None:
    bench.rungs.worked(MODEL, RUNTIME, 2)

    assert await bench.rungs.rung(OTHER, RUNTIME) == 0
    assert await bench.rungs.rung(MODEL, "builtin-2") == 0


async def test_a_week_later_one_rung_down_is_tried(bench: Bench) -> None:
    bench.rungs.worked(MODEL, RUNTIME, 2)
    bench.now += timedelta(days=6)
    bench.rungs.worked(MODEL, RUNTIME, 2)  # a load in between does not make it last longer
    bench.now += timedelta(days=1, minutes=1)

    assert await bench.rung() == 1
    bench.rungs.worked(MODEL, RUNTIME, 1)
    assert await bench.rung() == 1
    bench.now += timedelta(days=8)
    assert await bench.rung() == 0
    bench.rungs.worked(MODEL, RUNTIME, 0)
    await bench.settle()
    assert json.loads(bench.path.read_bytes())["rungs"] == []


async def test_when_one_rung_down_fails_again_the_week_begins_again(bench: Bench) -> None:
    bench.rungs.worked(MODEL, RUNTIME, 2)
    bench.now += timedelta(days=8)
    assert await bench.rung() == 1
    assert bench.climb(1, failed(CRASH)) == 2
    bench.rungs.worked(MODEL, RUNTIME, 2)

    assert await bench.rung() == 2


async def test_a_clock_that_was_wrong_holds_nothing_for_ever(bench: Bench) -> None:
    bench.now += timedelta(days=4000)
    bench.rungs.worked(MODEL, RUNTIME, 3)
    bench.now = NOON

    assert await bench.rung() == 2


async def test_after_all_rungs_failed_loads_fail_soon_for_a_while(bench: Bench) -> None:
    assert bench.climb(0, failed(CRASH)) == 1
    assert bench.climb(Rung.CPU_ONLY, failed(CRASH)) is None
    assert bench.climb(0, failed(CRASH)) is None

    bench.seconds += 601

    assert bench.climb(0, failed(CRASH)) == 1


async def test_a_load_that_works_ends_that_rest(bench: Bench) -> None:
    assert bench.climb(Rung.CPU_ONLY, failed(CRASH)) is None
    bench.rungs.worked(MODEL, RUNTIME, 0)

    assert bench.climb(0, failed(CRASH)) == 1


async def test_errors_that_no_setting_mends_do_not_climb(bench: Bench) -> None:
    assert bench.climb(0, failed(FailureKind.BAD_FILE)) is None
    assert bench.climb(0, WorkerTimeout("x")) is None
    assert bench.climb(0, failed(CRASH)) == 1


async def test_the_third_crash_in_a_row_counts(bench: Bench) -> None:
    bench.crash()
    bench.crash()
    assert await bench.rung() == 0

    bench.crash()

    assert await bench.rung() == 1
    bench.crash(rung=1)
    bench.crash(rung=1)
    assert await bench.rung() == 1


async def test_a_good_answer_between_crashes_is_the_requests_fault(bench: Bench) -> None:
    """A prompt that crashes every engine must not make the model slower for all others."""
    for _ in range(10):
        bench.crash()
        bench.crash()
        bench.rungs.answered(MODEL)

    assert await bench.rung() == 0
    bench.rungs.answered(OTHER)


async def test_the_kind_decides_where_crashes_lead(bench: Bench) -> None:
    for _ in range(3):
        bench.crash(FailureKind.KILLED)

    assert await bench.rung() == Rung.HALF_CONTEXT
    for _ in range(3):
        bench.crash(FailureKind.KILLED, rung=Rung.HALF_CONTEXT)
    assert await bench.rung() == Rung.HALF_CONTEXT  # nothing is left that would help


async def test_a_model_that_is_gone_is_forgotten(bench: Bench) -> None:
    bench.rungs.worked(MODEL, RUNTIME, 2)
    bench.rungs.worked(OTHER, RUNTIME, 3)
    bench.crash()
    bench.rungs.forget(MODEL)

    assert await bench.rung() == 0
    await bench.settle()
    bench.restarted()
    assert await bench.rung() == 0
    assert await bench.rungs.rung(OTHER, RUNTIME) == 3


async def test_what_is_learnt_before_the_file_was_read_is_not_lost(bench: Bench) -> None:
    bench.rungs.worked(OTHER, RUNTIME, 3)
    await bench.settle()
    bench.restarted().worked(MODEL, RUNTIME, 2)
    await bench.settle()
    bench.restarted()

    assert await bench.rung() == 2
    assert await bench.rungs.rung(OTHER, RUNTIME) == 3


async def test_the_file_is_small_and_private(bench: Bench) -> None:
    for number in range(600):
        bench.rungs.worked(Digest(f"{number:064x}"), RUNTIME, 1)
    await bench.settle()

    content = json.loads(bench.path.read_bytes())
    assert len(content["rungs"]) == 500
    assert content["rungs"][-1]["model"] == f"{599:064x}"
    assert bench.path.stat().st_mode & 0o077 == 0
    bench.restarted()
    assert await bench.rungs.rung(Digest(f"{599:064x}"), RUNTIME) == 1


GOOD = {"model": MODEL.hex, "runtime": RUNTIME, "rung": 2, "at": NOON.isoformat()}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        "[" * 100_000,
        '{"version": 2, "rungs": []}',
        '{"version": 1, "rungs": {}}',
        *(
            json.dumps({"version": 1, "rungs": [{**GOOD, **wrong}]})
            for wrong in (
                {"rung": 0},
                {"rung": 7},
                {"rung": -1},
                {"rung": 1e99},
                {"rung": "2"},
                {"rung": True},
                {"model": "../x"},
                {"model": MODEL.hex.upper()},
                {"runtime": ""},
                {"runtime": "../../etc"},
                {"runtime": "x" * 1000},
                {"at": "yesterday"},
                {"at": "2026-03-04T12:00:00"},  # in no time zone
                {"more": 1},
            )
        ),
        json.dumps({"version": 1, "rungs": [GOOD] * 501}),
        " " * (1 << 18) + "{}",
    ],
)
async def test_a_damaged_file_costs_nothing_but_what_it_held(bench: Bench, content: str) -> None:
    bench.path.parent.mkdir()
    bench.path.write_text(content, encoding="utf-8")

    assert await bench.rung() == 0
    bench.rungs.worked(MODEL, RUNTIME, 2)
    await bench.settle()
    bench.restarted()
    assert await bench.rung() == 2


async def test_a_link_is_not_followed(bench: Bench, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.json"
    elsewhere.write_text(json.dumps({"version": 1, "rungs": [GOOD]}), encoding="utf-8")
    bench.path.parent.mkdir()
    bench.path.symlink_to(elsewhere)

    assert await bench.rung() == 0


async def test_a_disk_that_refuses_is_only_logged(bench: Bench) -> None:
    bench.path.mkdir(parents=True)  # a folder where the file should be

    assert await bench.rung() == 0
    bench.rungs.worked(MODEL, RUNTIME, 2)
    await bench.settle()

    assert await bench.rung() == 2


async def test_writes_at_once_leave_the_newest(bench: Bench) -> None:
    async with anyio.create_task_group() as tasks:
        rungs = Rungs(bench.path, tasks.start_soon, now=lambda: NOON)
        for rung in (1, 2, 3, 4):
            rungs.worked(MODEL, RUNTIME, rung)
    bench.restarted()

    assert await bench.rung() == 4
