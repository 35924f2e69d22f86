"""Planned memory against the memory that real workers use, with every cell of the context filled.

    python -m tests.benchmarks.memory [--model starter|gemma|both] [--quick] [--json FILE]

Fourteen settings for each model and runtime. The plan is asked as the product asks it: with the
engine's own dry run, and once more by its formulas alone, as for a very first load. Exits 1 when a
prediction is off by more than a tenth, or under by more than a fiftieth. Takes about ten minutes a
model on two idle cores. Linux only.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import anyio

from stoker.engine.lab import SurveyWanted, open_lab
from stoker.errors import LabFailed
from stoker.tuning.launch import KvType, LaunchPlan, MemoryNeed, Survey, Wishes
from stoker.tuning.memory import MIB
from stoker.tuning.surveys import survey_grid
from tests.benchmarks.speeds import fill
from tests.benchmarks.workers import MODELS, Model, Place, chosen, place

OVER_BOUND: Final = 0.10
UNDER_BOUND: Final = -0.02
_LOOK_S: Final = 0.01  # a decode of a whole batch takes longer
_QUICK_STEP: Final = 4  # one setting in so many


@dataclass(frozen=True, slots=True)
class Setting:
    """What costs memory."""

    context: int
    slots: int
    ubatch: int
    flash: bool = True
    kv_type: KvType = "f16"
    extra_buffers: bool = True

    @property
    def wishes(self) -> Wishes:
        return Wishes(
            context=self.context,
            parallel=self.slots,
            ubatch=self.ubatch,
            flash_attention=self.flash,
            kv_type=self.kv_type,
            safe_mode=not self.extra_buffers,
        )

    def __str__(self) -> str:
        flash = "fa" if self.flash else "--"
        buffers = "copies" if self.extra_buffers else "plain"
        return (
            f"{self.context:5} x{self.slots} u{self.ubatch:<4} {flash} {self.kv_type:4} {buffers:6}"
        )


SETTINGS: Final = (
    Setting(512, 1, 512),
    Setting(1024, 1, 128),
    Setting(2048, 2, 256),
    Setting(2048, 4, 512),
    Setting(4096, 1, 512),
    Setting(4096, 4, 512),
    Setting(4096, 2, 128, kv_type="q8_0"),
    Setting(4096, 1, 512, flash=False),
    Setting(2048, 4, 512, flash=False),
    Setting(8192, 1, 512, kv_type="q8_0"),
    Setting(8192, 2, 1024),
    Setting(8192, 1, 256, extra_buffers=False),
    Setting(2048, 1, 512, kv_type="q4_0"),
    Setting(1024, 4, 128, flash=False, extra_buffers=False),
)


@dataclass(frozen=True, slots=True)
class Used:
    """Peaks of one worker, in bytes."""

    anonymous: int  # RssAnon + RssShmem: what must fit
    whole: int  # with all of the weights, and the code that is mapped


@dataclass(frozen=True, slots=True)
class Row:
    """One worker."""

    model: str
    runtime: str
    setting: str
    cells: int
    predicted: MemoryNeed
    by_formula: MemoryNeed | None  # None: without the dry run the plan would be another one
    used: Used
    surveyed: bool

    @property
    def error(self) -> float:
        """Of the prediction, as a share of what was used."""
        return self.predicted.total_bytes / self.used.whole - 1

    @property
    def formula_error(self) -> float | None:
        if self.by_formula is None:
            return None
        return self.by_formula.total_bytes / self.used.whole - 1


async def survey(where: Place, model: Model, runtime: str) -> Survey | None:
    """As the product does it after a first load."""
    plan = where.plan(model, runtime, Wishes())
    wanted = [SurveyWanted(*point) for point in survey_grid(model.facts, plan)]
    try:
        async with open_lab(where.library(runtime), cwd=where.paths.worker_cwd) as lab:
            return await lab.survey(model.path, wanted)
    except LabFailed as error:
        print(f"{model.name}, {runtime}: no dry run: {error.message}", file=sys.stderr)
        return None


async def look(
    where: Place, model: Model, runtime: str, setting: Setting, known: Survey | None
) -> Row:
    """Start one worker, fill it, and compare."""
    plan = where.plan(model, runtime, setting.wishes, survey=known)
    formula = where.plan(model, runtime, setting.wishes)
    like = replace(plan, memory=formula.memory, reasons=formula.reasons)
    async with where.serving(plan) as serving:
        with _watching(serving.pid, model.path) as watch:
            await fill(serving, slots=plan.parallel, context=plan.context, cells=_cells(plan))
        used = watch.used()
    return Row(
        model=model.name,
        runtime=runtime,
        setting=str(setting),
        cells=_cells(plan),
        predicted=plan.memory,
        by_formula=formula.memory if like == formula else None,
        used=used,
        surveyed=known is not None,
    )


def _cells(plan: LaunchPlan) -> int:
    return max(plan.cells, plan.context)


class _Watch:
    """Looks at a process again and again, because the kernel keeps a peak of the sum only."""

    def __init__(self, pid: int, weights: Path) -> None:
        self._pid = pid
        self._weights = weights.resolve()  # as the kernel names it
        self._end = threading.Event()
        self._anonymous = 0
        self.thread = threading.Thread(target=self._look)

    def stop(self) -> None:
        self._end.set()
        self.thread.join()

    def used(self) -> Used:
        """While the process is still there."""
        now = self._status()
        code = now["RssFile"] - self._resident_weights()
        whole = self._anonymous + code + self._weights.stat().st_size
        return Used(self._anonymous, max(whole, now["VmHWM"]))

    def _look(self) -> None:
        while not self._end.wait(_LOOK_S):
            now = self._status()
            self._anonymous = max(self._anonymous, now["RssAnon"] + now["RssShmem"])

    def _status(self) -> dict[str, int]:
        text = Path(f"/proc/{self._pid}/status").read_text()
        found = re.findall(r"^(VmHWM|RssAnon|RssFile|RssShmem):\s+(\d+) kB$", text, re.MULTILINE)
        return {name: int(size) * 1024 for name, size in found}

    def _resident_weights(self) -> int:
        total, ours = 0, False
        for line in Path(f"/proc/{self._pid}/smaps").read_text().splitlines():
            if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
                ours = line.endswith(str(self._weights))
            elif ours and line.startswith("Rss:"):
                total += int(line.split()[1]) * 1024
        return total


@contextmanager
def _watching(pid: int, weights: Path) -> Iterator[_Watch]:
    watch = _Watch(pid, weights)
    watch.thread.start()
    try:
        yield watch
    finally:
        watch.stop()


def failures(rows: list[Row]) -> list[str]:
    """The predictions that are out of bounds, in words. Pure."""
    return [
        f"{row.model}, {row.runtime}, {row.setting}: {row.error:+.1%}"
        for row in rows
        if not UNDER_BOUND <= row.error <= OVER_BOUND
    ]


def show(row: Row) -> None:
    """One line of the table."""
    formula = row.formula_error
    print(
        f"{row.model:8} {row.runtime:26} {row.setting} {row.cells:6}"
        f" {row.used.anonymous / MIB:9.1f} {row.predicted.anonymous_bytes / MIB:9.1f}"
        f" {row.used.whole / MIB:9.1f} {row.predicted.total_bytes / MIB:9.1f} {row.error:+7.1%}"
        f" {'' if formula is None else f'{formula:+7.1%}'}"
        f"{'' if row.surveyed else '  (no dry run)'}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.memory")
    parser.add_argument("--model", choices=(*MODELS, "both"), default="both")
    parser.add_argument("--quick", action="store_true", help="every fourth setting")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    settings = SETTINGS[:: _QUICK_STEP if options.quick else 1]
    rows: list[Row] = []

    async def run() -> None:
        with place() as where:
            for model in chosen(options.model):
                await where.prepare(model)
                for runtime in where.runtimes:
                    known = await survey(where, model, runtime)
                    for setting in settings:
                        rows.append(await look(where, model, runtime, setting, known))
                        show(rows[-1])

    print(
        f"{'model':8} {'runtime':26} {'context slots ubatch':32} {'cells':>6}"
        f" {'anonymous':>9} {'planned':>9} {'whole':>9} {'planned':>9} {'error':>7} {'formula':>7}"
    )
    anyio.run(run)
    missed = failures(rows)
    errors = [row.error for row in rows]
    print(f"MiB; {len(rows)} workers, errors from {min(errors):+.1%} to {max(errors):+.1%}")
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    if missed:
        raise SystemExit("\n".join(missed))


if __name__ == "__main__":
    main()
