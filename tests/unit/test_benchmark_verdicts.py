"""What the tuning benchmark concludes from its figures: a proof is worth no more than that."""

from __future__ import annotations

import random

import pytest

from stoker.tuning.launch import MemoryNeed
from stoker.tuning.memory import MIB
from tests.benchmarks import grid
from tests.benchmarks.grid import Subject
from tests.benchmarks.memory import Row, Used
from tests.benchmarks.memory import failures as memory_failures
from tests.benchmarks.speeds import Figures
from tests.benchmarks.tuning import Row as SpeedRow
from tests.benchmarks.tuning import failures, rows_of


def figures(prefill: float, decode: float = 50, batch: float = 100) -> Figures:
    return Figures(prefill, decode, batch, wall_s=1, others=0)


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

    assert grid.leaders(scores, 1) == [a, b]


def test_a_machine_that_slows_down_does_not_change_a_ratio() -> None:
    found = [
        {"tuned": figures(speed * 0.9), "best": figures(speed)} for speed in (100, 50, 10, 200)
    ]

    assert grid.ratio(found, "tuned", "best", "prefill") == pytest.approx(0.9)


def test_luck_does_not_make_a_best() -> None:
    """Nine settings that equal ours, each with its own noise: ours is not behind."""
    dice = random.Random(1)  # noqa: S311  # not a secret
    labels = [f"s{number}" for number in range(9)]
    found = [
        {label: figures(100 * dice.uniform(0.85, 1.15)) for label in ["tuned", *labels]}
        for _ in range(99)
    ]

    assert grid.ratio_to_best(found, "tuned", labels, "prefill") == pytest.approx(1.0, abs=0.03)


def test_one_that_is_better_is_seen() -> None:
    dice = random.Random(1)  # noqa: S311  # not a secret
    found = [
        {
            "tuned": figures(90 * dice.uniform(0.95, 1.05)),
            "equal": figures(90 * dice.uniform(0.95, 1.05)),
            "better": figures(100 * dice.uniform(0.95, 1.05)),
        }
        for _ in range(9)
    ]

    share = grid.ratio_to_best(found, "tuned", ["equal", "better"], "prefill")

    assert share == pytest.approx(0.9, abs=0.04)


def test_the_best_of_the_grid_is_another_one_for_each_metric() -> None:
    fast_reader, fast_writer = subject("reader"), subject("writer")
    found = [
        {
            "tuned": figures(95, 48),
            "tuned, another worker": figures(100, 48),
            "reader": figures(100, 40),
            "writer": figures(80, 50),
            "own": figures(90, 45, 90),
        }
    ] * 3

    rows = rows_of("m", found, [fast_reader, fast_writer], [subject("own")])

    assert [(row.metric, row.best_setting) for row in rows[:2]] == [
        ("prefill", "reader"),
        ("decode", "writer"),
    ]
    assert [row.of_best for row in rows[:2]] == [pytest.approx(0.95), pytest.approx(0.96)]
    assert rows[1].of_defaults == {"r": pytest.approx(48 / 45)}
    assert [row.of_control for row in rows[:2]] == [pytest.approx(0.95), 1.0]


def row(of_best: float, of_defaults: float = 1.0) -> SpeedRow:
    return SpeedRow("m", "decode", 1, "s", 1, of_best, 1.0, {"r": 1}, {"r": of_defaults})


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
