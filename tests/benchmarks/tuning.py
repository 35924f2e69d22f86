"""How close the measured search comes to the best this machine can do, and the engine's defaults.

    python -m tests.benchmarks.tuning [--model starter|gemma|both] [--quick] [--json FILE]

In one session for each model: an exhaustive grid (threads, threads for batches, ubatch, flash
attention, runtime), the product's own choice of a runtime and its search, then rounds in which the
best of the rest of the grid, two workers with the tuned plan and the defaults of each runtime take
turns. All are real workers, asked over HTTP. Takes three quarters of an hour a model on two idle
cores; what other programs use meanwhile is shown. Exits 1 when a bound is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any, Final

import anyio

from stoker.tuner.job import trial_of
from stoker.tuning.search import BUDGET_S
from tests.benchmarks import grid
from tests.benchmarks.grid import Bench, Ratio, Subject, Turn, words
from tests.benchmarks.searching import Outcome, in_use, search
from tests.benchmarks.speeds import Load, Sample
from tests.benchmarks.workers import MODELS, Model, Place, chosen, place

MEDIAN_BOUND: Final = 0.97  # tuned over best of the grid, median of metrics and models
WORST_BOUND: Final = 0.92
HARM_BOUND: Final = 0.98  # tuned over the engine's own defaults, each of them
_WORKERS: Final = ("tuned, one worker", "tuned, another worker")
_TUNED: Final = "tuned"  # both of them: half of the luck that one has with its memory
_ROUNDS: Final = 24
_QUICK_ROUNDS: Final = 4
# Answers of an ordinary length: in four streams of 24 tokens, the one step more that a request
# takes which joins others is 4 % of all. And one stream of 32 is over within half a second.
_IN_ROUNDS: Final = Load(generate=96, stream_generate=96)


@dataclass(frozen=True, slots=True)
class Row:
    """One metric of one model; tokens per second."""

    model: str
    metric: str
    best: float
    best_setting: str
    tuned: float
    of_best: Ratio  # `grid.ratio_to_best`
    same: Ratio  # one of the tuned workers over the other: what cannot be told apart here
    defaults: dict[str, float]  # of each runtime
    of_defaults: dict[str, Ratio]


@dataclass(frozen=True, slots=True)
class Report:
    """Everything about one model."""

    rows: tuple[Row, ...]
    setting: str
    outcome: Outcome
    settings_in_grid: int
    others_cpus: float  # that other programs used, median
    turns: dict[str, list[Turn]]  # of each metric


async def compare(where: Place, model: Model, *, quick: bool, budget_s: float) -> Report:
    bench = Bench(where, model, Load(), tell)
    await where.prepare(model)
    everything = grid.subjects(where, model, quick=quick)
    scores = await grid.first_passes(bench, everything, grid.anchor_of(where, model))
    current, gained = await in_use(where, model)
    tell(f"in use: {current} ({gained:.2f} times the built-in one); searching, {budget_s:.0f} s")
    outcome = await search(where, model, runtime=current, budget_s=budget_s, told=tell)
    plan = where.plan(model, outcome.tuned.best.runtime, tuned=outcome.tuned)
    tell(f"found: {words(trial_of(plan))}")
    tuned = [Subject(name, plan.runtime, plan) for name in _WORKERS]
    defaults = [Subject(f"defaults of {name}", name, None) for name in where.runtimes]
    best = grid.finalists(scores, plan)
    found = await grid.rounds(
        replace(bench, load=_IN_ROUNDS),
        {metric: [*first, *tuned, *defaults] for metric, first in best.items()},
        _QUICK_ROUNDS if quick else _ROUNDS,
        seed=1,
    )
    return Report(
        rows=tuple(
            row_of(model.name, metric, turns, best[metric], defaults)
            for metric, turns in found.items()
        ),
        setting=words(trial_of(plan)),
        outcome=outcome,
        settings_in_grid=len(everything),
        others_cpus=median(
            one.others for turns in found.values() for turn in turns for one in turn.values()
        ),
        turns=found,
    )


def row_of(
    model: str,
    metric: str,
    turns: list[Turn],
    best: list[Subject],
    defaults: list[Subject],
) -> Row:
    """What the turns of a metric say. Pure."""
    found = [turn | {_TUNED: _both(turn)} for turn in turns]
    usual = {label: median(turn[label].rate for turn in found) for label in found[0]}
    # The one that is ahead most, by how each does against the tuned plan in the same turn.
    first = max(best, key=lambda one: grid.ratio(found, one.label, _TUNED).value)
    return Row(
        model=model,
        metric=metric,
        best=usual[first.label],
        best_setting=first.label,
        tuned=usual[_TUNED],
        of_best=grid.ratio_to_best(found, _TUNED, [one.label for one in best]),
        same=grid.ratio(found, *_WORKERS),
        defaults={one.runtime: usual[one.label] for one in defaults},
        of_defaults={one.runtime: grid.ratio(found, _TUNED, one.label) for one in defaults},
    )


def _both(turn: Turn) -> Sample:
    workers = [turn[name] for name in _WORKERS]
    return Sample(geometric_mean(one.rate for one in workers), max(one.others for one in workers))


def failures(rows: list[Row]) -> list[str]:
    """The bounds that are missed, in words. Pure."""
    found = []
    middle = median(row.of_best.value for row in rows)
    if middle < MEDIAN_BOUND:
        found.append(f"tuned/best: median {middle:.3f} < {MEDIAN_BOUND}")
    for row in rows:
        what = f"{row.model}, {row.metric}"
        if row.of_best.value < WORST_BOUND:
            found.append(f"{what}: tuned/best {_said(row.of_best)} < {WORST_BOUND}")
        for runtime, share in row.of_defaults.items():
            if share.value < HARM_BOUND:
                found.append(f"{what}: tuned/defaults of {runtime} {_said(share)} < {HARM_BOUND}")
    return found


def show(reports: list[Report]) -> None:
    """The table."""
    print(
        f"{'model':8} {'metric':8} {'best':>8} {'tuned':>8} {'ratio':>13}  "
        f"{'defaults':>8} {'ratio':>13}  {'same':>13}  best setting of the grid"
    )
    for report in reports:
        for row in report.rows:
            worst = min(row.of_defaults, key=lambda name: row.of_defaults[name].value)
            print(
                f"{row.model:8} {row.metric:8} {row.best:8.1f} {row.tuned:8.1f}"
                f" {_said(row.of_best):>13}  {row.defaults[worst]:8.1f}"
                f" {_said(row.of_defaults[worst]):>13}  {_said(row.same):>13}  {row.best_setting}"
            )
    print(
        "tokens per second; ratios with their standard error; `defaults` are those of the runtime"
        " whose own do best; `same` is one tuned worker over the other, 1 but for chance"
    )
    for report in reports:
        outcome = report.outcome
        print(
            f"{report.rows[0].model}: tuned to {report.setting}; {outcome.tuned.trials} settings in"
            f" {outcome.runs} measurements, {outcome.tuned.seconds:.0f} s"
            f" ({outcome.wall_s:.0f} s with loading); the grid has {report.settings_in_grid}"
        )
        print(f"  other programs used {report.others_cpus:.2f} CPUs meanwhile")


def _said(ratio: Ratio) -> str:
    return f"{ratio.value:.3f} ±{ratio.error:.3f}"


def tell(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def as_json(reports: list[Report], missed: list[str]) -> dict[str, Any]:
    return {"missed": missed, "models": [asdict(report) for report in reports]}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.tuning")
    parser.add_argument("--model", choices=(*MODELS, "both"), default="both")
    parser.add_argument("--quick", action="store_true", help="a smaller grid and fewer rounds")
    parser.add_argument("--budget", type=float, default=BUDGET_S, help="of the search, in seconds")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    reports: list[Report] = []

    async def run() -> None:
        for model in chosen(options.model):
            with place() as where:
                reports.append(
                    await compare(where, model, quick=options.quick, budget_s=options.budget)
                )

    anyio.run(run)
    missed = failures([row for report in reports for row in report.rows])
    show(reports)
    if options.json:
        options.json.write_text(json.dumps(as_json(reports, missed), indent=1))
    if missed:
        raise SystemExit("\n".join(missed))


if __name__ == "__main__":
    main()
