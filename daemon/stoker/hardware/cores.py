"""Which of a machine's CPUs are cores of their own, and which cores are the fast ones. Pure.

Not for: asking the system (`probe_linux`, `probe_windows`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

# Cores this much slower than the fastest hold it up: each step of a model ends when the slowest
# thread is done. The big cores of phones' chips have 0.75 to 0.85 of the one biggest core's speed,
# the little ones 0.25 to 0.5; Intel's favoured cores differ by a few percent.
_FAST_SHARE: Final = 0.6
_SAME_KIND: Final = 0.9
_SMT: Final = 2  # threads per core, at most, on x86


@dataclass(frozen=True, slots=True)
class LogicalCpu:
    """One CPU as the system counts them; SMT siblings have the same `core`."""

    number: int
    core: str
    speed: int  # compared with the other CPUs of this machine; 0 when unknown


def core_classes(cpus: Iterable[LogicalCpu]) -> tuple[int, ...]:
    """How many cores there are of each kind, the fastest kind first; () when all are alike."""
    speeds = sorted(_speeds(cpus).values(), reverse=True)
    kinds: list[list[int]] = []
    for speed in speeds:
        if kinds and speed >= kinds[-1][0] * _SAME_KIND:
            kinds[-1].append(speed)
        else:
            kinds.append([speed])
    return tuple(len(kind) for kind in kinds) if len(kinds) > 1 else ()


def full_speed_cores(cpus: Iterable[LogicalCpu], allowed: Iterable[int]) -> int | None:
    """Cores among the allowed CPUs that are about as fast as the fastest of them.

    None when the table does not cover them.
    """
    wanted = frozenset(allowed)
    usable = [cpu for cpu in cpus if cpu.number in wanted]
    if not wanted or len(usable) < len(wanted):
        return None
    return fast_cores(list(_speeds(usable).values()))


def fast_cores(speeds: Sequence[int]) -> int:
    """How many of these are fast enough not to hold up the fastest."""
    return sum(1 for speed in speeds if speed >= max(speeds) * _FAST_SHARE)


def believable(cpus: Sequence[LogicalCpu], *, is_x86: bool) -> bool:
    """False for virtual machines that give all their CPUs the same core."""
    cores = len({cpu.core for cpu in cpus})
    return cores > 0 and (not is_x86 or cores * _SMT >= len(cpus))


def _speeds(cpus: Iterable[LogicalCpu]) -> dict[str, int]:
    return {cpu.core: cpu.speed for cpu in cpus}


# --- Windows ---------------------------------------------------------------------------------

_RELATION_CORE: Final = 0
_HEAD: Final = struct.Struct("<II")  # relationship, size of the record
_CORE: Final = struct.Struct("<BB20xH")  # flags, efficiency class, count of group masks
_MASK: Final = struct.Struct("<QH6x")  # CPUs in the group, number of the group
_GROUP: Final = 64  # CPUs in a group, at most
_FASTEST: Final = 1024


def from_windows(records: bytes) -> tuple[LogicalCpu, ...]:
    """The answer of GetLogicalProcessorInformationEx for cores, on 64-bit Windows.

    Classes are ranks, the highest is the fastest; they become speeds that `fast_cores` tells
    apart. () when the records are not what they should be.
    """
    found: list[tuple[int, int, int]] = []  # CPU, core, class
    offset = core = 0
    try:
        while offset < len(records):
            relation, size = _HEAD.unpack_from(records, offset)
            if size < _HEAD.size:
                return ()
            if relation == _RELATION_CORE:
                _, rank, masks = _CORE.unpack_from(records, offset + _HEAD.size)
                at = offset + _HEAD.size + _CORE.size
                for number in range(masks):
                    mask, group = _MASK.unpack_from(records, at + number * _MASK.size)
                    cpus = (group * _GROUP + bit for bit in range(_GROUP) if mask >> bit & 1)
                    found.extend((cpu, core, rank) for cpu in cpus)
                core += 1
            offset += size
    except struct.error:
        return ()
    best = max((rank for _, _, rank in found), default=0)
    return tuple(
        LogicalCpu(cpu, str(number), _FASTEST >> min(best - rank, _FASTEST.bit_length() - 1))
        for cpu, number, rank in found
    )
