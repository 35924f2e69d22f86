"""Run one program of an install to its end: its lines as they come, deadlines, nothing left."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import anyio
import anyio.abc
import structlog

from stoker.logs import clean
from stoker.runtimes.guarded import GENTLY, PLAINLY

log = structlog.get_logger(__name__)

TAIL_LINES: Final = 80  # a compiler's error with its context; warnings of others come between
_LONGEST_LINE: Final = 2000  # characters kept; a command of a compiler has about that
_POLL_S: Final = 0.5
_REAP_S: Final = 30.0  # a killed process may sit in a disk write that long
_GROUP_S: Final = 5.0  # for killed compilers to be reaped by init
_DRAIN_S: Final = 5.0  # what an escaped process keeps open must not hold us up
_GUARD: Final = (sys.executable, "-I", "-m", "stoker.runtimes.guarded")


@dataclass(frozen=True, slots=True)
class Limits:
    """Deadlines in seconds: for all of it, and without any sign of life."""

    total_s: float
    silence_s: float


@dataclass(frozen=True, slots=True)
class Pulse:
    """A number whose change is a sign of life, such as the bytes that have come.

    `count` is called in a thread, `tell` in the event loop.
    """

    count: Callable[[], int]
    tell: Callable[[int], None] = lambda _count: None


@dataclass(frozen=True, slots=True)
class Ended:
    """How a program ended. `code` is None when a deadline ended it, and `why` says which."""

    code: int | None
    tail: tuple[str, ...]
    why: str = ""


async def run(
    command: Sequence[str],
    *,
    cwd: Path,
    environ: Mapping[str, str],
    limits: Limits,
    on_line: Callable[[str], None] = lambda _line: None,
    pulse: Pulse | None = None,
    gently: bool = False,
) -> Ended:
    """Run it in a group of its own, gently at idle priority. However this ends, no process is left.

    Standard output and error come together, line by line. What runs gently may have to wait for
    as long as the machine is busy: give it time.
    """
    process = await anyio.open_process(
        [*_GUARD, GENTLY if gently else PLAINLY, *command],
        stdin=subprocess.PIPE,  # held open: its end is the order to stop
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=cwd,
        env=dict(environ),
        start_new_session=sys.platform != "win32",
        creationflags=_creation_flags(),
    )
    watch = _Watch(limits, on_line, pulse)
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(watch.look, group.cancel_scope)
            await watch.read(process)
            await process.wait()
            group.cancel_scope.cancel()
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    finally:
        await _end(process)
    return Ended(None if watch.why else process.returncode, tuple(watch.tail), watch.why)


class _Watch:
    """What the program said, and when it was last heard of."""

    def __init__(self, limits: Limits, on_line: Callable[[str], None], pulse: Pulse | None) -> None:
        self._limits = limits
        self._on_line = on_line
        self._pulse = pulse
        self._heard = self._began = time.monotonic()
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self.why = ""

    async def read(self, process: anyio.abc.Process) -> None:
        """All lines until the output ends."""
        rest = b""
        if process.stdout is None:  # cannot be: `run` asks for it
            return
        async for data in process.stdout:
            self._heard = time.monotonic()
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self._take(line)
            rest = rest[-_LONGEST_LINE * 4 :]
        self._take(rest)

    def _take(self, raw: bytes) -> None:
        text = clean(raw.decode("utf-8", "replace")).strip()[:_LONGEST_LINE]
        if text:
            self.tail.append(text)
            self._on_line(text)

    async def look(self, scope: anyio.CancelScope) -> None:
        """Cancel the scope when a deadline has passed."""
        before = -1
        while not self.why:
            await anyio.sleep(_POLL_S)
            now = time.monotonic()
            if self._pulse is not None:
                count = await anyio.to_thread.run_sync(self._pulse.count)
                if count != before:
                    before, self._heard = count, now
                    self._pulse.tell(count)
            if now - self._began > self._limits.total_s:
                self.why = f"it took longer than {self._limits.total_s:.0f} s"
            elif now - self._heard > self._limits.silence_s:
                self.why = f"it said nothing for {self._limits.silence_s:.0f} s"
        scope.cancel()


async def _end(process: anyio.abc.Process) -> None:
    """No process of the group is left on return."""
    with anyio.CancelScope(shield=True):
        if process.returncode is None:
            _kill(process)
            with anyio.move_on_after(_REAP_S):
                await process.wait()
            await _group_gone(process.pid)
        elif process.returncode < 0:  # somebody else killed the guard; its group is still there
            _kill(process)
        with anyio.move_on_after(_DRAIN_S):
            await process.aclose()
        if process.returncode is None:
            log.error("build_process_stays", pid=process.pid)


def _kill(process: anyio.abc.Process) -> None:
    """The guard and its group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if sys.platform == "win32":
            process.kill()  # its job object takes the others with it
        else:
            os.killpg(process.pid, signal.SIGKILL)


async def _group_gone(pid: int) -> None:
    deadline = time.monotonic() + _GROUP_S
    while sys.platform != "win32" and time.monotonic() < deadline:
        try:
            os.killpg(pid, 0)
        except (ProcessLookupError, PermissionError):
            return
        await anyio.sleep(0.01)


def _creation_flags() -> int:
    if sys.platform == "win32":
        return subprocess.CREATE_NO_WINDOW
    return 0
