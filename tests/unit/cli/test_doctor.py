from __future__ import annotations

import json

import pytest

from stoker import paths
from stoker.cli import machine
from stoker.hardware import facts, measure, probe
from stoker.hardware.assess import Finding

from .conftest import Run, StubClient

GIB = 1024**3


def _machine(
    monkeypatch: pytest.MonkeyPatch, *, gib: float, flags: frozenset[str], **more: object
) -> None:
    memory = facts.MemoryFacts(total_bytes=int(gib * GIB), available_bytes=int(gib * GIB * 0.8))
    found = facts.HardwareFacts(
        system="linux",
        release="6.1",
        cpu=facts.CpuFacts("x86_64", "A CPU", 4, 8, flags=flags),
        limits=facts.LimitFacts(affinity_cpus=8),
        memory=memory,
        **more,  # type: ignore[arg-type]  # of the facts
    )
    monkeypatch.setattr(probe, "probe", lambda **_: found)
    monkeypatch.setattr(measure, "_bandwidth", lambda _: (21_300_000_000, True))
    monkeypatch.setattr(measure, "_disk", lambda _: 900_000_000)


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
    """At 40 GB/s a dense 9B model fits in 24 GiB, but it is no pleasure; a sparse 20B one is."""
    _machine(monkeypatch, gib=24, flags=GOOD)
    monkeypatch.setattr(measure, "_bandwidth", lambda _: (40_000_000_000, True))

    out = run("doctor").out

    slow = next(line for line in out.splitlines() if "slow on 4 cores" in line)
    assert "qwen3.5-9b" in slow
    assert out.count("qwen3.5-9b") == 1
    assert "stoker pull gpt-oss-20b" in out


def test_the_measured_memory_decides_what_is_quick(
    run: Run, client: StubClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the number of cores alone: `stoker recommend` goes by the measurement, too."""
    quick: dict[int, set[str]] = {}
    for bandwidth in (20_000_000_000, 200_000_000_000):
        _machine(monkeypatch, gib=24, flags=GOOD)
        monkeypatch.setattr(measure, "known", lambda *_: None)  # each is measured anew
        monkeypatch.setattr(measure, "_bandwidth", lambda _, found=bandwidth: (found, True))
        offered = json.loads(run("doctor", "--json").out)["recommended"]
        quick[bandwidth] = {entry["name"] for entry in offered if entry["quick"]}

    slower, faster = quick.values()
    assert "qwen3.5-9b" in faster - slower
    assert slower < faster


def test_speeds_are_told_in_words_and_in_numbers(
    run: Run, client: StubClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    power = facts.PowerFacts(on_battery=True, percent=77.0, saver=True)
    compiler = facts.CompilerFacts("/usr/bin/c++", "gcc", "12.2.0")
    _machine(monkeypatch, gib=8, flags=GOOD, power=power, compiler=compiler)

    out = run("doctor").out
    report = json.loads(run("doctor", "--json").out)

    assert "read at 21.3 GB/s, which sets how fast models can write" in out
    assert "read at 900 MB/s: a 5 GB model in 6 s" in out
    assert "on battery (77 % left)" in out
    assert "WARN  power" in out
    assert "gcc 12.2.0 (/usr/bin/c++)" in out
    assert report["machine"]["bandwidth_bytes_per_s"] == 21_300_000_000
    assert report["machine"]["disk_read_bytes_per_s"] == 900_000_000
    assert report["machine"]["power"] == {
        "on_battery": True,
        "percent": 77.0,
        "saver": True,
        "throttled": None,
    }
    assert report["machine"]["compiler"]["version"] == "12.2.0"


def test_it_measures_only_what_the_daemon_did_not(
    run: Run, client: StubClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    _machine(monkeypatch, gib=8, flags=GOOD)
    paths.from_environment().create()
    run("doctor")
    monkeypatch.setattr(measure, "_bandwidth", lambda _: pytest.fail("measured again"))

    assert "21.3 GB/s" in run("doctor").out


def test_others_add_findings(run: Run, client: StubClient, monkeypatch: pytest.MonkeyPatch) -> None:
    _machine(monkeypatch, gib=8, flags=GOOD)
    more = Finding("fail", "engine", "the engine is broken", "Mend it.")
    monkeypatch.setattr(machine, "extra_findings", [lambda _places, _facts: (more,)])

    ran = run("doctor")

    assert ran.code == 1
    assert "the engine is broken" in ran.out
    assert "-> Mend it." in ran.out
