"""Run something with less than the machine has: in a cgroup (v1 or v2), on some CPUs, with ulimit.

A cgroup needs the right to make one: root in most containers, or a delegated group. Where that is
missing `Group` raises LimitsMissing, and a test that needs it says so loudly.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

_ROOT: Final = Path("/sys/fs/cgroup")
_PERIOD_US: Final = 100_000
_GONE_S: Final = 10.0


class LimitsMissing(Exception):
    """This machine does not let us set limits; nothing was tested with them."""


class Group:
    """``with Group(cpus=1, memory_bytes=…) as group``: a cgroup for commands.

    Only processes started with `command` are in it, with all their children. Leaving removes it,
    and ends what a test that failed has left in it.
    """

    def __init__(self, *, cpus: float | None = None, memory_bytes: int | None = None) -> None:
        self._cpus = cpus
        self._memory = memory_bytes
        self._made: list[Path] = []
        self._unified = not (_ROOT / "memory").is_dir()

    def __enter__(self) -> Self:
        try:
            if self._cpus is not None:
                self._limit_cpus(self._cpus)
            if self._memory is not None:
                self._folder("memory")
                self.set_memory(self._memory)
        except OSError as error:
            self._remove()
            msg = f"NO CGROUP COULD BE MADE, nothing was tested inside limits: {error}"
            raise LimitsMissing(msg) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._remove()

    def command(self, words: Sequence[str]) -> list[str]:
        """The same command, inside: a shell enters and becomes it, so the process id stays."""
        enter = "; ".join(
            f"echo $$ > {shlex.quote(str(folder / 'cgroup.procs'))} || exit 99"
            for folder in self._made
        )
        return ["/bin/sh", "-c", f'{enter}; exec "$@"', "sh", *words]

    def set_memory(self, limit: int) -> None:
        """A new limit; the kernel drops file cache at once when there is too much of it."""
        name = "memory.max" if self._unified else "memory.limit_in_bytes"
        (self._folder("memory") / name).write_text(str(limit))

    def oom_kills(self) -> int:
        """How many processes the kernel killed in it for want of memory."""
        name = "memory.events" if self._unified else "memory.oom_control"
        return self._value(name, "oom_kill")

    def anonymous_bytes(self) -> int:
        """Memory that cannot be dropped, of all processes in it."""
        key = "anon" if self._unified else "total_rss"
        return self._value("memory.stat", key)

    def cached_bytes(self) -> int:
        """File cache that is charged to it."""
        key = "file" if self._unified else "total_cache"
        return self._value("memory.stat", key)

    def _value(self, file: str, key: str) -> int:
        for line in (self._folder("memory") / file).read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == key:
                return int(value)
        raise LookupError(key)

    def _limit_cpus(self, cpus: float) -> None:
        quota, folder = int(cpus * _PERIOD_US), self._folder("cpu")
        if self._unified:
            (folder / "cpu.max").write_text(f"{quota} {_PERIOD_US}")
        else:
            (folder / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
            (folder / "cpu.cfs_quota_us").write_text(str(quota))

    def _folder(self, controller: str) -> Path:
        """The group of this controller; v2 has one for all."""
        if self._unified and self._made:
            return self._made[0]
        for folder in self._made:
            if folder.parent.name == controller:
                return folder
        parent = _ROOT if self._unified else _ROOT / controller
        folder = parent / f"stoker-test-{os.getpid()}-{secrets.token_hex(3)}"
        folder.mkdir()
        self._made.append(folder)
        return folder

    def _remove(self) -> None:
        """A group goes when its last process is reaped, which may take a moment."""
        for folder in self._made:
            for pid in (folder / "cgroup.procs").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        deadline = time.monotonic() + _GONE_S
        for folder in self._made:
            while folder.exists():
                with contextlib.suppress(OSError):
                    folder.rmdir()
                    break
                if time.monotonic() > deadline:
                    msg = f"{folder} still has processes"
                    raise AssertionError(msg)
                time.sleep(0.02)
        self._made.clear()


def on_cpus(words: Sequence[str], cpus: Sequence[int]) -> list[str]:
    """The command, allowed on these CPUs only."""
    code = (
        f"import os, sys; os.sched_setaffinity(0, {set(cpus)!r});"
        " os.execv(sys.argv[1], sys.argv[1:])"
    )
    return [sys.executable, "-I", "-c", code, *words]


def with_ulimit(words: Sequence[str], *, address_space: int) -> list[str]:
    """The command, with each of its processes allowed so much address space."""
    return ["/bin/sh", "-c", f'ulimit -v {address_space // 1024}; exec "$@"', "sh", *words]


def drop_cache(file: Path) -> None:
    """Forget what the system has cached of this file, so that the next reader pays for it."""
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
