"""One tray per home: a lock on a file, held for as long as the process lives.

The holder writes its process id into the file, so that another program can end it (`end_other`).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from stoker.errors import StokerError, StoreUnsafe

if TYPE_CHECKING:
    import psutil

END_S: Final = 5.0  # for a tray that is asked to end; it gives its icon 1.5 s
KILLED_S: Final = 5.0  # for the system to take away one that was killed

_POLL_S: Final = 0.05
_PID_BYTES: Final = 16  # always as many, so that nothing is left of a longer one


@contextmanager
def only_one(lock: Path, *, wait_s: float = 0.0) -> Iterator[bool]:
    """Whether this process is the only one in the block; waits so long for another to end.

    The kernel gives the lock back however the process ends. Raises StoreUnsafe when the file
    cannot be made. Where a file system has no locks, every process is the only one.
    """
    with _opened(lock, os.O_CREAT) as descriptor:
        deadline = time.monotonic() + wait_s
        while not (ours := _take(descriptor)) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        if ours:
            _write(descriptor, str(os.getpid()))
        try:
            yield ours
        finally:
            if ours:
                _write(descriptor, "")


def end_other(lock: Path, *, end_s: float = END_S) -> None:
    """End the process that holds the lock, if there is one; return when nobody holds it.

    It is asked to end, and killed after `end_s`. No other process is ever touched, whatever the
    file says. Raises StoreUnsafe, or StokerError when the lock is still held in the end.
    """
    deadline = time.monotonic() + end_s
    asked: set[int] = set()
    while not _is_free(lock):
        now_s = time.monotonic()
        if now_s > deadline + KILLED_S:
            msg = "the icon of this home could not be ended"
            raise StokerError(msg, hint="Quit it from its menu; it may run on another machine.")
        holder = _holder(lock)
        if holder is not None and now_s > deadline:
            _try(holder.kill)
        elif holder is not None and holder.pid not in asked:
            asked.add(holder.pid)
            _try(holder.terminate)
        time.sleep(_POLL_S)


def _is_free(lock: Path) -> bool:
    try:
        with _opened(lock, 0) as descriptor:
            return _take(descriptor)
    except FileNotFoundError:
        return True


def _holder(lock: Path) -> psutil.Process | None:
    """The process that the file names, if that can be the one: the file may be out of date."""
    import psutil

    pid = _read(lock)
    if pid is None or pid == os.getpid():
        return None
    try:
        process = psutil.Process(pid)
        return process if _has_open(process, lock) else None
    except (psutil.Error, ValueError, OverflowError):
        return None


def _try(end: Callable[[], object]) -> None:
    """A method of `psutil.Process`: it looks again whether the id is still the same process."""
    import psutil

    with suppress(psutil.Error):
        end()


# --- the file --------------------------------------------------------------------------------


@contextmanager
def _opened(lock: Path, flags: int) -> Iterator[int]:
    """Raises FileNotFoundError when it is not to be made, StoreUnsafe for all else."""
    try:
        descriptor = os.open(lock, os.O_RDWR | flags, 0o600)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not flags:
            raise
        msg = f"cannot open {lock}: {error.strerror or error}"
        raise StoreUnsafe(msg) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _write(descriptor: int, pid: str) -> None:
    """Best effort: a full disk costs no more than the way to end this process from outside."""
    with suppress(OSError):
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, f"{pid:<{_PID_BYTES - 1}}\n".encode())


def _read(lock: Path) -> int | None:
    try:
        with lock.open("rb") as stream:
            return int(stream.read(_PID_BYTES))
    except (OSError, ValueError):
        return None


if sys.platform == "win32":
    import msvcrt

    # Windows keeps others from reading what is locked: a byte far behind the process id.
    _LOCKED_BYTE = 1 << 30

    def _take(descriptor: int) -> bool:
        try:
            os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _has_open(process: psutil.Process, lock: Path) -> bool:
        """As far as its command line tells: Windows does not list the open files reliably."""
        _ = lock
        return any("stoker_tray" in word or "stoker-tray" in word for word in process.cmdline())

else:
    import fcntl

    def _take(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True

    def _has_open(process: psutil.Process, lock: Path) -> bool:
        return any(_is_same(file.path, lock) for file in process.open_files())

    def _is_same(path: str, lock: Path) -> bool:
        try:
            return lock.samefile(path)
        except OSError:
            return False
