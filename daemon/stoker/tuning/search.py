"""A measured search for a model's best settings. Pure: it says what to measure, and is told.

    search = Search.start(space, baseline, "chat", budget_s=90)
    while (trial := search.next()) is not None:
        search.tell(trial, speeds_of(trial), seconds_it_took)   # None: the trial failed
    result = search.result()

The rules, each against a way to be fooled:

1. A machine warms up and others use it. So a candidate is never compared with an old figure, but
   with the incumbent measured before and after it; when these two differ by more than 10 %, what
   lies between is thrown away and measured again.
2. One run proves little: see `tuning.evidence` for what a change has to show.
3. Every value of every coordinate is looked at once, those that matter most first. From there on
   the best forecasts (`tuning.forecast`) are put to the proof, three at a time, until nothing is
   left that could win or the time is up. Half of the time is kept for proofs.
4. What won over several steps is compared with the baseline itself at the end.

A measurement that was interrupted is simply not told: `next` asks for the same again. Not for:
running anything (`tuner`), or which values there are (`tuning.space`).
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import median
from typing import Final

from stoker.tuning.evidence import (
    GAIN,
    HARM,
    LEAST_RUNS,
    SPEEDS,
    ZERO,
    Noise,
    Ratio,
    Verdict,
    judge,
    middle,
    plus,
)
from stoker.tuning.forecast import Forecast
from stoker.tuning.launch import Profile, Speeds, Trial
from stoker.tuning.space import ORDER, Space, figures, weights

BUDGET_S: Final = 90.0
_BLOCK: Final = 3  # candidates between two looks at the incumbent
_MOST_DRIFT: Final = math.log(1.10)
_MOST_DISCARDS: Final = 3  # blocks in a row; then the machine is not steady enough to measure
_LOOK_SHARE: Final = 0.5  # of the budget for looking at single values, before any proof
_PROMISING: Final = GAIN / 2
_WORTH: Final = 0.06  # a combination forecast to be this far behind is not worth a run
_WORTH_HARM: Final = 0.05  # nor one forecast to harm a speed that much
_CONFIRM: Final = 3  # comparisons of the end with the beginning

_Step = Generator[Trial, Speeds | None]
_Measured = Generator[Trial, Speeds | None, Ratio]
_Compared = Generator[Trial, Speeds | None, dict[Trial, Ratio]]


@dataclass(frozen=True, slots=True)
class Result:
    """What the search found so far. `best` is the baseline when nothing beats it."""

    best: Trial
    speeds: Speeds
    baseline: Speeds
    trials: int  # settings tried
    runs: int  # measurements made
    compared: int  # of the settings tried, those that say something: the machine stood still
    seconds: float
    complete: bool  # every coordinate was looked at


class _Lost(Exception):
    """The incumbent itself failed; it has been replaced by the one before."""


class _Ended(Exception):
    """There is no point, or no time, to go on."""


class Search:
    """One search. `next` and `tell` in turns; `result` at any time after the first measurement."""

    def __init__(self, space: Space, baseline: Trial, profile: Profile, budget_s: float) -> None:
        self._space = space
        self._baseline = baseline
        self._weights = weights(profile)
        self._budget_s = budget_s
        self._incumbent = baseline
        self._gained = ZERO  # of the incumbent over the baseline
        self._before: list[tuple[Trial, Ratio]] = []  # incumbents that were replaced
        self._anchor: Ratio | None = None  # the incumbent's last measurement
        self._runs: dict[Trial, list[Speeds]] = {}
        self._compared: set[Trial] = set()  # at least once
        self._settled: set[Trial] = set()  # proven, for better or worse
        self._banned: set[Trial] = set()
        self._banned_runtimes: set[str] = set()
        self._forecast = Forecast(space, baseline)
        self._noise = Noise()
        self._discards = 0
        self._count = 0
        self._complete = False
        self.spent_s = 0.0
        self.failed = False  # even the baseline could not be measured
        self._steps = self._run()
        self._wanted: Trial | None = next(self._steps)

    @classmethod
    def start(
        cls, space: Space, baseline: Trial, profile: Profile, budget_s: float = BUDGET_S
    ) -> Search:
        return cls(space, baseline, profile, budget_s)

    def next(self) -> Trial | None:
        """What to measure now; the same until it is told. None: the search is done."""
        return self._wanted

    @property
    def done(self) -> bool:
        return self._wanted is None

    @property
    def measured(self) -> bool:
        """Whether there is a result to speak of."""
        return bool(self._runs.get(self._baseline))

    def tell(self, trial: Trial, speeds: Speeds | None, seconds: float) -> None:
        """What came of it. Speeds that make no sense count as a failure."""
        if trial != self._wanted:
            raise ValueError("told of a trial that was not asked for")
        self.spent_s += seconds
        self._count += 1
        if speeds is not None and not all(0 < one < math.inf for one in figures(speeds)):
            speeds = None
        if speeds is None:
            self._ban(trial)
        else:
            self._runs.setdefault(trial, []).append(speeds)
        try:
            self._wanted = self._steps.send(speeds)
        except StopIteration:
            self._wanted = None

    def result(self) -> Result:
        """Raises ValueError before the baseline has been measured."""
        runs = self._runs.get(self._baseline)
        if not runs:
            raise ValueError("the baseline has not been measured")
        usual = [median(column) for column in zip(*map(figures, runs), strict=True)]
        gains = [math.exp(self._gained[index]) for index in SPEEDS]
        return Result(
            best=self._incumbent,
            speeds=Speeds(*(figure * gain for figure, gain in zip(usual, gains, strict=True))),
            baseline=Speeds(*usual),
            trials=len(self._runs.keys() | self._banned),
            runs=self._count,
            compared=len(self._compared),
            seconds=self.spent_s,
            complete=self._complete,
        )

    # --- the course of it --------------------------------------------------------------------

    def _run(self) -> _Step:
        with suppress(_Ended):
            yield from self._measure_anchor()
            yield from self._improve()
        with suppress(_Ended, _Lost):
            yield from self._confirm()

    def _improve(self) -> _Step:
        """Look at single values, prove what is promising, until nothing is left of either."""
        singles = tuple(self._single_changes())
        while True:
            unseen = [t for t in singles if t not in self._compared and self._may(t)]
            self._complete = not unseen
            looking = unseen and self.spent_s < _LOOK_SHARE * self._budget_s
            with suppress(_Lost):
                if looking or not (candidates := self._best(_PROMISING)):
                    if unseen:
                        yield from self._look(unseen[:_BLOCK])
                        continue
                    candidates = self._best(-max(_WORTH, 2 * self._noise.sd(0)))
                    if not candidates:
                        return
                yield from self._contest(candidates)

    def _single_changes(self) -> Iterator[Trial]:
        for coordinate in ORDER:
            for value in self._space.values(coordinate):
                trial = self._space.with_value(self._baseline, coordinate, value)
                if trial is not None and trial != self._baseline:
                    yield trial

    def _look(self, trials: Sequence[Trial]) -> _Step:
        """One comparison each, for the forecast. They may still be put to the proof."""
        if self._over(len(trials) + 1):
            raise _Ended
        yield from self._compare(trials)

    def _best(self, least: float) -> list[Trial]:
        """The best forecasts that were not put to the proof yet, if they are above `least`."""
        forecasts: dict[Trial, float] = {}
        for trial in self._space.grid():
            if trial == self._incumbent or trial in self._settled or not self._may(trial):
                continue
            speeds = self._forecast.ratio(trial, self._incumbent, self._noise.sd(0))
            ratio = self._with_score(speeds)
            total = plus(self._gained, ratio)
            harmed = min(total[index] for index in SPEEDS) < HARM - _WORTH_HARM
            if ratio[0] > least and not harmed:
                forecasts[trial] = ratio[0]
        return sorted(forecasts, key=lambda trial: -forecasts[trial])[:_BLOCK]

    def _confirm(self) -> _Step:
        """Several steps, each with its error: compare the end with the beginning."""
        if len(self._before) < 2 or self._over(2 * _CONFIRM, reserve=False):  # noqa: PLR2004
            return
        ratios: list[Ratio] = []
        for _ in range(_CONFIRM):
            block = yield from self._compare((self._baseline,))
            ratios += [_minus(ZERO, ratio) for ratio in block.values()]
        if not ratios:
            return
        gained = middle(ratios)
        worst = min(gained[index] + self._noise.error(index, len(ratios)) for index in SPEEDS)
        if worst < HARM or gained[0] <= 0:
            self._incumbent, self._gained = self._before[1]  # that one was compared with it
        else:
            self._gained = gained

    # --- proofs ------------------------------------------------------------------------------

    def _contest(self, candidates: Sequence[Trial]) -> _Step:
        """Candidates against the incumbent; the best that wins takes its place.

        Raises _Ended when the time is up, after what was won until then has been kept.
        """
        running, in_time = list(candidates), True
        while len(running) > 1 and self._over(LEAST_RUNS * (len(running) + 1)):
            del running[-1]
        ratios: dict[Trial, list[Ratio]] = {trial: [] for trial in running}
        while running:
            in_time = not self._over(len(running) + 1)
            if not in_time:
                break
            block = yield from self._compare(running)
            for trial, ratio in block.items():
                if ratios[trial]:
                    self._noise.see_repeat(ratio, middle(ratios[trial]))
                ratios[trial].append(ratio)
            running = [
                trial for trial in self._leading(ratios) if self._is(trial, ratios, Verdict.OPEN)
            ]
        won = [trial for trial in ratios if self._is(trial, ratios, Verdict.WON)]
        if won:
            self._adopt(won, ratios)
        if not in_time:
            raise _Ended
        self._settled.update(ratios)

    def _leading(self, ratios: dict[Trial, list[Ratio]]) -> list[Trial]:
        """Without those that another candidate has clearly left behind."""
        found = {trial: middle(runs)[0] for trial, runs in ratios.items() if runs}
        if not found:
            return list(ratios)
        first = max(found.values())
        slack = {t: 2 * math.sqrt(2) * self._noise.error(0, len(ratios[t])) for t in found}
        return [
            trial for trial in ratios if trial not in found or found[trial] + slack[trial] >= first
        ]

    def _is(self, trial: Trial, ratios: dict[Trial, list[Ratio]], verdict: Verdict) -> bool:
        return self._may(trial) and judge(ratios[trial], self._gained, self._noise) is verdict

    def _adopt(self, won: Sequence[Trial], ratios: dict[Trial, list[Ratio]]) -> None:
        best = max(won, key=lambda trial: middle(ratios[trial])[0])
        self._before.append((self._incumbent, self._gained))
        self._settled.add(self._incumbent)
        self._incumbent, self._gained = best, plus(self._gained, middle(ratios[best]))
        self._anchor = None

    # --- measuring ---------------------------------------------------------------------------

    def _compare(self, candidates: Sequence[Trial]) -> _Compared:
        """Each candidate's figures over the incumbent's of the same moments.

        Empty when the incumbent's own figures drifted apart meanwhile: nothing is known then.
        Raises _Ended when that goes on.
        """
        before = self._anchor or (yield from self._measure_anchor())
        found: dict[Trial, tuple[int, Ratio]] = {}
        for place, trial in enumerate(candidates, 1):
            speeds = yield trial
            if speeds is not None:
                found[trial] = (place, self._logs(speeds))
        after = yield from self._measure_anchor()
        if abs(after[0] - before[0]) > _MOST_DRIFT:
            self._discards += 1
            if self._discards >= _MOST_DISCARDS:
                raise _Ended
            return {}
        self._discards = 0
        self._noise.see_anchors(before, after)
        parts = len(candidates) + 1
        compared = {
            trial: _minus(logs, _between(before, after, place / parts))
            for trial, (place, logs) in found.items()
        }
        self._compared |= compared.keys()
        for trial, ratio in compared.items():
            self._forecast.learn(trial, self._incumbent, ratio[1:])
        return compared

    def _measure_anchor(self) -> _Measured:
        """The incumbent. Raises _Lost when it fails and another takes its place, else _Ended."""
        speeds = yield self._incumbent
        if speeds is None and self._incumbent == self._baseline:
            speeds = yield self._incumbent  # once more: without it there is nothing to compare with
        if speeds is not None:
            self._anchor = self._logs(speeds)
            return self._anchor
        self._anchor = None
        if not self._before:
            self.failed = True
            raise _Ended
        self._incumbent, self._gained = self._before.pop()
        raise _Lost

    def _logs(self, speeds: Speeds) -> Ratio:
        prefill, decode, batch = (math.log(figure) for figure in figures(speeds))
        return self._with_score((prefill, decode, batch))

    def _with_score(self, logs: tuple[float, float, float]) -> Ratio:
        return sum(w * log for w, log in zip(self._weights, logs, strict=True)), *logs

    def _may(self, trial: Trial) -> bool:
        return trial not in self._banned and trial.runtime not in self._banned_runtimes

    def _ban(self, trial: Trial) -> None:
        """Never again; nor its runtime, when that is what it tried."""
        if trial == self._baseline:
            return
        self._banned.add(trial)
        if trial.runtime != self._incumbent.runtime:
            self._banned_runtimes.add(trial.runtime)

    def _over(self, more: int, *, reserve: bool = True) -> bool:
        """Whether the time is up before that many more runs, and the comparison at the end."""
        if reserve and self._before:
            more += 2 * _CONFIRM
        each = self.spent_s / self._count if self._count else 0.0
        return self.spent_s + more * each > self._budget_s


def _between(before: Ratio, after: Ratio, share: float) -> Ratio:
    """What the incumbent would have shown at that moment, if the machine changes steadily."""
    a, b, c, d = (x + share * (y - x) for x, y in zip(before, after, strict=True))
    return a, b, c, d


def _minus(ours: Ratio, theirs: Ratio) -> Ratio:
    a, b, c, d = (x - y for x, y in zip(ours, theirs, strict=True))
    return a, b, c, d
