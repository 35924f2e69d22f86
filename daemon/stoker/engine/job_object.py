"""Windows only: whatever this process starts ends with it, also when it is killed.

A job object is what a process group and the parent-death signal are elsewhere: the system ends
all members when the last handle to the job is closed, and at our end ours is. Children are
members from their first moment. Not for: other systems, or ending one worker.
"""

from __future__ import annotations

import ctypes
from typing import Any, Final

KILL_ON_JOB_CLOSE: Final = 0x2000
EXTENDED_LIMIT_INFORMATION: Final = 9  # the class of information that `ExtendedLimits` is


class _BasicLimits(ctypes.Structure):
    """JOBOBJECT_BASIC_LIMIT_INFORMATION."""

    _fields_ = (
        ("PerProcessUserTimeLimit", ctypes.c_int64),
        ("PerJobUserTimeLimit", ctypes.c_int64),
        ("LimitFlags", ctypes.c_uint32),
        ("MinimumWorkingSetSize", ctypes.c_size_t),
        ("MaximumWorkingSetSize", ctypes.c_size_t),
        ("ActiveProcessLimit", ctypes.c_uint32),
        ("Affinity", ctypes.c_size_t),
        ("PriorityClass", ctypes.c_uint32),
        ("SchedulingClass", ctypes.c_uint32),
    )


class ExtendedLimits(ctypes.Structure):
    """JOBOBJECT_EXTENDED_LIMIT_INFORMATION."""

    _fields_ = (
        ("BasicLimitInformation", _BasicLimits),
        ("IoInfo", ctypes.c_uint64 * 6),
        ("ProcessMemoryLimit", ctypes.c_size_t),
        ("JobMemoryLimit", ctypes.c_size_t),
        ("PeakProcessMemoryUsed", ctypes.c_size_t),
        ("PeakJobMemoryUsed", ctypes.c_size_t),
    )


def hold_children(kernel: Any = None) -> bool:
    """Put this process, and so its later children, into a job that ends with it. Call it once.

    False when the system refuses; then a worker still ends when its stdin does.
    """
    kernel = kernel or _kernel32()
    job = kernel.CreateJobObjectW(None, None)
    if not job:
        return False
    limits = ExtendedLimits()
    limits.BasicLimitInformation.LimitFlags = KILL_ON_JOB_CLOSE
    size = ctypes.sizeof(limits)
    if kernel.SetInformationJobObject(
        job, EXTENDED_LIMIT_INFORMATION, ctypes.byref(limits), size
    ) and kernel.AssignProcessToJobObject(job, kernel.GetCurrentProcess()):
        return True  # the handle stays open: to close it would end us
    kernel.CloseHandle(job)
    return False


def _kernel32() -> Any:
    """With the types of the functions: a handle is 64 bits wide, ctypes' default is not."""
    handle, boolean = ctypes.c_void_p, ctypes.c_int
    kernel = ctypes.WinDLL("kernel32", use_last_error=True)  # type: ignore[attr-defined,unused-ignore]  # Windows only
    for name, result, arguments in (
        ("CreateJobObjectW", handle, [handle, ctypes.c_wchar_p]),
        ("SetInformationJobObject", boolean, [handle, ctypes.c_int, handle, ctypes.c_uint32]),
        ("AssignProcessToJobObject", boolean, [handle, handle]),
        ("GetCurrentProcess", handle, []),
        ("CloseHandle", boolean, [handle]),
    ):
        function = getattr(kernel, name)
        function.restype, function.argtypes = result, arguments
    return kernel
