"""Power and heat: on battery, saving, held back. Thin; what texts mean is in `parse_power`.

Changes while the daemon runs, so every look is fresh, and cheap on Linux (0.3 ms). On macOS it
asks a tool, at most every `_KEPT_S`.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import psutil

from stoker.hardware import parse, parse_power, tools
from stoker.hardware.facts import PowerFacts

_PMSET: Final = "/usr/bin/pmset"
_KEPT_S: Final = 20.0
_THROTTLE_MEMORY_S: Final = 60.0  # a counter that rose says "hot" for this long


class LinuxPower:
    """Reads below `root`, which tests replace. Keeps the throttle counter of the last looks."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._events: int | None = None
        self._rose_at: float | None = None

    def look(self, now: float) -> tuple[bool | None, bool | None]:
        """(saver, throttled)."""
        cpufreq = "sys/devices/system/cpu/cpu0/cpufreq"
        saver = parse_power.linux_saver(
            self._text("sys/firmware/acpi/platform_profile"),
            self._text(f"{cpufreq}/energy_performance_preference"),
            self._text(f"{cpufreq}/scaling_governor"),
            self._text(f"{cpufreq}/scaling_driver"),
        )
        return saver, self._throttled(now)

    def _throttled(self, now: float) -> bool | None:
        devices = [
            (self._read(folder / "type"), self._read(folder / "cur_state"))
            for folder in self._root.glob("sys/class/thermal/cooling_device*")
        ]
        events = self._count()
        verdict = parse_power.throttled(
            now=parse_power.cooling(devices), events=events, before=self._events
        )
        if events is not None and self._events is not None and events > self._events:
            self._rose_at = now
        self._events = events
        recent = self._rose_at is not None and now - self._rose_at < _THROTTLE_MEMORY_S
        return True if recent else verdict

    def _count(self) -> int | None:
        """How often Intel's processors were held back since the start, all CPUs together."""
        folder = self._root / "sys/devices/system/cpu"
        counts = [
            parse.number(self._read(file))
            for file in folder.glob("cpu[0-9]*/thermal_throttle/*_throttle_count")
        ]
        known = [count for count in counts if count is not None]
        return sum(known) if known else None

    def _text(self, path: str) -> str | None:
        return self._read(self._root / path)

    def _read(self, file: Path) -> str | None:
        try:
            return file.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None


class Power:
    """One per process; `now` is what `probe` asks."""

    def __init__(self) -> None:
        self._linux = LinuxPower()
        self._kept: tuple[float, PowerFacts] | None = None

    def now(self) -> PowerFacts:
        """Never raises; a controller that does not answer is given up."""
        return tools.within("power", self._look, PowerFacts())

    def _look(self) -> PowerFacts:
        if sys.platform == "darwin":
            return self._macos()
        facts = _battery()
        if sys.platform == "win32":
            return replace(facts, saver=_windows_saver())
        saver, throttled = self._linux.look(time.monotonic())
        return replace(facts, saver=saver, throttled=throttled)

    def _macos(self) -> PowerFacts:
        now = time.monotonic()
        if self._kept is None or now - self._kept[0] > _KEPT_S:
            on_battery, percent = parse_power.macos_battery(tools.run(_PMSET, "-g", "batt"))
            saver = parse_power.macos_saver(tools.run(_PMSET, "-g"))
            hot = parse_power.macos_throttled(tools.run(_PMSET, "-g", "therm"))
            self._kept = now, PowerFacts(on_battery, percent, saver, hot)
        return self._kept[1]


def _battery() -> PowerFacts:
    look = getattr(psutil, "sensors_battery", None)  # absent on some systems
    battery: Any = look() if look is not None else None
    if battery is None:
        return PowerFacts()
    plugged = battery.power_plugged
    return PowerFacts(
        on_battery=None if plugged is None else not plugged,
        percent=round(float(battery.percent), 1),
    )


def _windows_saver() -> bool | None:
    """The battery saver that the user or a low charge switched on."""
    if sys.platform != "win32":
        return None
    import ctypes

    class Status(ctypes.Structure):
        _fields_ = (
            ("ac_line", ctypes.c_ubyte),
            ("battery", ctypes.c_ubyte),
            ("percent", ctypes.c_ubyte),
            ("saver", ctypes.c_ubyte),
            ("life_s", ctypes.c_ulong),
            ("full_life_s", ctypes.c_ulong),
        )

    status = Status()
    if not ctypes.windll.kernel32.GetSystemPowerStatus(ctypes.byref(status)):
        return None
    return status.saver == 1


power = Power()
