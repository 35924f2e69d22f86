"""What `stoker doctor` says about some machines."""

from __future__ import annotations

import pytest

from stoker.hardware.assess import Finding, assess, missing_flags, runnable_sizes
from stoker.hardware.facts import GpuFacts, HardwareFacts
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
