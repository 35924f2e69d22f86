"""What the facts add up to."""

from __future__ import annotations

import pytest

from tests.fakes.hardware import GIB, machine


@pytest.mark.parametrize(
    ("limits", "cpus"),
    [
        ({"cores": 8}, 8),
        ({"cores": 8, "logical": 16}, 8),  # SMT siblings add nothing
        ({"cores": 8, "affinity": 3}, 3),
        ({"cores": 96, "quota": 7.65}, 7),  # rounded down
        ({"cores": 8, "quota": 0.5}, 1),  # at least one
        ({"cores": 14, "performance": 6}, 6),
        ({"cores": 8, "quota": 4.0, "affinity": 2}, 2),
    ],
)
def test_effective_cpus_are_the_least_of_all_bounds(limits: dict[str, int], cpus: int) -> None:
    assert machine(**limits).effective_cpus == cpus  # type: ignore[arg-type]


def test_headroom_is_the_lesser_of_system_and_cgroup() -> None:
    assert machine(available=5 * GIB).headroom_bytes == 5 * GIB
    assert machine(available=5 * GIB, headroom=2 * GIB).headroom_bytes == 2 * GIB
    assert machine(available=1 * GIB, headroom=2 * GIB).headroom_bytes == 1 * GIB
