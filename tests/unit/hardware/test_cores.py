"""Which CPUs are cores of their own, and which cores are fast."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.hardware import cores
from stoker.hardware.cores import LogicalCpu


def table(*speeds: int, threads: int = 1) -> tuple[LogicalCpu, ...]:
    """Cores of these speeds, each with so many SMT threads, which follow one another."""
    return tuple(
        LogicalCpu(core * threads + thread, str(core), speed)
        for core, speed in enumerate(speeds)
        for thread in range(threads)
    )


# P-cores with two threads, E-cores with one: 2 + 4 cores, CPUs 0-3 and 4-7.
HYBRID = (
    *table(1024, 1024, threads=2),
    *(LogicalCpu(cpu, f"e{cpu}", 512) for cpu in range(4, 8)),
)


@pytest.mark.parametrize(
    ("speeds", "classes", "fast"),
    [
        ((1024,) * 8, (), 8),
        ((1000, 1024, 1010), (), 3),  # favoured cores
        ((250,) * 4 + (1024,) * 2, (2, 4), 2),
        ((1024, *(820,) * 3, *(322,) * 4), (1, 3, 4), 4),  # a phone: the big ones keep up
        ((0, 0), (), 2),  # unknown
    ],
)
def test_kinds_of_cores(speeds: tuple[int, ...], classes: tuple[int, ...], fast: int) -> None:
    assert cores.core_classes(table(*speeds)) == classes
    assert cores.fast_cores(speeds) == fast


@pytest.mark.parametrize(
    ("allowed", "count"),
    [
        (range(8), 2),  # all of it: the P-cores
        ((0, 1), 1),  # two threads of one core
        ((0, 2), 2),
        ((4, 5, 6), 3),  # E-cores only: they are alike
        ((0, 4, 5), 1),
        ((), None),
        ((0, 99), None),  # not in the table
    ],
)
def test_what_a_mask_leaves_of_a_hybrid(allowed: Sequence[int], count: int | None) -> None:
    assert cores.full_speed_cores(HYBRID, allowed) == count


def test_one_core_for_all_cpus_is_not_believed() -> None:
    assert cores.believable(table(0, 0, threads=2), is_x86=True)
    assert not cores.believable(table(0, threads=8), is_x86=True)
    assert cores.believable(table(0, threads=8), is_x86=False)  # POWER
    assert not cores.believable((), is_x86=True)


# --- Windows ---------------------------------------------------------------------------------


def record(mask: int, *, group: int = 0, rank: int = 0, smt: bool = False) -> bytes:
    """One SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX of a core, as 64-bit Windows lays it out."""
    body = struct.pack("<BB20xH", smt, rank, 1) + struct.pack("<QH6x", mask, group)
    return struct.pack("<II", 0, 8 + len(body)) + body


def test_windows_efficiency_classes() -> None:
    """The highest class is the fastest."""
    found = cores.from_windows(
        record(0b11, rank=1, smt=True) + record(0b1100, rank=1) + record(0b10000, rank=0)
    )

    assert [(cpu.number, cpu.core) for cpu in found] == [
        (0, "0"),
        (1, "0"),
        (2, "1"),
        (3, "1"),
        (4, "2"),
    ]
    assert cores.core_classes(found) == (2, 1)
    assert cores.full_speed_cores(found, range(5)) == 2


def test_a_record_of_windows_has_48_bytes() -> None:
    """What winnt.h's structures add up to; else the fake above would fit only itself."""
    assert len(record(1)) == 48


def test_windows_machines_with_more_than_64_cpus() -> None:
    found = cores.from_windows(record(1, group=0) + record(1, group=1))

    assert [cpu.number for cpu in found] == [0, 64]


def test_other_records_of_windows_are_skipped() -> None:
    other = struct.pack("<II", 2, 16) + b"\xff" * 8

    assert len(cores.from_windows(other + record(1) + other)) == 1


@given(st.binary(max_size=200))
def test_no_bytes_make_it_fail(records: bytes) -> None:
    cores.from_windows(records)
