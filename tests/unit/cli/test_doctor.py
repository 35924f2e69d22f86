from __future__ import annotations

import json

import pytest

from stoker.hardware import facts, probe

from .conftest import Run, StubClient

GIB = 1024**3


def _machine(monkeypatch: pytest.MonkeyPatch, *, gib: float, flags: frozenset[str]) -> None:
    memory = facts.MemoryFacts(total_bytes=int(gib * GIB), available_bytes=int(gib * GIB * 0.8))
    found = facts.HardwareFacts(
        system="linux",
        release="6.1",
        cpu=facts.CpuFacts("x86_64", "A CPU", 4, 8, flags=flags),
        limits=facts.LimitFacts(affinity_cpus=8),
        memory=memory,
    )
    monkeypatch.setattr(probe, "probe", lambda: found)


GOOD = frozenset({"avx2", "fma", "f16c", "bmi2"})


def test_a_sound_machine_is_told_what_it_can_run(
    run: Run, client: StubClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    _machine(monkeypatch, gib=8, flags=GOOD)

    ran = run("doctor")

    assert ran.code == 0
    assert "FAIL" not in ran.out
    assert "7B needs 8 GB, 13B 16 GB, 70B 72 GB and a GPU" in ran.out
    assert "stoker pull " in ran.out
    assert "ok    update" in ran.out


def test_what_is_broken_fails_and_comes_with_its_fix(
    run: Run, client: StubClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    _machine(monkeypatch, gib=8, flags=frozenset({"sse2"}))

    ran = run("doctor")

    lines = ran.out.splitlines()
    broken = next(number for number, line in enumerate(lines) if line.startswith("FAIL  cpu"))
    assert ran.code == 1
    assert "avx2" in lines[broken]
    assert lines[broken + 1].strip().startswith("-> ")


def test_a_small_machine_is_offered_nothing_too_large(
    run: Run, client: StubClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    _machine(monkeypatch, gib=2.5, flags=GOOD)

    report = json.loads(run("doctor", "--json").out)

    assert [entry["name"] for entry in report["recommended"]] == ["starter"]
    assert report["recommended"][0]["quick"] is True
    assert report["machine"]["cpu"]["flags"] == sorted(GOOD)
    assert report["ok"] is True
    _machine(monkeypatch, gib=1, flags=GOOD)
    assert "No model of the catalogue fits" in run("doctor").out


def test_what_would_be_slow_is_named_apart(
    run: Run, client: StubClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On four cores a dense 9B model fits in 24 GiB, but it is no pleasure."""
    _machine(monkeypatch, gib=24, flags=GOOD)

    out = run("doctor").out

    slow = next(line for line in out.splitlines() if "slow on 4 cores" in line)
    assert "qwen3.5-9b" in slow
    assert out.count("qwen3.5-9b") == 1
    assert "stoker pull gpt-oss-20b" in out
