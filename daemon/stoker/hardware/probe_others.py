"""macOS and Windows: cores, what the processor can do, and Windows' graphics processors. Thin.

What the answers mean is decided in `parse` and `cores`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

from stoker.hardware import cores, parse, tools
from stoker.hardware.cores import LogicalCpu
from stoker.hardware.facts import CpuFacts, GpuFacts

_SYSCTL: Final = "/usr/sbin/sysctl"
_MOST_LEVELS: Final = 8  # kinds of cores; Apple has two or three
_ERROR_INSUFFICIENT_BUFFER: Final = 122
_MOST_OUTPUTS: Final = 64  # of all display adapters; a card has up to six
_REGISTRY: Final = "\\Registry\\Machine\\"  # the kernel's name for HKEY_LOCAL_MACHINE
_MEMORY: Final = "HardwareInformation.qwMemorySize"
# Linux's names for what macOS calls otherwise.
_FLAGS: Final = {"avx1.0": "avx", "sse4.1": "sse4_1", "sse4.2": "sse4_2"}


def macos_cpu(generic: CpuFacts, ask: Callable[[str], str | None] | None = None) -> CpuFacts:
    """`generic` with what sysctl says of kinds of cores and of instruction sets."""
    ask = ask or _sysctl
    levels = parse.number(ask("hw.nperflevels")) or 0
    counts = [
        parse.number(ask(f"hw.perflevel{level}.physicalcpu"))
        for level in range(min(levels, _MOST_LEVELS))
    ]
    classes = tuple(count for count in counts if count)
    mixed = len(classes) > 1
    flags = " ".join(filter(None, map(ask, ("machdep.cpu.features", "machdep.cpu.leaf7_features"))))
    return replace(
        generic,
        model=(ask("machdep.cpu.brand_string") or generic.model).strip(),
        performance_cores=classes[0] if mixed else None,
        core_classes=classes if mixed else (),
        flags=frozenset(_FLAGS.get(flag, flag) for flag in flags.lower().split()),
    )


def _sysctl(name: str) -> str | None:
    return tools.run(_SYSCTL, "-n", name)


def windows_cpus() -> tuple[LogicalCpu, ...]:
    """Every CPU with its core and its efficiency class; () when Windows does not tell."""
    if sys.platform != "win32":
        return ()
    import ctypes
    from ctypes import wintypes

    ask = ctypes.WinDLL("kernel32", use_last_error=True).GetLogicalProcessorInformationEx
    ask.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(wintypes.DWORD))
    size = wintypes.DWORD(0)
    if ask(0, None, ctypes.byref(size)) or ctypes.get_last_error() != _ERROR_INSUFFICIENT_BUFFER:
        return ()
    buffer = ctypes.create_string_buffer(size.value)
    if not ask(0, buffer, ctypes.byref(size)):
        return ()
    return cores.from_windows(buffer.raw[: size.value])


def windows_gpus() -> tuple[GpuFacts, ...]:
    """The graphics processors that are there now, with their memory's size. Not what is free."""
    found: dict[str, GpuFacts] = {}
    for device, name, key in _windows_outputs():
        card = key.rpartition("\\")[0]  # its outputs are \\0000, \\0001 and so on below one key
        if card not in found:
            values = (_registry_value(key, value) for value in (_MEMORY, "DriverVersion"))
            gpu = parse.windows_adapter(device, name, *values)
            if gpu is not None:
                found[card] = gpu
    return tuple(found.values())


def _windows_outputs() -> Iterator[tuple[str, str, str]]:
    """Hardware id, name and registry key of each output of each display adapter."""
    if sys.platform != "win32":
        return
    import ctypes
    from ctypes import wintypes

    class DisplayDevice(ctypes.Structure):
        _fields_ = (
            ("size", wintypes.DWORD),
            ("output", wintypes.WCHAR * 32),
            ("name", wintypes.WCHAR * 128),
            ("state", wintypes.DWORD),
            ("device", wintypes.WCHAR * 128),
            ("key", wintypes.WCHAR * 128),
        )

    ask = ctypes.WinDLL("user32").EnumDisplayDevicesW
    ask.argtypes = (
        wintypes.LPCWSTR,
        wintypes.DWORD,
        ctypes.POINTER(DisplayDevice),
        wintypes.DWORD,
    )
    for number in range(_MOST_OUTPUTS):
        found = DisplayDevice(size=ctypes.sizeof(DisplayDevice))
        if not ask(None, number, ctypes.byref(found), 0):
            return
        yield found.device, found.name, found.key


def _registry_value(key: str, name: str) -> object:
    """None when there is no such value, or it may not be read."""
    if sys.platform != "win32":
        return None
    import winreg

    if key[: len(_REGISTRY)].lower() != _REGISTRY.lower():
        return None
    try:
        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, key[len(_REGISTRY) :]) as opened:
            return winreg.QueryValueEx(opened, name)[0]
    except OSError:
        return None
