"""What the tuning benchmark concludes from its figures: a proof is worth no more than that."""

from __future__ import annotations

import math
import random
from statistics import pstdev

import pytest

from stoker.tuning.launch import MemoryNeed
from stoker.tuning.memory import MIB
from tests.benchmarks import grid
from tests.benchmarks.grid import Ratio, Subject, Turn
from tests.benchmarks.memory import Row, Used
from tests.benchmarks.memory import failures as memory_failures
from tests.benchmarks.speeds import Sample
from tests.benchmarks.tuning import Row as SpeedRow
from tests.benchmarks.tuning import failures, row_of


def turn(**rates: float) -> Turn:
    return {label: Sample(rate, others=0) for label, rate in rates.items()}


def subject(label: str) -> Subject:
    return Subject(label, "r", None)


def test_leaders_are_the_first_of_each_metric_and_named_once() -> None:
    a, b, c = map(subject, "abc")
    scores = {
        a: [
            {"prefill": 0.3, "decode": 0.0, "batch": 0.0},
            {"prefill": 0.1, "decode": 0, "batch": 0},
        ],
        b: [{"prefill": 0.1, "decode": 0.2, "batch": 0.2}],
        c: [{"prefill": 0.0, "decode": 0.1, "batch": 0.1}],
    }

    assert [grid.leaders(scores, metric, 1) for metric in ("prefill", "decode")] == [[a], [b]]
    assert grid.leaders(scores, "batch", 2) == [b, c]


def test_a_machine_that_slows_down_does_not_change_a_ratio() -> None:
    found = [turn(tuned=speed * 0.9, best=speed) for speed in (100, 50, 10, 200)]

    share = grid.ratio(found, "tuned", "best")

    assert share.value == pytest.approx(0.9)
    assert share.error == pytest.approx(0, abs=1e-9)


def test_the_error_of_a_ratio_is_what_repetitions_differ_by() -> None:
    dice = random.Random(1)  # noqa: S311  # not a secret
    ratios = [
        grid.ratio([turn(a=dice.gauss(100, 8), b=100) for _ in range(60)], "a", "b")
        for _ in range(300)
    ]

    assert pstdev(one.value for one in ratios) == pytest.approx(ratios[0].error, rel=0.25)


def test_a_few_disturbed_turns_do_not_move_a_ratio() -> None:
    calm = [turn(a=100 + wobble, b=100) for wobble in (-4, -3, -2, -1, 0, 0, 1, 2, 3, 4)]

    share = grid.ratio([*calm, turn(a=30, b=100)], "a", "b")

    assert share.value == pytest.approx(1.0, abs=0.01)


def test_luck_does_not_make_a_best() -> None:
    """Nine settings that equal ours, each with its own noise: ours is not behind."""
    dice = random.Random(1)  # noqa: S311  # not a secret
    labels = [f"s{number}" for number in range(9)]
    found = [
        turn(**{label: 100 * dice.uniform(0.85, 1.15) for label in ["tuned", *labels]})
        for _ in range(99)
    ]

    share = grid.ratio_to_best(found, "tuned", labels)

    assert share.value == pytest.approx(1.0, abs=0.03)


def test_one_that_is_better_is_seen() -> None:
    dice = random.Random(1)  # noqa: S311  # not a secret
    found = [
        turn(
            tuned=90 * dice.uniform(0.95, 1.05),
            equal=90 * dice.uniform(0.95, 1.05),
            better=100 * dice.uniform(0.95, 1.05),
        )
        for _ in range(9)
    ]

    share = grid.ratio_to_best(found, "tuned", ["equal", "better"])

    assert share.value == pytest.approx(0.9, abs=0.04)


def test_tuned_is_what_both_of_its_workers_show() -> None:
    found = [
        turn(
            **{"tuned, one worker": 90, "tuned, another worker": 100, "reader": 100, "own": 90},
            slow=80,
        )
    ] * 3
    best = [subject("reader"), subject("slow")]

    row = row_of("m", "prefill", found, best, [subject("own")])

    both = math.sqrt(90 * 100)
    assert (row.best_setting, row.best) == ("reader", 100)
    assert row.tuned == pytest.approx(both)
    assert row.of_best.value == pytest.approx(both / 100)
    assert row.of_defaults["r"].value == pytest.approx(both / 90)
    assert row.same.value == pytest.approx(0.9)


def row(of_best: float, of_defaults: float = 1.0) -> SpeedRow:
    shares = [Ratio(share, error=0.01) for share in (of_best, 1.0, of_defaults)]
    return SpeedRow("m", "decode", 1, "s", 1, shares[0], shares[1], {"r": 1}, {"r": shares[2]})


def test_bounds() -> None:
    assert failures([row(0.98), row(0.97), row(0.93)]) == []
    assert len(failures([row(0.96), row(0.96), row(1.0)])) == 1
    assert len(failures([row(0.99), row(0.99), row(0.91)])) == 1
    assert len(failures([row(1.0, of_defaults=0.97)])) == 1


@pytest.mark.parametrize(("used_mib", "missed"), [(91, 0), (90, 1), (102, 0), (103, 1)])
def test_memory_may_be_a_tenth_too_much_and_a_fiftieth_too_little(
    used_mib: int, missed: int
) -> None:
    need = MemoryNeed(60 * MIB, 10 * MIB, 10 * MIB, 10 * MIB, 10 * MIB, 0)
    used = Used(anonymous=0, whole=used_mib * MIB)

    found = memory_failures([Row("m", "r", "s", 1, need, None, used, surveyed=True)])

    assert len(found) == missed
