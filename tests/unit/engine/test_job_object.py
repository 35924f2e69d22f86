"""The calls to Windows that tie children to us, recorded by a stand-in for its library."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest

from stoker.engine import job_object

JOB, SELF = 0x1_0000_0010, 0xFFFF_FFFF_FFFF_FFFF  # handles are as wide as pointers


class Kernel:
    """Grants everything but what it is told to refuse."""

    def __init__(self, refused: str = "") -> None:
        self.refused = refused
        self.calls: list[str] = []
        self.told: tuple[int, int, int] | None = None
        self.assigned: tuple[int, int] | None = None

    def _granted(self, name: str) -> bool:
        self.calls.append(name)
        return name != self.refused

    def CreateJobObjectW(self, security: None, name: None) -> int | None:  # noqa: N802
        assert (security, name) == (None, None)
        return JOB if self._granted("create") else None

    def SetInformationJobObject(self, job: int, kind: int, limits: Any, size: int) -> int:  # noqa: N802
        assert job == JOB
        raw = bytes(limits._obj)
        self.told = kind, int.from_bytes(raw[16:20], "little"), size
        return int(self._granted("limit"))

    def GetCurrentProcess(self) -> int:  # noqa: N802
        return SELF

    def AssignProcessToJobObject(self, job: int, process: int) -> int:  # noqa: N802
        self.assigned = job, process
        return int(self._granted("assign"))

    def CloseHandle(self, job: int) -> int:  # noqa: N802
        assert job == JOB
        return int(self._granted("close"))


@pytest.mark.skipif(ctypes.sizeof(ctypes.c_void_p) != 8, reason="sizes of a 64-bit system")
def test_the_job_ends_all_its_members_with_us() -> None:
    """The numbers and sizes are those of Windows' own headers; the handle is never closed."""
    kernel = Kernel()

    assert job_object.hold_children(kernel)

    assert kernel.told == (9, 0x2000, 144)
    assert kernel.assigned == (JOB, SELF)
    assert kernel.calls == ["create", "limit", "assign"]


@pytest.mark.parametrize(
    ("refused", "calls"),
    [
        ("create", ["create"]),
        ("limit", ["create", "limit", "close"]),
        ("assign", ["create", "limit", "assign", "close"]),
    ],
)
def test_a_refusal_is_told_and_leaves_nothing_open(refused: str, calls: list[str]) -> None:
    kernel = Kernel(refused)

    assert not job_object.hold_children(kernel)
    assert kernel.calls == calls
