"""Samples of what systems say, and what is understood."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.hardware import parse
from stoker.hardware.facts import GpuFacts

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


@pytest.mark.parametrize(
    "stat",
    [
        "inactive_file 500\nactive_file 300\nfile_dirty 60\nfile_writeback 40\n",
        "total_inactive_file 500\ntotal_active_file 300\ntotal_dirty 60\ntotal_writeback 40\n",
    ],
)
def test_what_is_not_on_the_disk_yet_cannot_be_dropped(stat: str) -> None:
    assert parse.reclaimable(stat) == 700


MOUNTS = """\
31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw
32 31 0:29 /docker/abc /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /mnt/mem rw shared:5 - cgroup cgroup rw,memory
36 31 0:32 /part /mnt/other rw - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
a line that is none
"""


def test_cgroups_are_looked_for_where_they_are_mounted() -> None:
    mounts = parse.cgroup_mounts(MOUNTS)

    assert mounts["cpu"] == parse.CgroupMount("sys/fs/cgroup/cpu,cpuacct", "/docker/abc")
    assert mounts["memory"] == parse.CgroupMount("mnt/mem", "/")
    assert mounts[""].folder == "sys/fs/cgroup/unified"
    assert parse.cgroup_mounts(None)["memory"].folder == "sys/fs/cgroup/memory"


def test_a_container_sees_its_group_at_the_mount() -> None:
    mount = parse.CgroupMount("m", "/docker/abc")

    assert mount.levels("/docker/abc") == ("m",)
    assert mount.levels("/docker/abc/inner") == ("m", "m/inner")
    assert parse.CgroupMount("m", "/").levels("/a/b") == ("m", "m/a", "m/a/b")
    assert parse.CgroupMount("m", "/").levels("/../b") == ("m",)


def test_nvidia_smi() -> None:
    gpus = parse.nvidia_smi(
        "NVIDIA GeForce RTX 4090, 24564, 24000, 550.54\nNVIDIA GB10, [N/A], [N/A], 580\n"
    )

    assert [(g.name, g.vram_total_bytes, g.vram_free_bytes) for g in gpus] == [
        ("NVIDIA GeForce RTX 4090", 24564 * MIB, 24000 * MIB),
        ("NVIDIA GB10", None, None),
    ]
    assert parse.nvidia_smi("NVIDIA-SMI has failed because it couldn't communicate") == ()


def test_a_gpu_without_memory_of_its_own_shares_the_systems() -> None:
    own, shared = parse.nvidia_smi("RTX 4090, 24564, 24000, 5\nNVIDIA GB10, [N/A], [N/A], 5\n")

    assert (own.unified, shared.unified) == (False, True)


def test_an_amd_card() -> None:
    card = parse.drm_card(
        parse.DrmFiles(
            "0x1002\n",
            "Radeon RX 7800 XT\n",
            amd_total="17163091968",
            amd_used="163091968",
            amd_shared="33000000000",
            driver="amdgpu",
        )
    )

    assert card == GpuFacts(
        "Radeon RX 7800 XT", "amd", 17163091968, 17_000_000_000, "amdgpu", unified=False
    )


def test_an_amd_processors_own_graphics_share_memory() -> None:
    card = parse.drm_card(parse.DrmFiles("0x1002", None, "536870912", "0", "33000000000"))

    assert card is not None
    assert (card.name, card.unified) == ("amd GPU", True)


def test_an_intel_card_tells_its_memory_and_a_built_in_one_has_none() -> None:
    card = parse.drm_card(
        parse.DrmFiles("0x8086", intel_total="17095983104", intel_free="17000000000")
    )
    inside = parse.drm_card(parse.DrmFiles("0x8086"))

    assert card is not None
    assert (card.vram_total_bytes, card.vram_free_bytes, card.unified) == (
        17095983104,
        17_000_000_000,
        False,
    )
    assert inside == GpuFacts("intel GPU", "intel")


def test_a_virtual_display_is_no_gpu() -> None:
    assert parse.drm_card(parse.DrmFiles("0x1234")) is None


def test_system_profiler() -> None:
    displays = [
        {"sppci_model": "Apple M3 Pro"},
        {"sppci_model": "Radeon Pro 5500M", "spdisplays_vram": "8 GB"},
        {"sppci_model": "Intel UHD 630", "spdisplays_vram_shared": "1536 MB"},
    ]

    gpus = parse.system_profiler(json.dumps({"SPDisplaysDataType": displays}))

    assert [(g.vendor, g.vram_total_bytes, g.unified) for g in gpus] == [
        ("apple", None, True),
        ("other", 8192 * MIB, None),
        ("other", None, True),
    ]
    assert parse.system_profiler("no json") == ()


@given(st.text())
def test_no_text_makes_a_parser_fail(text: str) -> None:
    parse.cpuinfo(text)
    parse.meminfo(text)
    parse.cpu_numbers(text)
    parse.own_cgroups(text)
    parse.cgroup_mounts(text)
    parse.v2_quota(text)
    parse.memory_limit(text)
    parse.reclaimable(text)
    parse.nvidia_smi(text)
    parse.system_profiler(text)


@pytest.mark.parametrize(
    ("memory", "size"),
    [
        (8 << 30, 8 << 30),
        ((8 << 30).to_bytes(8, "little"), 8 << 30),
        (b"", None),
        (0, None),
        (-1, None),
        ("8 GB", None),
        (None, None),
    ],
)
def test_a_card_of_windows_has_the_memory_that_its_driver_wrote(
    memory: object, size: int | None
) -> None:
    found = parse.windows_adapter("PCI\\VEN_10DE&DEV_2684", " ", memory, 31)

    assert found == GpuFacts("nvidia GPU", "nvidia", size)


@pytest.mark.parametrize(
    "device", ["", "PCI", "PCI\\VEN_1AF4&DEV_1050", "USB\\VEN_10DE&", "x PCI\\VEN_10DE&"]
)
def test_what_no_known_maker_made_is_no_gpu_of_windows(device: str) -> None:
    assert parse.windows_adapter(device, "screen", 1, "1") is None
