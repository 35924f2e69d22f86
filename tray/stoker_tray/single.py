"""One tray per home: a lock on a file, held for as long as the process lives.

The holder writes its process id into the file, so that an installer can end it (`end_other`).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from stoker.errors import DaemonError, StoreUnsafe

if TYPE_CHECKING:
    import psutil

END_S: Final = 5.0  # for a tray that is asked to end; it gives its icon 1.5 s
KILLED_S: Final = 5.0  # for the system to take away one that was killed

_POLL_S: Final = 0.05
_LONGEST_PID: Final = 10  # digits


class OtherStays(DaemonError):
    """A tray of this home runs where it cannot be ended."""

    hint = "Quit it from its own menu: it may be in a container or on another machine."


@contextmanager
def only_one(lock: Path, *, wait_s: float = 0.0) -> Iterator[bool]:
    """Whether this process is the only one in the block; waits so long for another to end.

    The kernel gives the lock back however the process ends. Raises StoreUnsafe when the file
    cannot be made. Where a file system has no locks, every process is the only one.
    """
    descriptor = _opened(lock, os.O_CREAT)
    try:
        deadline = time.monotonic() + wait_s
        while not (ours := _take(descriptor)) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        if ours:
            _write(descriptor, f"{os.getpid()}\n")
        yield ours
        if ours:
            _write(descriptor, "")
    finally:
        os.close(descriptor)


def end_other(lock: Path, *, end_s: float = END_S) -> None:
    """End the process that holds the lock, if there is one; return when the lock is free.

    It is asked to end, and killed after `end_s`. No other process is ever touched, whatever the
    file says. Raises StoreUnsafe, and OtherStays when the lock is still held in the end.
    """
    deadline = time.monotonic() + end_s
    asked: set[int] = set()
    while not _is_free(lock):
        now_s = time.monotonic()
        if now_s > deadline + KILLED_S:
            raise OtherStays("an icon of this home does not end")
        holder = _holder(lock)
        if holder is not None and now_s > deadline:
            _end(holder.kill)
        elif holder is not None and holder.pid not in asked:
            asked.add(holder.pid)
            _end(holder.terminate)
        time.sleep(_POLL_S)


def _end(how: object) -> None:
    """With a method of `psutil.Process`: it makes sure that the id is still the same process."""
    import psutil

    with suppress(psutil.Error):
        how()  # type: ignore[operator]


def _opened(lock: Path, flags: int) -> int:
    try:
        return os.open(lock, os.O_RDWR | flags, 0o600)
    except FileNotFoundError:
        raise
    except OSError as error:
        msg = f"cannot open {lock}: {error.strerror or error}"
        raise StoreUnsafe(msg) from error
