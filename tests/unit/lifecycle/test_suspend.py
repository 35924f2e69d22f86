"""What three clocks say about the time between two looks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.lifecycle.suspend import Clockwork, Gap, clocks

WALL = 1_800_000_000.0


def between(ran: float, wall: float, boot: float | None = None) -> Gap | None:
    """One look, and another after each clock went on by so much."""
    clockwork = Clockwork()
    assert clockwork.look(100.0, WALL, None if boot is None else 900.0) is None
    return clockwork.look(100.0 + ran, WALL + wall, None if boot is None else 900.0 + boot)


@pytest.mark.parametrize(
    ("ran", "wall", "boot"),
    [
        (5.0, 5.0, 5.0),
        (5.0, 5.0, None),
        (0.01, 0.01, 0.01),
        (19.0, 19.0, 19.0),  # late, on a busy machine
        (5.0, 9.0, 5.0),  # a time server moved the clock a little
        (5.0, 1.0, None),
    ],
)
def test_nothing_unusual(ran: float, wall: float, boot: float | None) -> None:
    assert between(ran, wall, boot) is None


@pytest.mark.parametrize(
    ("ran", "wall", "boot", "gap"),
    [
        (5.0, 3605.0, 3605.0, Gap(slept_s=3600)),  # Linux, asleep
        (5.0, 3605.0, None, Gap(slept_s=3600)),  # macOS, asleep; or the clock was set
        (3605.0, 3605.0, None, Gap(stalled_s=3600)),  # Windows, asleep
        (65.0, 65.0, 65.0, Gap(stalled_s=60)),  # stopped by a debugger
        (5.0, 3605.0, 5.0, Gap(wall_jump_s=3600)),  # set forward
        (5.0, -3595.0, 5.0, Gap(wall_jump_s=-3600)),  # set back
        (5.0, -3595.0, None, Gap(wall_jump_s=-3600)),
        (5.0, 5.0, 3605.0, Gap(slept_s=3600, wall_jump_s=-3600)),  # and set back while asleep
        (65.0, 3665.0, 3665.0, Gap(slept_s=3600, stalled_s=60)),
    ],
)
def test_gaps(ran: float, wall: float, boot: float | None, gap: Gap) -> None:
    assert between(ran, wall, boot) == gap
    assert gap.woke is (gap.slept_s > 0 or gap.stalled_s > 0)


def test_a_gap_is_told_once() -> None:
    clockwork = Clockwork()
    looks = [(0, 0, 0), (5, 5, 5), (10, 910, 910), (15, 915, 915), (20, 920, 920)]

    gaps = [clockwork.look(float(a), WALL + b, float(c)) for a, b, c in looks]

    assert gaps == [None, None, Gap(slept_s=900), None, None]


def test_two_looks_now_show_no_gap() -> None:
    """With the real clocks of this machine."""
    clockwork = Clockwork()

    assert clockwork.look(*clocks()) is None
    assert clockwork.look(*clocks()) is None


@given(
    st.lists(
        st.tuples(st.floats(0, 1e9), st.floats(-1e12, 1e12), st.none() | st.floats(0, 1e9)),
        max_size=6,
    )
)
def test_no_clock_breaks_it(looks: list[tuple[float, float, float | None]]) -> None:
    """Nothing is ever negative but a jump back."""
    clockwork = Clockwork()
    for look in looks:
        gap = clockwork.look(*look)
        assert gap is None or (gap.slept_s >= 0 and gap.stalled_s >= 0)
