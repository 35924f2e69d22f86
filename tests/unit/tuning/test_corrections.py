"""What peaks teach: up at once, down slowly and on evidence only, never beyond the bounds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.tuning.corrections import LEAST, MOST, corrected
from stoker.tuning.launch import MemoryNeed


def need(computed: int = 1000, cache: int = 100) -> MemoryNeed:
    return MemoryNeed(10**9, computed - cache, 0, 0, 0, cache)


@pytest.mark.parametrize(
    ("peak", "factor"),
    [
        (1000, 1.0),  # as computed
        (1001, 1.01),  # up to the next hundredth
        (1100, 1.1),
        (1101, 1.11),
        (5000, MOST),
    ],
)
def test_it_rises_at_once(peak: int, factor: float) -> None:
    assert corrected(1.0, need(), peak) == factor
    assert corrected(factor, need(), peak) == factor


@pytest.mark.parametrize("filled", [None, 0.0, 0.5, 0.89])
def test_a_worker_that_had_little_to_do_proves_nothing(filled: float | None) -> None:
    assert corrected(1.3, need(), 400, filled=filled) == 1.3


def test_it_falls_by_a_quarter_of_the_way_for_each_filled_worker() -> None:
    """Down to what was taken, if none of it was in the caches."""
    factors = [1.4]
    for _ in range(40):
        factors.append(corrected(factors[-1], need(), 900, filled=1.0))

    assert factors[1] == pytest.approx(1.3)
    assert factors == sorted(factors, reverse=True)
    assert factors[-1] == 1.0


def test_empty_caches_do_not_count_as_a_prediction_that_was_too_high() -> None:
    """The worker took all but the caches: nothing says that those would have been smaller."""
    assert corrected(1.0, need(1000, cache=400), 600, filled=1.0) == 1.0


def test_it_never_falls_below_its_bound() -> None:
    factor = 1.0
    for _ in range(60):
        factor = corrected(factor, need(), 100, filled=1.0)

    assert factor == LEAST


@pytest.mark.parametrize(("computed", "peak"), [(0, 500), (1000, 0), (1000, -5)])
def test_what_was_not_measured_teaches_nothing(computed: int, peak: int) -> None:
    assert corrected(1.2, need(computed, cache=0), peak, filled=1.0) == 1.2


@given(
    st.lists(
        st.tuples(
            st.integers(1, 1 << 44),
            st.integers(1, 1 << 44),
            st.floats(0, 1),
            st.none() | st.floats(0, 1),
        ),
        max_size=30,
    )
)
def test_whatever_is_measured_it_stays_within_its_bounds(
    peaks: list[tuple[int, int, float, float | None]],
) -> None:
    """And after each peak the next prediction covers it, up to the bound."""
    factor = 1.0
    for computed, peak, cache, filled in peaks:
        one = need(computed, cache=int(computed * cache))
        factor = corrected(factor, one, peak, filled=filled)

        assert LEAST <= factor <= MOST
        assert factor * computed >= min(peak, MOST * computed) * (1 - 1e-7)
