from __future__ import annotations

from dataclasses import replace

import pytest

from stoker.hardware.facts import GpuFacts, HardwareFacts, PowerFacts
from stoker.tuning.keys import LENGTH, memory_class, power_mode, tuning_key
from tests.fakes.hardware import GIB, machine


def test_the_key_is_short_and_the_same_every_time() -> None:
    assert tuning_key(machine()) == tuning_key(machine())
    assert len(tuning_key(machine())) == LENGTH
    assert int(tuning_key(machine()), 16)


@pytest.mark.parametrize(
    "other",
    [
        machine(cores=4),
        machine(logical=16),
        machine(performance=6),
        machine(flags=frozenset(("avx2",))),
        machine(arch="aarch64"),
        machine(affinity=3),
        machine(quota=2.5),
        machine(total=32 * GIB),
        machine(limit=2 * GIB, headroom=2 * GIB),
        machine(gpus=(GpuFacts("RTX", "nvidia", 8 * GIB),)),
        replace(machine(), system="darwin"),
        replace(machine(), power=PowerFacts(on_battery=True)),
        replace(machine(), power=PowerFacts(saver=True)),
        replace(machine(), cpu=replace(machine().cpu, model="Another CPU")),
    ],
)
def test_it_changes_with_what_makes_a_machine_faster_or_slower(other: HardwareFacts) -> None:
    assert tuning_key(other) != tuning_key(machine())


@pytest.mark.parametrize(
    "same",
    [
        machine(available=GIB),
        machine(headroom=3 * GIB),
        machine(total=16 * GIB - 700 * 1024**2),  # what another kernel leaves of it
        replace(machine(), release="6.2"),
        replace(machine(), power=PowerFacts(on_battery=False, percent=80.0, throttled=True)),
        replace(machine(), bandwidth_bytes_per_s=10**10, disk_read_bytes_per_s=10**9),
    ],
)
def test_it_does_not_change_with_what_comes_and_goes(same: HardwareFacts) -> None:
    assert tuning_key(same) == tuning_key(machine())


def test_every_pair_of_parts_is_told_apart() -> None:
    """Parts that run into each other would make two machines one."""
    with_card = machine(gpus=(GpuFacts("A", "v", 1), GpuFacts("B", "v", 2)))
    swapped = machine(gpus=(GpuFacts("B", "v", 1), GpuFacts("A", "v", 2)))

    assert tuning_key(with_card) != tuning_key(swapped)


def test_power_modes() -> None:
    def mode(**facts: bool) -> str:
        return power_mode(replace(machine(), power=PowerFacts(**facts)))

    assert mode() == mode(on_battery=False) == "mains"
    assert mode(on_battery=True) == "battery"
    assert mode(on_battery=True, saver=True) == "saver"


def test_a_limit_counts_as_the_memory() -> None:
    assert memory_class(machine(total=64 * GIB, limit=8 * GIB)) == memory_class(
        machine(total=8 * GIB)
    )
