"""Samples of what systems say, and what is understood."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.hardware import parse

MIB = 1024 * 1024

X86 = """\
processor\t: 0
model name\t: Intel(R) Core(TM) i5-8250U CPU @ 1.60GHz
physical id\t: 0
core id\t\t: 0
flags\t\t: fpu sse2 avx2 fma

processor\t: 1
model name\t: Intel(R) Core(TM) i5-8250U CPU @ 1.60GHz
physical id\t: 0
core id\t\t: 0
flags\t\t: fpu sse2 AVX2 f16c

processor\t: 2
model name\t: Intel(R) Core(TM) i5-8250U CPU @ 1.60GHz
physical id\t: 0
core id\t\t: 1
flags\t\t: fpu sse2 avx2 fma f16c
"""

ARM = """\
processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 asimddp
CPU implementer\t: 0x41

Model\t\t: Raspberry Pi 5 Model B Rev 1.0
"""


def test_cpuinfo_of_x86() -> None:
    """Flags are those that all CPUs share; siblings are one core."""
    info = parse.cpuinfo(X86)

    assert info.model == "Intel(R) Core(TM) i5-8250U CPU @ 1.60GHz"
    assert info.flags == {"fpu", "sse2", "avx2"}
    assert info.physical_cores == 2


def test_cpuinfo_of_arm() -> None:
    info = parse.cpuinfo(ARM)

    assert info.model == "Raspberry Pi 5 Model B Rev 1.0"
    assert "asimddp" in info.flags
    assert info.physical_cores is None


def test_meminfo() -> None:
    values = parse.meminfo("MemTotal:  24684096 kB\nMemAvailable: 100 kB\nHugePages_Total: 3\n")

    assert values == {
        "MemTotal": 24684096 * 1024,
        "MemAvailable": 100 * 1024,
        "HugePages_Total": 3,
    }


def test_cpu_lists() -> None:
    assert parse.cpu_numbers("0-3,8\n") == (0, 1, 2, 3, 8)
    assert parse.cpu_numbers("") == ()


def test_performance_cores_are_those_of_full_capacity() -> None:
    assert parse.performance_cores([250] * 4 + [1024] * 2) == 2
    assert parse.performance_cores([1024] * 8) is None
    assert parse.performance_cores([1000, 1024]) is None
    assert parse.performance_cores([]) is None


def test_own_cgroups_of_both_versions() -> None:
    text = "12:cpu,cpuacct:/a/b\n4:memory:/c:d\n0::/user.slice/x.scope\n"

    paths = parse.own_cgroups(text)

    assert paths == {"cpu": "/a/b", "cpuacct": "/a/b", "memory": "/c:d", "": "/user.slice/x.scope"}


@pytest.mark.parametrize(
    ("text", "cpus"),
    [
        ("max 100000", None),
        ("200000 100000", 2.0),
        ("50000 100000\n", 0.5),
        ("", None),
        (None, None),
    ],
)
def test_quota_of_version_2(text: str | None, cpus: float | None) -> None:
    assert parse.v2_quota(text) == cpus


@pytest.mark.parametrize(
    ("quota", "period", "cpus"),
    [("-1", "100000", None), ("765000", "100000", 7.65), ("1", "0", None), (None, None, None)],
)
def test_quota_of_version_1(quota: str | None, period: str | None, cpus: float | None) -> None:
    assert parse.v1_quota(quota, period) == cpus


@pytest.mark.parametrize(
    ("text", "limit"),
    [("max\n", None), ("9223372036854771712", None), ("1073741824", 1 << 30), ("x", None)],
)
def test_memory_limits(text: str, limit: int | None) -> None:
    assert parse.memory_limit(text) == limit


def test_file_cache_counts_as_free() -> None:
    """A mapped model sits in the file cache of its group and can be dropped."""
    stat = "anon 100\nfile 900\ninactive_file 500\nactive_file 300\n"

    assert parse.reclaimable(stat) == 800
    assert parse.headroom(1000, 950, 800) == 850
    assert parse.headroom(1000, 2000, 0) == 0
    assert parse.headroom(None, 5, 0) is None


def test_version_1_totals_win_over_own_values() -> None:
    stat = "inactive_file 1\nactive_file 1\ntotal_inactive_file 50\ntotal_active_file 20\n"

    assert parse.reclaimable(stat) == 70


def test_nvidia_smi() -> None:
    gpus = parse.nvidia_smi(
        "NVIDIA GeForce RTX 4090, 24564, 24000, 550.54\nNVIDIA GB10, [N/A], [N/A], 580\n"
    )

    assert [(g.name, g.vram_total_bytes, g.vram_free_bytes) for g in gpus] == [
        ("NVIDIA GeForce RTX 4090", 24564 * MIB, 24000 * MIB),
        ("NVIDIA GB10", None, None),
    ]
    assert parse.nvidia_smi("NVIDIA-SMI has failed because it couldn't communicate") == ()


def test_drm_cards() -> None:
    card = parse.drm_card("0x1002\n", "17163091968", "163091968", "Radeon RX 7800 XT\n")

    assert card is not None
    assert (card.name, card.vendor, card.vram_free_bytes) == (
        "Radeon RX 7800 XT",
        "amd",
        17_000_000_000,
    )
    assert parse.drm_card("0x1234", None, None, None) is None


def test_system_profiler() -> None:
    displays = [
        {"sppci_model": "Apple M3 Pro"},
        {"sppci_model": "Radeon Pro 5500M", "spdisplays_vram": "8 GB"},
    ]

    gpus = parse.system_profiler(json.dumps({"SPDisplaysDataType": displays}))

    assert [(g.vendor, g.vram_total_bytes) for g in gpus] == [
        ("apple", None),
        ("other", 8192 * MIB),
    ]
    assert parse.system_profiler("no json") == ()


@given(st.text())
def test_no_text_makes_a_parser_fail(text: str) -> None:
    parse.cpuinfo(text)
    parse.meminfo(text)
    parse.cpu_numbers(text)
    parse.own_cgroups(text)
    parse.v2_quota(text)
    parse.memory_limit(text)
    parse.reclaimable(text)
    parse.nvidia_smi(text)
    parse.system_profiler(text)
