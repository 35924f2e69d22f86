"""One tray per home: a lock on a file, held for as long as the process lives."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from stoker.errors import StoreUnsafe

_POLL_S: Final = 0.05


@contextmanager
def only_one(lock: Path, *, wait_s: float = 0.0) -> Iterator[bool]:
    """Whether this process is the only one in the block; waits so long for another to end.

    The kernel gives the lock back however the process ends. Raises StoreUnsafe when the file
    cannot be made. Where a file system has no locks, every process is the only one.
    """
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        msg = f"cannot open {lock}: {error.strerror or error}"
        raise StoreUnsafe(msg) from error
    try:
        deadline = time.monotonic() + wait_s
        while not (ours := _take(descriptor)) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        yield ours
    finally:
        os.close(descriptor)


if sys.platform == "win32":
    import msvcrt

    def _take(descriptor: int) -> bool:
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

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
