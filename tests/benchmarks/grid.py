"""Every combination of settings on one machine, and the sampling that tells them apart.

What is compared lies close together in time: grid samples stand between samples of an anchor, and
finalists are measured in rounds, so that a machine that warms up or is used by others moves both
sides of a ratio.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, replace
from statistics import fmean, median, pstdev
from typing import Final, NamedTuple, TypeVar

from stoker.tuner.job import trial_of
from stoker.tuning.launch import LaunchPlan, Trial
from tests.benchmarks.speeds import METRICS, Load, Sample, measure, warm_up
from tests.benchmarks.workers import Model, Place, Serving

UBATCHES: Final = (128, 256, 512, 1024)
QUICK_UBATCHES: Final = (256, 512)
_BETWEEN_ANCHORS: Final = 6
_SECOND_LOOK: Final = 8  # one part in so many of the grid, for each metric
_FINALISTS: Final = 2  # for each metric
_ERROR_OF_MIDDLE: Final = 1.0233  # over that of a mean: sqrt(pi/3), of normal errors

Figures = dict[str, Sample]  # of each metric
Score = dict[str, float]  # of each metric, the logarithm of its ratio to the anchor's
Turn = dict[str, Sample]  # of each subject, by its label: one metric, taken one after the other
Tell = Callable[[str], None]
_Item = TypeVar("_Item")


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
        """All figures of a new process."""
        async with self.running(subject) as serving:
            await warm_up(serving)
            return {metric: await self.ask(subject, serving, metric) for metric in METRICS}

    async def ask(self, subject: Subject, serving: Serving, metric: str) -> Sample:
        found = await measure(serving, self.load, metric)
        figure = f"{metric:8} {found.rate:7.1f}  (others {found.others:.2f} CPUs)"
        self.tell(f"{subject.label:44} {figure}")
        return found


class Ratio(NamedTuple):
    """The middle of many ratios, and how much of it may be chance (its standard error)."""

    value: float
    error: float


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
    count = max(_FINALISTS, len(grid) // _SECOND_LOOK)
    again = dict.fromkeys(one for metric in METRICS for one in leaders(scores, metric, count))
    await _pass(bench, list(again), anchor, scores)
    return scores


def finalists(scores: dict[Subject, list[Score]], tuned: LaunchPlan) -> dict[str, list[Subject]]:
    """The best for each metric, among those that were looked at twice, without the tuned setting.

    What equals it would only be measured against itself.
    """
    most = max(len(found) for found in scores.values())
    looked_at = {
        one: found
        for one, found in scores.items()
        if len(found) == most and (one.plan is None or trial_of(one.plan) != trial_of(tuned))
    }
    return {metric: leaders(looked_at, metric, _FINALISTS) for metric in METRICS}


def leaders(scores: dict[Subject, list[Score]], metric: str, count: int) -> list[Subject]:
    """The first `count`. Pure."""
    ranked = sorted(scores, key=lambda one: -fmean(score[metric] for score in scores[one]))
    return ranked[:count]


async def rounds(
    bench: Bench, running: Mapping[str, Sequence[Subject]], count: int, seed: int
) -> dict[str, list[Turn]]:
    """One turn of each metric in each round: each of its subjects is asked once.

    All are loaded anew in each round, in another order: a process keeps whatever luck it had with
    its memory, so what is asked twice of one process says little more than what is asked once, and
    latecomers have their memory elsewhere. Only the one that is asked computes, and one metric is
    asked of all before the next: so what is compared lies a second or two apart. On a machine
    whose speed wanders within seconds that halves the error of a ratio.
    """
    dice = random.Random(seed)  # noqa: S311  # not a secret
    everybody = list(dict.fromkeys(one for subjects in running.values() for one in subjects))
    found: dict[str, list[Turn]] = {metric: [] for metric in running}
    for number in range(1, count + 1):
        bench.tell(f"round {number} of {count}")
        async with AsyncExitStack() as stack:
            serving = {
                one: await stack.enter_async_context(bench.running(one))
                for one in _shuffled(everybody, dice)
            }
            for one in everybody:
                await warm_up(serving[one])
            for metric in _shuffled(running, dice):
                order = _shuffled(running[metric], dice)
                found[metric].append(
                    {one.label: await bench.ask(one, serving[one], metric) for one in order}
                )
    return found


def ratio(turns: Iterable[Turn], ours: str, theirs: str) -> Ratio:
    """The middle of what is compared within each turn. Pure."""
    return _middle([one[ours].rate / one[theirs].rate for one in turns])


def ratio_to_best(turns: Sequence[Turn], ours: str, others: Sequence[str]) -> Ratio:
    """Ours over the best of the others, which the *other* turns named for each turn. Pure.

    Whoever is ahead of many in the very figures it is then judged by is ahead by luck as well:
    with nine equals that differ by a tenth from run to run, the best seems 5 % better than they
    are. A turn of its own has no such preference.
    """
    shares = []
    for place, one in enumerate(turns):
        rest = [*turns[:place], *turns[place + 1 :]] or [one]
        best = max(others, key=lambda label: ratio(rest, label, ours).value)
        shares.append(one[ours].rate / one[best].rate)
    return _middle(shares)


def _middle(shares: Sequence[float]) -> Ratio:
    """The median of the means of all pairs (Hodges and Lehmann), in logarithms.

    Nearly as exact as a mean where errors are normal (a median needs half as many shares again),
    and nearly as calm as a median about the few that something disturbed.
    """
    logs = [math.log(share) for share in shares]
    pairs = itertools.combinations_with_replacement(logs, 2)
    value = math.exp(median(fmean(pair) for pair in pairs))
    error = _ERROR_OF_MIDDLE * pstdev(logs) / math.sqrt(max(1, len(logs) - 1))
    return Ratio(value, value * error)


def _shuffled(items: Iterable[_Item], dice: random.Random) -> list[_Item]:
    everything = list(items)
    return dice.sample(everything, len(everything))


async def _pass(
    bench: Bench,
    wanted: Sequence[Subject],
    anchor: Subject,
    scores: dict[Subject, list[Score]],
) -> None:
    """One sample each, related to the anchor's figures around it."""
    dice = random.Random(len(wanted))  # noqa: S311  # not a secret
    order = _shuffled(wanted, dice)
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
        metric: math.log(sample[metric].rate)
        - (1 - share) * math.log(before[metric].rate)
        - share * math.log(after[metric].rate)
        for metric in METRICS
    }
