"""What files and tools say about power and heat -> facts. Pure, and tolerant: unknown gives None.

Not for: reading those files (`power`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from stoker.hardware.parse import number

_SAVING_PROFILES: Final = frozenset(("low-power", "quiet"))
_OTHER_PROFILES: Final = frozenset(("balanced", "balanced-performance", "cool", "performance"))
# Drivers whose "powersave" is the normal, dynamic choice; elsewhere it pins the lowest clock.
_SELF_GOVERNING: Final = ("intel_pstate", "amd-pstate-epp", "amd_pstate_epp")
_PROCESSOR_COOLERS: Final = ("processor", "cpufreq", "cpu-", "intel_powerclamp", "thermal-cpufreq")
_PMSET_MODE: Final = re.compile(r"^\s*(lowpowermode|powermode)\s+(\d)\s*$", re.MULTILINE)
_PMSET_SPEED: Final = re.compile(r"CPU_Speed_Limit\s*=\s*(\d{1,3})")
_PMSET_SOURCE: Final = re.compile(r"drawing from '([^']{1,40})'")
_PMSET_PERCENT: Final = re.compile(r"\t(\d{1,3})%;")
_FULL_SPEED: Final = 100  # percent
_LOW_POWER: Final = "1"


def linux_saver(
    profile: str | None, preference: str | None, governor: str | None, driver: str | None
) -> bool | None:
    """The platform profile decides where there is one; then the CPU driver's own setting."""
    profile = (profile or "").strip()
    if profile in _SAVING_PROFILES:
        return True
    preference, governor = (preference or "").strip(), (governor or "").strip()
    if preference:
        return preference == "power"
    if governor:
        return governor == "powersave" and (driver or "").strip() not in _SELF_GOVERNING
    return False if profile in _OTHER_PROFILES else None


def cooling(devices: Iterable[tuple[str | None, str | None]]) -> bool | None:
    """Whether a processor is held back now, from (type, state) of each cooling device."""
    states = [
        number(state)
        for kind, state in devices
        if (kind or "").strip().lower().startswith(_PROCESSOR_COOLERS)
    ]
    known = [state for state in states if state is not None]
    # intel_powerclamp says -1 while it does nothing.
    return any(state > 0 for state in known) if known else None


def throttled(*, now: bool | None, events: int | None, before: int | None) -> bool | None:
    """From cooling devices, and a counter of throttling now and at the last look."""
    if now or (events is not None and before is not None and events > before):
        return True
    if now is None and (events is None or before is None):
        return None
    return False


def macos_saver(settings: str | None) -> bool | None:
    """``pmset -g``: lowpowermode, or powermode 0 automatic, 1 low, 2 high."""
    modes = _PMSET_MODE.findall(settings or "")
    return any(value == _LOW_POWER for _, value in modes) if modes else None


def macos_throttled(thermal: str | None) -> bool | None:
    """``pmset -g therm``; Macs that were never hot say so in words."""
    match = _PMSET_SPEED.search(thermal or "")
    if match:
        return int(match[1]) < _FULL_SPEED
    return False if "No thermal warning level" in (thermal or "") else None


def macos_battery(text: str | None) -> tuple[bool | None, float | None]:
    """``pmset -g batt``: whether on battery, and the charge in percent."""
    source = _PMSET_SOURCE.search(text or "")
    percent = _PMSET_PERCENT.search(text or "")
    if source is None or percent is None:  # a desktop has no battery
        return None, None
    return source[1] == "Battery Power", float(percent[1])
