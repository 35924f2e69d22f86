"""Every combination of settings on one machine, and the sampling that tells them apart.

What is compared lies close together in time: grid samples stand between samples of an anchor, and
finalists are measured in rounds, so that a machine that warms up or is used by others moves both
sides of a ratio.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, replace
from statistics import fmean, median
from typing import Final

from stoker.tuner.job import trial_of
from stoker.tuning.launch import LaunchPlan, Trial
from tests.benchmarks.speeds import METRICS, Figures, Load, measure
from tests.benchmarks.workers import Model, Place, Serving

UBATCHES: Final = (128, 256, 512, 1024)
QUICK_UBATCHES: Final = (256, 512)
_BETWEEN_ANCHORS: Final = 6
_SECOND_LOOK: Final = 8  # one part in so many of the grid, for each metric
_FINALISTS: Final = 2  # for each metric
_ROUNDS_OF_A_PROCESS: Final = 2

Score = dict[str, float]  # of each metric, the logarithm of its ratio to the anchor's
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Subject:
    """Something that is measured: a plan, or a runtime's own defaults."""

    label: str
    runtime: str
    plan: LaunchPlan | None  # None: the runtime's own server with its own defaults

    def __hash__(self) -> int:
        return hash(self.label)


@dataclass(frozen=True, slots=True)
class Bench:
    """Where and what is measured."""

    place: Place
    model: Model
    load: Load
    tell: Tell

    def running(self, subject: Subject) -> AbstractAsyncContextManager[Serving]:
        """A new process of it."""
        if subject.plan is None:
            return self.place.bare(self.model, subject.runtime)
        return self.place.serving(subject.plan)

    async def sample(self, subject: Subject) -> Figures:
        """The figures of a new process."""
        async with self.running(subject) as serving:
            return await self.ask(subject, serving)

    async def ask(self, subject: Subject, serving: Serving) -> Figures:
        found = await measure(serving, self.load)
        figures = "  ".join(f"{metric} {found.of(metric):7.1f}" for metric in METRICS)
        self.tell(f"{subject.label:44} {figures}  (others {found.others:.2f} CPUs)")
        return found


def words(trial: Trial) -> str:
    """A setting in a few characters."""
    flash = "fa" if trial.flash_attention else "no-fa"
    buffers = "" if trial.extra_buffers else " plain"
    threads = f"{trial.threads}+{trial.threads_batch}t"
    return f"{trial.runtime} {threads} u{trial.ubatch} {flash}{buffers}"


def subjects(place: Place, model: Model, *, quick: bool) -> list[Subject]:
    """The whole grid."""
    cpus = range(1, place.hardware.effective_cpus + 1)
    ubatches = QUICK_UBATCHES if quick else UBATCHES
    found = []
    for runtime in place.runtimes:
        base = place.plan(model, runtime)
        for threads, batch, ubatch, flash in itertools.product(cpus, cpus, ubatches, (True, False)):
            plan = replace(
                base,
                threads=threads,
                threads_batch=batch,
                ubatch=ubatch,
                batch=max(base.batch, ubatch),
                flash_attention=flash,
            )
            found.append(Subject(words(trial_of(plan)), runtime, plan))
    return found


def anchor_of(place: Place, model: Model) -> Subject:
    return Subject("anchor: the untuned plan", place.built_in, place.plan(model))


async def first_passes(
    bench: Bench, grid: Sequence[Subject], anchor: Subject
) -> dict[Subject, list[Score]]:
    """All of the grid once, then what looked good for any metric once more."""
    scores: dict[Subject, list[Score]] = {subject: [] for subject in grid}
    await _pass(bench, grid, anchor, scores)
    again = leaders(scores, max(_FINALISTS, len(grid) // _SECOND_LOOK))
    await _pass(bench, again, anchor, scores)
    return scores


def finalists(scores: dict[Subject, list[Score]], tuned: LaunchPlan) -> list[Subject]:
    """The best for each metric, among those that were looked at twice, without the tuned setting.

    What equals it would only be measured against itself.
    """
    most = max(len(found) for found in scores.values())
    looked_at = {
        one: found
        for one, found in scores.items()
        if len(found) == most and (one.plan is None or trial_of(one.plan) != trial_of(tuned))
    }
    return leaders(looked_at, _FINALISTS)


def leaders(scores: dict[Subject, list[Score]], count: int) -> list[Subject]:
    """The first `count` of each metric, each named once. Pure."""
    found: dict[Subject, None] = {}
    for metric in METRICS:
        ranked = sorted(scores, key=lambda one: -fmean(score[metric] for score in scores[one]))
        found.update(dict.fromkeys(ranked[:count]))
    return list(found)


async def rounds(
    bench: Bench, running: Sequence[Subject], count: int, seed: int
) -> list[dict[str, Figures]]:
    """Each subject once in each round, in another order.

    All are loaded at once, and only the one that is asked computes: so those of a round lie seconds
    apart, and the machine has little time to become another one. After two rounds all begin anew in
    another order: where a process has its memory is chance, too, and latecomers have it elsewhere.
    """
    dice = random.Random(seed)  # noqa: S311  # not a secret
    found: list[dict[str, Figures]] = []
    while len(found) < count:
        async with AsyncExitStack() as stack:
            serving = {
                one: await stack.enter_async_context(bench.running(one))
                for one in dice.sample(list(running), len(running))
            }
            for _ in range(min(_ROUNDS_OF_A_PROCESS, count - len(found))):
                bench.tell(f"round {len(found) + 1} of {count}")
                order = dice.sample(list(running), len(running))
                found.append({one.label: await bench.ask(one, serving[one]) for one in order})
    return found


def ratio(found: Iterable[dict[str, Figures]], ours: str, theirs: str, metric: str) -> float:
    """The median over all rounds of what is compared within each. Pure."""
    return median(one[ours].of(metric) / one[theirs].of(metric) for one in found)


def ratio_to_best(
    found: Sequence[dict[str, Figures]], ours: str, others: Sequence[str], metric: str
) -> float:
    """Ours over the best of the others, which the *other* rounds named for each round. Pure.

    Whoever is ahead of many in the very figures it is then judged by is ahead by luck as well:
    with nine equals that differ by a tenth from run to run, the best seems 5 % better than they
    are. A round of its own has no such preference.
    """
    shares = []
    for place, one in enumerate(found):
        rest = [*found[:place], *found[place + 1 :]] or [one]
        best = max(others, key=lambda label: ratio(rest, label, ours, metric))
        shares.append(one[ours].of(metric) / one[best].of(metric))
    return median(shares)


async def _pass(
    bench: Bench,
    wanted: Sequence[Subject],
    anchor: Subject,
    scores: dict[Subject, list[Score]],
) -> None:
    """One sample each, related to the anchor's figures around it."""
    dice = random.Random(len(wanted))  # noqa: S311  # not a secret
    order = dice.sample(list(wanted), len(wanted))
    before = await bench.sample(anchor)
    for start in range(0, len(order), _BETWEEN_ANCHORS):
        block = order[start : start + _BETWEEN_ANCHORS]
        bench.tell(f"{start + 1} to {start + len(block)} of {len(order)}")
        samples = [await bench.sample(subject) for subject in block]
        after = await bench.sample(anchor)
        for place, (subject, sample) in enumerate(zip(block, samples, strict=True), 1):
            share = place / (len(block) + 1)
            scores[subject].append(_score(sample, before, after, share))
        before = after


def _score(sample: Figures, before: Figures, after: Figures, share: float) -> Score:
    """Against what the anchor would have shown at that moment."""
    return {
        metric: math.log(sample.of(metric))
        - (1 - share) * math.log(before.of(metric))
        - share * math.log(after.of(metric))
        for metric in METRICS
    }
