"""What `stoker doctor` says about some machines."""

from __future__ import annotations

import pytest

from stoker.hardware.assess import (
    Finding,
    assess,
    missing_flags,
    reserve_bytes,
    runnable_sizes,
)
from stoker.hardware.facts import GpuFacts, HardwareFacts, PowerFacts
from tests.fakes.hardware import BASELINE, GIB, machine

GPU = GpuFacts("RTX", "nvidia", 24 * GIB)


def finding(facts: HardwareFacts, topic: str, **more: object) -> Finding:
    given = {"disk_free_bytes": 100 * GIB, "tray_host": True, **more}
    return next(f for f in assess(facts, **given) if f.topic == topic)  # type: ignore[arg-type]


def test_a_good_machine_has_nothing_to_mend() -> None:
    findings = assess(machine(gpus=(GPU,)), disk_free_bytes=100 * GIB, tray_host=True)

    assert {item.level for item in findings} == {"ok"}
    assert not any(item.fix for item in findings)


def test_a_cpu_below_the_baseline_fails() -> None:
    facts = machine(flags=BASELINE - {"avx2"})

    assert missing_flags(facts.cpu) == ("avx2",)
    assert finding(facts, "cpu").level == "fail"
    assert "avx2" in finding(facts, "cpu").text


@pytest.mark.parametrize("unknown", [machine(flags=frozenset()), machine(arch="aarch64")])
def test_unknown_flags_and_other_processors_are_no_fault(unknown: HardwareFacts) -> None:
    assert missing_flags(unknown.cpu) == ()
    assert finding(unknown, "cpu").level == "ok"


@pytest.mark.parametrize(
    ("total", "gpus", "largest"),
    [
        (1 * GIB, (), None),
        (8 * GIB, (), "7B"),
        (int(7.6 * GIB), (), "7B"),  # sold as 8 GB
        (16 * GIB, (), "13B"),
        (96 * GIB, (), "34B"),
        (96 * GIB, (GPU,), "70B"),
    ],
)
def test_rule_of_thumb(total: int, gpus: tuple[GpuFacts, ...], largest: str | None) -> None:
    sizes = runnable_sizes(machine(total=total, gpus=gpus))

    assert (sizes[-1] if sizes else None) == largest


def test_a_memory_limit_counts_as_all_memory() -> None:
    facts = machine(total=64 * GIB, limit=8 * GIB, headroom=8 * GIB)

    assert runnable_sizes(facts)[-1] == "7B"
    assert "8.0 GiB" in finding(facts, "limits").text


@pytest.mark.parametrize(
    ("facts", "topic", "more"),
    [
        (machine(total=1 * GIB), "memory", {}),
        (machine(available=1 * GIB), "memory", {}),
        (machine(total=1 * GIB), "models", {}),
        (machine(quota=0.5), "limits", {}),
        (machine(), "disk", {"disk_free_bytes": GIB}),
        (machine(), "tray", {"tray_host": False}),
        (machine(power=PowerFacts(saver=True)), "power", {}),
        (machine(power=PowerFacts(throttled=True)), "power", {}),
    ],
)
def test_what_is_wrong_comes_with_its_fix(
    facts: HardwareFacts, topic: str, more: dict[str, object]
) -> None:
    found = finding(facts, topic, **more)

    assert found.level == "warn"
    assert found.fix


def test_what_is_unknown_is_no_fault() -> None:
    facts = machine()

    assert finding(facts, "disk", disk_free_bytes=None).level == "ok"
    assert finding(facts, "tray", tray_host=None).level == "ok"


@pytest.mark.parametrize(
    ("facts", "topic", "words"),
    [
        (machine(), "power", "no battery found"),
        (machine(power=PowerFacts(on_battery=False)), "power", "on mains"),
        (machine(power=PowerFacts(on_battery=True, percent=40.2)), "power", "40 % left"),
        (machine(cores=14, performance=6), "cpu", "14 cores, 6 of them fast; the engine uses 6"),
        (machine(cores=1), "cpu", "1 core;"),
        (machine(bandwidth=21_300_000_000), "memory", "read at 21.3 GB/s"),
        (machine(disk_speed=120_000_000), "disk", "read at 120 MB/s: a 5 GB model in 42 s"),
        (machine(compiler=None), "compiler", "none found"),
        (machine(address_space=4 * GIB), "limits", "4.0 GiB for each process (ulimit)"),
        (
            machine(gpus=(GpuFacts("Radeon", "amd", 16 * GIB, 12 * GIB),)),
            "gpu",
            "Radeon (16 GiB, 12.0 GiB of it free)",
        ),
        (
            machine(gpus=(GpuFacts("Apple M3", "apple", unified=True),)),
            "gpu",
            "Apple M3 (shares the system's memory)",
        ),
    ],
)
def test_each_fact_has_its_words(facts: HardwareFacts, topic: str, words: str) -> None:
    found = finding(facts, topic)

    assert found.level == "ok"
    assert words in found.text


@pytest.mark.parametrize(
    ("limit", "reserve", "usable"),
    [
        (None, 1.6, 14.4),  # a tenth of 16 GiB
        (8, 0, 6.6),  # ulimit leaves more than that to others
        (16.5, 0.7, 14.4),  # ulimit leaves some of it
    ],
)
def test_what_ulimit_keeps_from_a_worker_need_not_be_reserved(
    limit: float | None, reserve: float, usable: float
) -> None:
    facts = machine(address_space=None if limit is None else int(limit * GIB))

    kept = reserve_bytes(facts, None)

    assert kept / GIB == pytest.approx(reserve, abs=0.1)
    assert (facts.headroom_bytes - kept) / GIB == pytest.approx(usable, abs=0.1)
