"""End another thread's wait."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType
from typing import Self


class Wake:
    """`set` from any thread or signal handler makes this readable until `clear`.

    Before it is entered and after it is left `set` does nothing.
    """

    def __init__(self) -> None:
        # A signal handler may call `set` while its own thread is in here.
        self._lock = threading.RLock()
        self._ends: tuple[socket.socket, socket.socket] | None = None

    def __enter__(self) -> Self:
        ends = socket.socketpair()
        for end in ends:
            end.settimeout(0)
        with self._lock:
            self._ends = ends
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._lock:
            ends, self._ends = self._ends, None
        for end in ends or ():
            end.close()

    def fileno(self) -> int:
        return self._ends[0].fileno() if self._ends else -1

    def set(self) -> None:
        with self._lock, contextlib.suppress(BlockingIOError):  # full: it is readable anyway
            if self._ends:
                self._ends[1].send(b"\0")

    def clear(self) -> None:
        with self._lock, contextlib.suppress(BlockingIOError):
            if self._ends:
                self._ends[0].recv(4096)
