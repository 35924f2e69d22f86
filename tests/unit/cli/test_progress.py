from __future__ import annotations

import pytest

from stoker.cli import progress


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("step", "detail"),
    [
        (progress.Step("x"), ""),
        (progress.Step("x", 5_000_000), "5 MB"),
        (progress.Step("x", 40_000_000, 98_000_000), "40 MB of 98 MB"),
        (
            progress.Step("x", 40_000_000, 98_000_000, 12_000_000, 4.8),
            "40 MB of 98 MB, 12 MB/s, 5 s left",
        ),
    ],
)
def test_a_step_says_what_is_known(step: progress.Step, detail: str) -> None:
    assert step.detail == detail


def test_plain_progress_does_not_flood_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    """A line at each change of what is done, and how far it is every five seconds."""
    clock = Clock()
    show = progress.Lines(clock)

    for clock.now, label in ((0, "a"), (1, "a"), (2, "b"), (3, "b"), (8, "b")):
        show(progress.Step(label, 5_000_000, 98_000_000))

    assert capsys.readouterr().err.splitlines() == ["a", "b", "b: 5 MB of 98 MB"]


def test_rate_and_time_left_count_from_the_first_step() -> None:
    """What was there before the watching began is not counted as speed."""
    clock = Clock()
    meter = progress.Meter(clock)

    first = meter.step("x", 500, 1000)
    clock.now = 2.0
    second = meter.step("x", 700, 1000)

    assert (first.bytes_per_s, first.eta_s) == (0.0, None)
    assert (second.bytes_per_s, second.eta_s) == (100.0, 3.0)


@pytest.mark.parametrize(
    ("elapsed_s", "expected_s", "text"),
    [
        (4.2, 12.4, "Loading a … 4 s of about 12 s"),
        (0.0, 0.3, "Loading a … 0 s of about 1 s"),
        (13.0, 12.4, "Loading a …"),
        (4.2, None, "Loading a …"),
    ],
)
def test_a_wait_counts_as_long_as_it_is_as_expected(
    elapsed_s: float, expected_s: float | None, text: str
) -> None:
    assert progress.counted("Loading\na …", elapsed_s, expected_s) == text
