"""What there is for one more worker: promises count, and so does the user's limit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.hardware.facts import GpuFacts, HardwareFacts
from stoker.lifecycle.budget import Room
from tests.fakes.hardware import GIB, machine

BYTES = st.integers(0, 64 * GIB)


def test_what_is_promised_is_not_free() -> None:
    room = Room(machine(available=8 * GIB, headroom=6 * GIB), promised_bytes=2 * GIB)

    assert room.hardware_with(0).headroom_bytes == 4 * GIB
    assert room.hardware_with(GIB).headroom_bytes == 5 * GIB


def test_what_was_taken_is_not_free_already() -> None:
    """The system does not count it any more; it is not taken off twice."""
    assert Room(machine(available=8 * GIB), taken_bytes=GIB).hardware_with(0) == machine(
        available=8 * GIB
    )


def test_without_a_limit_there_is_none() -> None:
    assert Room(machine(), GIB, GIB).most_bytes(0) is None


def test_a_limit_keeps_a_little_for_what_predictions_are_short_by() -> None:
    assert Room(machine(), limit_bytes=100 * GIB).most_bytes(0) == 98 * GIB


@pytest.mark.parametrize("limit", [0, 1, GIB])
def test_nothing_is_left_of_a_limit_that_is_used_up(limit: int) -> None:
    assert Room(machine(), GIB, GIB, limit).most_bytes(0) == 0


@given(promised=BYTES, taken=BYTES, limit=BYTES, extra=BYTES)
def test_what_a_model_would_leave_is_free_once(
    promised: int, taken: int, limit: int, extra: int
) -> None:
    """One that goes gives back what it took and what it was promised, and not a byte more."""
    whole = Room(machine(), promised, taken, limit)
    gone = Room(machine(), promised - extra // 2, taken - (extra - extra // 2), limit)

    assert whole.most_bytes(extra) == gone.most_bytes(0)
    assert (whole.most_bytes(extra) or 0) >= (whole.most_bytes(0) or 0)


@given(st.lists(st.tuples(st.integers(1, GIB), st.floats(0, 1)), max_size=8), BYTES)
def test_models_that_are_admitted_one_after_another_stay_within_the_limit(
    models: list[tuple[int, float]], limit: int
) -> None:
    """However much of what was planned for it each has taken so far."""
    promised = taken = 0
    for total, share in models:
        most = Room(machine(), promised, taken, limit).most_bytes(0)
        if most is not None and total <= most:
            resident = int(total * share)
            taken += resident
            promised += total - resident

    assert promised + taken <= limit


# --- the memory of GPUs ----------------------------------------------------------------------


def gpu(free: int | None, total: int | None = 8 * GIB, *, unified: bool | None = None) -> GpuFacts:
    return GpuFacts("GPU", "amd", total, free, unified=unified)


def frees(hardware: HardwareFacts) -> list[int | None]:
    return [one.vram_free_bytes for one in hardware.gpus]


def test_what_a_model_has_on_a_gpu_comes_back_with_it() -> None:
    room = Room(machine(gpus=(gpu(GIB),)))

    assert frees(room.hardware_with(0, 5 * GIB)) == [6 * GIB]
    assert room.hardware_with(0) == room.hardware


def test_no_gpu_has_more_free_than_it_has() -> None:
    two = machine(gpus=(gpu(6 * GIB), gpu(3 * GIB)))

    assert frees(Room(two).hardware_with(0, 4 * GIB)) == [8 * GIB, 5 * GIB]
    assert frees(Room(two).hardware_with(0, 40 * GIB)) == [8 * GIB, 8 * GIB]


def test_only_gpus_with_memory_of_their_own_get_it_back() -> None:
    mixed = machine(gpus=(gpu(2 * GIB, unified=True), gpu(None), gpu(GIB, None)))

    assert frees(Room(mixed).hardware_with(0, 3 * GIB)) == [2 * GIB, None, 4 * GIB]
