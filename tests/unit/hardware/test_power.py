"""Power and heat: samples of what systems say, and a made-up /sys."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.hardware import parse_power
from stoker.hardware.power import LinuxPower, Power


@pytest.mark.parametrize(
    ("files", "saver"),
    [
        (("low-power\n", "balance_performance", "powersave", "intel_pstate"), True),
        (("balanced\n", "balance_performance", "powersave", "intel_pstate"), False),
        (("balanced", "power", "powersave", "amd-pstate-epp"), True),
        ((None, None, "powersave", "intel_pstate"), False),  # there it is the normal choice
        ((None, None, "powersave", "acpi-cpufreq"), True),  # here it pins the lowest clock
        ((None, None, "schedutil", "cppc_cpufreq"), False),
        (("performance", None, None, None), False),
        ((None, None, None, None), None),
        (("a new word", None, None, None), None),
    ],
)
def test_saving_power_on_linux(
    files: tuple[str | None, str | None, str | None, str | None], saver: object
) -> None:
    assert parse_power.linux_saver(*files) is saver


@pytest.mark.parametrize(
    ("devices", "held_back"),
    [
        ([("Processor\n", "0\n"), ("Processor", "3")], True),
        ([("Processor", "0"), ("intel_powerclamp", "-1")], False),
        ([("cpufreq-cpu0", "2")], True),
        ([("Fan", "1"), ("iwlwifi", "1")], None),  # they cool, but hold nothing back
        ([], None),
        ([("Processor", None)], None),
    ],
)
def test_cooling_devices(devices: list[tuple[str, str | None]], held_back: object) -> None:
    assert parse_power.cooling(devices) is held_back


@pytest.mark.parametrize(
    ("looks", "verdict"),
    [
        ((None, 5, None), None),  # a counter says nothing the first time
        ((None, 5, 5), False),
        ((None, 6, 5), True),
        ((False, None, None), False),
        ((True, None, None), True),
        ((False, 6, 5), True),
    ],
)
def test_throttling(looks: tuple[bool | None, int | None, int | None], verdict: object) -> None:
    """(cooling device, counter now, counter before)"""
    now, events, before = looks

    assert parse_power.throttled(now=now, events=events, before=before) is verdict


PMSET = """\
System-wide power settings:
Currently in use:
 standby              1
 lowpowermode         {mode}
 sleep                1 (sleep prevented by powerd)
"""
PMSET_BATTERY = """\
Now drawing from '{source}'
 -InternalBattery-0 (id=4653155)\t{percent}%; discharging; 4:31 remaining present: true
"""
PMSET_INTEL_HOT = """\
Note: No thermal warning level has been recorded
2026-01-10 10:00:00 +0100 CPU Power notify
\tCPU_Scheduler_Limit \t= 100
\tCPU_Available_CPUs \t= 8
\tCPU_Speed_Limit \t= 62
"""


def test_macos_low_power_mode() -> None:
    assert parse_power.macos_saver(PMSET.format(mode=1)) is True
    assert parse_power.macos_saver(PMSET.format(mode=0)) is False
    assert parse_power.macos_saver(" powermode            2\n") is False
    assert parse_power.macos_saver("no such setting") is None
    assert parse_power.macos_saver(None) is None


def test_macos_heat() -> None:
    assert parse_power.macos_throttled(PMSET_INTEL_HOT) is True
    assert parse_power.macos_throttled(PMSET_INTEL_HOT.replace("62", "100")) is False
    cool = "Note: No thermal warning level has been recorded\n"
    assert parse_power.macos_throttled(cool) is False
    assert parse_power.macos_throttled(None) is None


def test_macos_battery() -> None:
    on = PMSET_BATTERY.format(source="Battery Power", percent=77)
    off = PMSET_BATTERY.format(source="AC Power", percent=100)

    assert parse_power.macos_battery(on) == (True, 77.0)
    assert parse_power.macos_battery(off) == (False, 100.0)
    assert parse_power.macos_battery("Now drawing from 'AC Power'\n") == (None, None)  # a desktop


@given(st.text())
def test_no_text_makes_a_parser_fail(text: str) -> None:
    parse_power.linux_saver(text, text, text, text)
    parse_power.cooling([(text, text)])
    parse_power.macos_saver(text)
    parse_power.macos_throttled(text)
    parse_power.macos_battery(text)


def write(root: Path, path: str, text: str) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_a_counter_that_rises_says_hot_for_a_minute(tmp_path: Path) -> None:
    """Events, not states: between two of them the processor is still hot."""
    counter = "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count"
    write(tmp_path, counter, "5")
    power = LinuxPower(tmp_path)

    assert power.look(0.0) == (None, None)
    assert power.look(10.0) == (None, False)
    write(tmp_path, counter, "9")
    assert power.look(20.0) == (None, True)
    assert power.look(50.0) == (None, True)
    assert power.look(81.0) == (None, False)


def test_a_laptop_that_saves(tmp_path: Path) -> None:
    write(tmp_path, "sys/firmware/acpi/platform_profile", "low-power\n")
    write(tmp_path, "sys/class/thermal/cooling_device0/type", "Processor\n")
    write(tmp_path, "sys/class/thermal/cooling_device0/cur_state", "0\n")

    assert LinuxPower(tmp_path).look(0.0) == (True, False)


def test_this_machine_answers_and_nothing_raises() -> None:
    facts = Power().now()

    assert facts.percent is None or 0 <= facts.percent <= 100
