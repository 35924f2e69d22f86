"""When idle models should leave because other programs need the memory, and when not."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.hardware.facts import HardwareFacts
from stoker.lifecycle.pressure import Pressure, parse_psi, stall_share
from tests.fakes.hardware import GIB, machine

MIB = 1024 * 1024
RESERVE = machine(total=16 * GIB).memory.total_bytes // 10


def free(available: int) -> HardwareFacts:
    """Of 16 GiB, of which a tenth is reserved for others."""
    return machine(total=16 * GIB, available=available)


def looks(*available: int, promised: int = 0, stalled: float | None = None) -> list[int]:
    pressure = Pressure()
    return [pressure.look(free(one), promised_bytes=promised, stalled=stalled) for one in available]


def test_a_reserve_that_is_there_is_no_reason() -> None:
    assert looks(8 * GIB, RESERVE, RESERVE // 2 + 1, RESERVE // 2 + 1) == [0] * 4


def test_the_second_low_look_in_a_row_asks_for_the_whole_reserve() -> None:
    low = RESERVE // 2 - MIB

    assert looks(low, low) == [0, RESERVE - low]


def test_a_short_peak_is_waited_out() -> None:
    low = RESERVE // 2 - MIB

    assert looks(low, 8 * GIB, low, 8 * GIB, low) == [0] * 5


def test_after_it_asked_it_waits_for_what_comes_of_it() -> None:
    low = RESERVE // 4

    asked = looks(*[low] * 6)

    assert [bool(one) for one in asked] == [False, True] * 3


def test_what_is_promised_to_models_is_not_there_for_others() -> None:
    """The system counts the weights in the page cache as free: others would take them first."""
    assert looks(5 * GIB, 5 * GIB, promised=4 * GIB + RESERVE) == [0, 2 * RESERVE - GIB]


def test_other_systems_do_not_count_mapped_weights_as_free() -> None:
    """There a loaded model would look like another program's pressure, and be sent away."""
    pressure = Pressure()
    mac = dataclasses.replace(free(5 * GIB), system="darwin")

    asked = [pressure.look(mac, promised_bytes=5 * GIB) for _ in range(3)]

    assert asked == [0, 0, 0]


def test_a_cgroup_is_short_when_the_machine_is_not() -> None:
    tight = machine(total=64 * GIB, limit=4 * GIB, headroom=100 * MIB)
    pressure = Pressure()

    assert pressure.look(tight, promised_bytes=0) == 0
    assert pressure.look(tight, promised_bytes=0) == GIB - 100 * MIB


def test_where_programs_wait_for_memory_one_look_is_enough() -> None:
    low = RESERVE // 4

    assert looks(low, stalled=0.2)[0] > 0
    assert looks(low, stalled=0.01)[0] == 0
    assert looks(8 * GIB, stalled=0.9)[0] == 0  # it is not our memory that they wait for


def test_a_user_who_reserves_nothing_is_still_kept_from_the_end() -> None:
    pressure = Pressure()
    nearly = free(100 * MIB)

    assert pressure.look(nearly, promised_bytes=0, reserve=0) == 0
    assert pressure.look(nearly, promised_bytes=0, reserve=0) == 156 * MIB
    assert pressure.look(free(200 * MIB), promised_bytes=0, reserve=0) == 0


def test_a_rest_begins_anew() -> None:
    pressure = Pressure()
    low = free(RESERVE // 4)

    pressure.look(low, promised_bytes=0)
    pressure.rest()

    assert pressure.look(low, promised_bytes=0) == 0


@given(
    st.lists(
        st.tuples(st.integers(0, 16 * GIB), st.integers(0, 32 * GIB), st.none() | st.floats(0, 1)),
        max_size=20,
    ),
    st.none() | st.integers(0, 16 * GIB),
)
def test_what_it_asks_for_would_bring_the_reserve_back(
    seen: list[tuple[int, int, float | None]], reserve: int | None
) -> None:
    """And it never asks while half of the reserve is there."""
    pressure = Pressure()
    for available, promised, stalled in seen:
        need = pressure.look(
            free(available), promised_bytes=promised, reserve=reserve, stalled=stalled
        )

        assert need >= 0
        if need:
            kept = available - promised + need
            assert available - promised < kept // 2 + 1
            assert kept >= 256 * MIB


# --- who waits for memory ----------------------------------------------------------------------

PSI = """some avg10=12.50 avg60=3.10 avg300=0.00 total=11693138
full avg10=1.00 avg60=0.00 avg300=0.00 total=5228696
"""


@pytest.mark.parametrize(
    ("text", "share"),
    [
        (PSI, 0.125),
        (PSI.replace("12.50", "0.00"), 0.0),
        (PSI.replace("12.50", "100.00"), 1.0),
        (PSI.replace("12.50", "999.00"), 1.0),
        ("", None),
        ("full avg10=12.50 avg60=0", None),
        ("some avg10=nan avg60=0", None),
        ("some avg10=-1.0 avg60=0", None),
        ("some avg10=" + "9" * 5000, None),
    ],
)
def test_the_share_of_time_is_read(text: str, share: float | None) -> None:
    assert parse_psi(text) == share


def test_a_system_that_does_not_tell_is_no_error(tmp_path: Path) -> None:
    broken = tmp_path / "memory"
    broken.write_bytes(b"\xff\xfe")

    assert stall_share(tmp_path / "missing") is None
    assert stall_share(tmp_path) is None
    assert stall_share(broken) is None
