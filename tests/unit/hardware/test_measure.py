"""What is measured once: the numbers that rounds give, what is kept, and one real measurement."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from stoker import paths
from stoker.hardware import measure
from stoker.hardware.facts import HardwareFacts
from stoker.hardware.measure import Measured, known, measure_once, summary, with_measured
from stoker.hardware.probe import probe
from stoker.paths import Paths
from tests.fakes.hardware import GIB, machine

MIB = 1024 * 1024
G = 1_000_000_000


@pytest.fixture
def places(stoker_home: Path) -> Paths:
    made = paths.from_environment()
    made.create()
    return made


# --- rounds ----------------------------------------------------------------------------------


def test_the_median_of_all_threads_together() -> None:
    rounds = [[(a * G, 1.0, 1.0), (a * G, 1.0, 1.0)] for a in (8, 10, 2)]

    assert summary(rounds, None) == (16 * G, True)


def test_time_lost_to_other_programs_is_not_the_memorys_fault() -> None:
    """Each thread ran a quarter of the time: the pace is that of the quarter."""
    assert summary([[(2 * G, 1.0, 0.25), (3 * G, 1.0, 0.25)]], None) == (20 * G, False)


def test_where_a_quota_gives_half_a_cpu_half_of_it_counts() -> None:
    assert summary([[(5 * G, 1.0, 0.5)]], 0.5) == (5 * G, True)
    assert summary([[(10 * G, 1.0, 1.0)]], 1.5) == (10 * G, True)


def test_a_clock_that_shows_too_much_makes_nothing_faster() -> None:
    assert summary([[(10 * G, 1.0, 1.1)]], None) == (10 * G, True)


@pytest.mark.parametrize(
    "rounds",
    [
        [],
        [[]],
        [[(10 * G, 1.0, 0.0)]],  # no clock of threads
        [[(1000 * G, 1.0, 1.0)]],  # not memory
        [[(1000, 1.0, 1.0)]],
    ],
)
def test_what_is_not_plausible_is_unknown(rounds: list[list[tuple[int, float, float]]]) -> None:
    assert summary(rounds, None) is None


# --- what is kept ----------------------------------------------------------------------------


class Counted:
    """Stands in for both measurements."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bandwidth: tuple[int, bool] | None = (10 * G, True)
        self.disk: int | None = 500_000_000
        self.calls: list[str] = []
        monkeypatch.setattr(measure, "_bandwidth", self._bandwidth)
        monkeypatch.setattr(measure, "_disk", self._disk)

    def _bandwidth(self, _: HardwareFacts) -> tuple[int, bool] | None:
        self.calls.append("memory")
        return self.bandwidth

    def _disk(self, _: Path) -> int | None:
        self.calls.append("disk")
        return self.disk


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    return Counted(monkeypatch)


def test_it_measures_once_for_one_machine(places: Paths, counted: Counted) -> None:
    facts = machine()

    first = measure_once(places, facts)
    again = measure_once(places, facts)

    assert counted.calls == ["memory", "disk"]
    assert first == again == known(places, facts)
    assert (first.bandwidth_bytes_per_s, first.disk_read_bytes_per_s) == (10 * G, 500_000_000)


@pytest.mark.parametrize(
    "other", [machine(cores=4), machine(affinity=3), machine(flags=frozenset()), machine(quota=0.5)]
)
def test_another_machine_or_other_limits_measure_anew(
    places: Paths, counted: Counted, other: HardwareFacts
) -> None:
    measured = measure_once(places, machine())

    assert known(places, other) is None
    assert with_measured(other, measured) == other
    measure_once(places, other)
    assert counted.calls.count("memory") == 2


def test_a_shell_and_a_service_with_other_limits_do_not_disturb_each_other(
    places: Paths, counted: Counted
) -> None:
    for _ in range(3):
        measure_once(places, machine())
        measure_once(places, machine(quota=2.0))

    assert counted.calls.count("memory") == 2
    for cores in range(1, 7):
        measure_once(places, machine(cores=cores))
    assert len(json.loads(places.measured_hardware.read_text())["results"]) == 4


def test_free_memory_does_not_matter_to_the_key(places: Paths, counted: Counted) -> None:
    measured = measure_once(places, machine(available=9 * GIB))
    now = machine(available=3 * GIB, gpus=())

    assert with_measured(now, measured).bandwidth_bytes_per_s == 10 * G
    assert with_measured(now, None) == now


def test_what_was_missing_is_filled_in_later(places: Paths, counted: Counted) -> None:
    """No model was stored yet, and other programs ran."""
    counted.bandwidth, counted.disk = (9 * G, False), None
    disturbed = measure_once(places, machine())
    counted.bandwidth, counted.disk = (10 * G, True), 1_000_000
    better = measure_once(places, machine())

    assert (disturbed.bandwidth_bytes_per_s, disturbed.disk_read_bytes_per_s) == (9 * G, None)
    assert (better.bandwidth_bytes_per_s, better.disk_read_bytes_per_s) == (10 * G, 1_000_000)


def test_a_second_disturbed_look_changes_nothing(places: Paths, counted: Counted) -> None:
    counted.bandwidth = (9 * G, False)
    measure_once(places, machine())
    counted.bandwidth = (5 * G, False)

    assert measure_once(places, machine()).bandwidth_bytes_per_s == 9 * G
    counted.bandwidth = None
    assert measure_once(places, machine()).bandwidth_bytes_per_s == 9 * G


@pytest.mark.parametrize(
    "content",
    ["", "{}", "[1]", '{"format": 1, "results": 5}', "null", '{"format": 1, "results": {"k": 1}}'],
)
def test_a_damaged_file_is_measured_anew(places: Paths, counted: Counted, content: str) -> None:
    places.measured_hardware.write_text(content)

    assert measure_once(places, machine()).bandwidth_bytes_per_s == 10 * G
    assert known(places, machine()) is not None


@pytest.mark.parametrize("value", ["12", -1, 0, True, 1.5])
def test_numbers_that_are_none_are_not_believed(
    places: Paths, counted: Counted, value: object
) -> None:
    measure_once(places, machine())
    content = json.loads(places.measured_hardware.read_text())
    next(iter(content["results"].values()))["bandwidth_bytes_per_s"] = value
    places.measured_hardware.write_text(json.dumps(content))

    assert known(places, machine()) is None


def test_without_a_state_folder_nothing_is_kept(tmp_path: Path, counted: Counted) -> None:
    home = tmp_path / "home"
    absent = Paths(home, home, home / "state", home / "run")

    assert measure_once(absent, machine()).bandwidth_bytes_per_s == 10 * G
    assert not home.exists()


def test_no_file_of_a_failed_write_stays(places: Paths, counted: Counted) -> None:
    places.measured_hardware.mkdir()  # cannot be replaced by a file

    assert measure_once(places, machine()).bandwidth_bytes_per_s == 10 * G
    assert [file.name for file in places.state.iterdir() if "new" in file.name] == []


# --- for real --------------------------------------------------------------------------------


def test_this_machines_memory_is_measured(places: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_SCAN_TIMEOUT_S", 60)
    facts = probe()

    measured = measure_once(places, facts)

    assert measured.bandwidth_bytes_per_s is not None
    assert 0.3 * G < measured.bandwidth_bytes_per_s / facts.effective_cpus < 300 * G
    assert measured.disk_read_bytes_per_s is None  # nothing is stored
    assert known(places, facts) == measured


def test_little_free_memory_is_not_taken_for_it() -> None:
    assert measure._bandwidth(machine(available=64 * MIB)) is None


def test_a_measurement_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_SCAN_TIMEOUT_S", 0.01)

    assert measure._bandwidth(probe()) is None


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="no reads past the cache here")
def test_the_disk_of_the_store_is_read_past_the_cache(places: Paths) -> None:
    blobs = places.store / "blobs/sha256/ab"
    blobs.mkdir(parents=True)
    (blobs / "small").write_bytes(bytes(1000))
    assert measure._disk(places.store) is None
    with (blobs / "large").open("wb") as stream:
        for _ in range(40):
            stream.write(os.urandom(MIB))
        stream.flush()
        os.fsync(stream.fileno())

    speed = measure._disk(places.store)

    if speed is None:  # e.g. a temporary folder in memory
        pytest.skip("THIS FOLDER CANNOT BE READ PAST THE CACHE")
    assert 1e6 < speed < 40e9


def test_a_store_that_is_not_there_has_no_speed(tmp_path: Path) -> None:
    assert measure._disk(tmp_path / "absent") is None


def test_measured_values_do_not_change_the_rest() -> None:
    facts = machine(available=9 * GIB)
    measured = Measured(measure._key(facts), 10 * G, 20)

    assert (
        replace(
            with_measured(facts, measured), bandwidth_bytes_per_s=None, disk_read_bytes_per_s=None
        )
        == facts
    )
