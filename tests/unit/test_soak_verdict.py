from __future__ import annotations

from dataclasses import replace

import pytest

from tests.benchmarks.soak import MIB, Point, judge
from tests.benchmarks.soak_load import Journal

POINT = Point(
    at_s=0,
    processes=0,
    descriptors=30,
    sockets=8,
    threads=12,
    rss_bytes=70 * MIB,
    busiest_rss_bytes=80 * MIB,
    worker_sockets=0,
    conversations_bytes=0,
    requests=0,
)


def series(count: int = 20, /, **growth: float) -> list[Point]:
    """Points three minutes apart; each named figure grows by so much from one to the next."""
    return [
        replace(
            POINT,
            at_s=180.0 * n,
            **{name: getattr(POINT, name) + int(step * n) for name, step in growth.items()},
        )
        for n in range(count)
    ]


def test_a_daemon_that_stays_as_it_was_is_sound() -> None:
    verdict = judge(series())

    assert verdict.problems == ()
    assert "+0.00 MiB an hour" in verdict.notes[0]


@pytest.mark.parametrize(
    ("name", "step"),
    [("descriptors", 0.5), ("sockets", 0.5), ("threads", 1.0), ("rss_bytes", 0.5 * MIB)],
)
def test_what_grows_is_found(name: str, step: float) -> None:
    (problem,) = judge(series(**{name: step})).problems

    assert name.replace("rss_bytes", "memory") in problem


def test_what_is_left_behind_is_found_at_any_look() -> None:
    points = series()
    points[0] = replace(points[0], processes=1)
    points[9] = replace(points[9], worker_sockets=1)

    assert len(judge(points).problems) == 2


def test_what_is_kept_on_disk_has_a_bound() -> None:
    assert judge(series(conversations_bytes=20 * MIB)).problems
    assert judge(series(conversations_bytes=10 * MIB)).problems == ()


def test_what_warms_up_is_no_leak() -> None:
    """Memory and descriptors of the first minutes, and one odd look."""
    points = series()
    points[0] = replace(points[0], rss_bytes=60 * MIB, descriptors=20)
    points[12] = replace(points[12], rss_bytes=95 * MIB)

    assert judge(points).problems == ()


def test_a_short_run_says_nothing_about_memory() -> None:
    verdict = judge(series(4, rss_bytes=5 * MIB))

    assert verdict.problems == ()
    assert "too short" in verdict.notes[0]


def test_nothing_is_judged_by_a_single_look() -> None:
    assert judge(series(2)).problems


def test_a_failure_needs_a_mishap_that_explains_it() -> None:
    journal = Journal()
    with journal.mishap("pin"):
        journal.ended("complete", "worker_lost", 0.0)
        journal.ended("complete", "memory_short", 0.0)
    with journal.mishap("kill"):
        journal.ended("stream", "worker_lost", 0.0)

    assert len(journal.findings) == 1
    assert "complete: worker_lost" in journal.findings[0]
    assert journal.counts["stream", "worker_lost"] == 1


def test_what_nothing_explains_is_always_a_finding() -> None:
    journal = Journal()
    with journal.mishap("kill"), journal.mishap("off"):
        journal.ended("chat", "internal_error", 0.0)

    assert len(journal.findings) == 1
