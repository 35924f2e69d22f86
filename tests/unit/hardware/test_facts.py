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
        ({"cores": 8, "logical": 16, "affinity": 4, "affinity_cores": 2}, 2),  # both SMT siblings
        ({"cores": 14, "performance": 6, "affinity": 8, "affinity_cores": 8}, 8),  # E-cores only
    ],
)
def test_effective_cpus_are_the_least_of_all_bounds(limits: dict[str, int], cpus: int) -> None:
    assert machine(**limits).effective_cpus == cpus  # type: ignore[arg-type]


def test_headroom_is_the_lesser_of_system_and_cgroup() -> None:
    assert machine(available=5 * GIB).headroom_bytes == 5 * GIB
    assert machine(available=5 * GIB, headroom=2 * GIB).headroom_bytes == 2 * GIB
    assert machine(available=1 * GIB, headroom=2 * GIB).headroom_bytes == 1 * GIB


def test_a_ulimit_counts_what_the_engine_itself_maps() -> None:
    """With 8 threads about 1.4 GiB of address space are not the model's."""
    limited = machine(available=9 * GIB, address_space=4 * GIB)

    assert 2.4 * GIB < limited.headroom_bytes < 2.8 * GIB
    assert machine(available=1 * GIB, address_space=9 * GIB).headroom_bytes == 1 * GIB
    assert 3.4 * GIB < machine(available=9 * GIB, data=4 * GIB).headroom_bytes < 3.7 * GIB
    assert machine(address_space=GIB // 4).headroom_bytes == 0
