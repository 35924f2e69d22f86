"""The probes: on a made-up file tree, and on the machine that runs the tests."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stoker.hardware import probe as probing
from stoker.hardware.facts import CpuFacts, GpuFacts
from stoker.hardware.probe_linux import Linux
from tests.fakes.hardware import GIB
from tests.fakes.limits import with_ulimit

GENERIC = CpuFacts("x86_64", "generic", 4, 8)


def tree(root: Path, files: dict[str, str]) -> Linux:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return Linux(root)


def test_version_2_limits_are_the_tightest_of_all_levels(tmp_path: Path) -> None:
    linux = tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/user.slice/app.scope\n",
            "sys/fs/cgroup/user.slice/cpu.max": "150000 100000",
            "sys/fs/cgroup/user.slice/memory.max": "4000",
            "sys/fs/cgroup/user.slice/memory.current": "3900",
            "sys/fs/cgroup/user.slice/memory.stat": "inactive_file 1000\nactive_file 500\n",
            "sys/fs/cgroup/user.slice/app.scope/cpu.max": "max 100000",
            "sys/fs/cgroup/user.slice/app.scope/memory.max": "9000",
            "sys/fs/cgroup/user.slice/app.scope/memory.current": "100",
        },
    )

    limits = linux.limits(affinity_cpus=8)

    assert limits.affinity_cpus == 8
    assert limits.quota_cpus == 1.5
    assert limits.memory_limit_bytes == 4000
    assert limits.memory_headroom_bytes == 1600


def test_version_2_in_a_container_is_read_at_the_mount(tmp_path: Path) -> None:
    linux = tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/cpu.max": "200000 100000",
            "sys/fs/cgroup/memory.max": "max",
        },
    )

    limits = linux.limits(4)

    assert limits.quota_cpus == 2.0
    assert limits.memory_limit_bytes is None
    assert limits.memory_headroom_bytes is None


def test_version_1_limits(tmp_path: Path) -> None:
    linux = tree(
        tmp_path,
        {
            "proc/self/cgroup": "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "765000",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
            "sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes": "2000",
            "sys/fs/cgroup/memory/docker/abc/memory.usage_in_bytes": "1500",
            "sys/fs/cgroup/memory/docker/abc/memory.stat": "total_inactive_file 700\n",
        },
    )

    limits = linux.limits(96)

    assert limits.quota_cpus == 7.65
    assert limits.memory_limit_bytes == 2000
    assert limits.memory_headroom_bytes == 1200


def test_a_path_that_leaves_the_mount_is_not_followed(tmp_path: Path) -> None:
    """A cgroup namespace shows a group outside it as /.."""
    linux = tree(tmp_path, {"proc/self/cgroup": "0::/../..\n", "sys/cpu.max": "1 100000"})

    assert linux.limits(2).quota_cpus is None


def test_nothing_readable_means_nothing_limits(tmp_path: Path) -> None:
    linux = Linux(tmp_path)

    limits = linux.limits(3)

    assert (limits.affinity_cpus, limits.quota_cpus, limits.memory_headroom_bytes) == (
        3,
        None,
        None,
    )
    assert linux.memory() is None
    assert linux.cpu(GENERIC) == GENERIC


def siblings(*lists: str) -> dict[str, str]:
    """Files that say with whom each CPU shares its core."""
    return {
        f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list": text
        for cpu, text in enumerate(lists)
    }


def test_version_2_slows_down_at_high_before_max(tmp_path: Path) -> None:
    linux = tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/a\n",
            "sys/fs/cgroup/a/memory.max": "9000",
            "sys/fs/cgroup/a/memory.high": "5000",
            "sys/fs/cgroup/a/memory.current": "1000",
        },
    )

    limits = linux.limits(2)

    assert (limits.memory_limit_bytes, limits.memory_headroom_bytes) == (5000, 4000)


def test_limits_are_read_where_the_hierarchy_is_mounted(tmp_path: Path) -> None:
    linux = tree(
        tmp_path,
        {
            "proc/self/cgroup": "5:cpu,cpuacct:/docker/abc/inner\n",
            "proc/self/mountinfo": "32 31 0:29 /docker/abc /mnt/cpu rw - cgroup cgroup rw,cpu\n",
            "mnt/cpu/inner/cpu.cfs_quota_us": "300000",
            "mnt/cpu/inner/cpu.cfs_period_us": "100000",
        },
    )

    assert linux.limits(8).quota_cpus == 3.0


def test_performance_cores_of_a_hybrid_intel(tmp_path: Path) -> None:
    linux = tree(
        tmp_path,
        {
            "sys/devices/cpu_core/cpus": "0-3\n",
            "sys/devices/cpu_atom/cpus": "4-7\n",
            **siblings("0-1", "0-1", "2-3", "2-3", "4", "5", "6", "7"),
        },
    )
    cpu = linux.cpu(GENERIC, linux.cpus(is_x86=True))

    assert (cpu.performance_cores, cpu.core_classes) == (2, (2, 4))


def test_performance_cores_of_a_big_little_arm(tmp_path: Path) -> None:
    capacities = (446, 446, 446, 446, 1024, 1024)
    linux = tree(
        tmp_path,
        {
            **siblings(*"012345"),
            **{
                f"sys/devices/system/cpu/cpu{cpu}/cpu_capacity": str(value)
                for cpu, value in enumerate(capacities)
            },
        },
    )
    cpu = linux.cpu(CpuFacts("aarch64", "arm", 6, 6), linux.cpus(is_x86=False))

    assert (cpu.performance_cores, cpu.physical_cores) == (2, 6)


def test_a_cpu_that_is_off_is_no_core(tmp_path: Path) -> None:
    linux = tree(tmp_path, {**siblings("0", "1"), "sys/devices/system/cpu/cpu2/online": "0"})

    assert [cpu.number for cpu in linux.cpus(is_x86=True)] == [0, 1]


def test_one_core_number_for_all_cpus_is_not_believed(tmp_path: Path) -> None:
    block = "processor\t: 0\nphysical id\t: 0\ncore id\t: 0\n"
    linux = tree(tmp_path, {"proc/cpuinfo": "\n".join([block] * 8), **siblings(*["0-7"] * 8)})

    assert linux.cpus(is_x86=True) == ()
    assert linux.cpu(GENERIC).physical_cores == 8


def test_drm_lists_cards_and_not_their_connectors(tmp_path: Path) -> None:
    linux = tree(
        tmp_path,
        {
            "sys/class/drm/card0/device/vendor": "0x8086",
            "sys/class/drm/card0-DP-1/device/vendor": "0x8086",
            "sys/class/drm/card1/device/vendor": "0x1002",
            "sys/class/drm/card1/device/mem_info_vram_total": "8000",
        },
    )

    assert linux.drm_gpus() == (
        GpuFacts("intel GPU", "intel"),
        GpuFacts("amd GPU", "amd", 8000, None),
    )


def test_this_machine_is_described() -> None:
    facts = probing.probe()

    assert facts.system
    assert facts.cpu.logical_cores >= 1
    assert 1 <= facts.effective_cpus <= facts.limits.affinity_cpus
    assert 0 < facts.headroom_bytes <= facts.memory.total_bytes


def test_resources_are_within_the_machine() -> None:
    view = probing.resources()

    assert 0 <= view.ram_used_bytes <= view.ram_total_bytes


def test_looking_again_is_quick() -> None:
    """Every load and every resource event looks; it must not cost what the first look does."""
    probing.probe()
    took = []
    for _ in range(5):
        began = time.perf_counter()
        probing.probe()
        took.append(time.perf_counter() - began)

    assert min(took) < 0.1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_threads_follow_the_affinity_mask() -> None:
    """As `taskset` sets it, for this thread alone."""
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        facts = probing.probe()
    finally:
        os.sched_setaffinity(0, before)

    assert (facts.limits.affinity_cpus, facts.effective_cpus) == (1, 1)


@pytest.mark.skipif(sys.platform == "win32", reason="no ulimit here")
def test_a_ulimit_bounds_the_headroom() -> None:
    code = (
        "from stoker.hardware.probe import probe; f = probe(); print(f.limits.address_space_bytes)"
    )
    command = with_ulimit([sys.executable, "-c", code], address_space=2 * GIB)

    printed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout

    assert printed.strip() == str(2 * GIB)


def test_free_space_is_that_of_the_nearest_existing_folder(tmp_path: Path) -> None:
    assert probing.disk_free_bytes(tmp_path / "not" / "yet") == pytest.approx(
        probing.disk_free_bytes(tmp_path), rel=0.05
    )
