"""The worker's side of its bond with the daemon: orders in, one greeting out, no life after it.

Runs inside the worker process, before and beside the engine; standard library only. Two cords
hold a worker to its parent. The pipe on stdin: its end is the order to stop, seen by a thread.
And on Linux the parent-death signal, for as long as a loading engine keeps that thread from
running (a native load can hold the interpreter's lock from beginning to end). On Windows the
daemon's job object does the same (`job_object`).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, Final, TextIO

_PR_SET_PDEATHSIG: Final = 1
_LONGEST_ORDER: Final = 1 << 20  # characters; paths and a key take a few thousand


def read_order() -> dict[str, Any]:
    """Tie this process to its parent, then read the order that the parent wrote.

    Ends the process when the parent is gone already: it may have died before the signal was set.
    """
    _set_parent_death_signal(signal.SIGKILL if sys.platform == "linux" else 0)
    line = sys.stdin.readline(_LONGEST_ORDER)
    if not line.endswith("\n"):
        os._exit(0)
    order: dict[str, Any] = json.loads(line)
    if sys.platform != "win32" and os.getppid() != order["parent_pid"]:
        os._exit(0)
    return order


def private_stdout() -> TextIO:
    """The real stdout, kept for the greeting; whatever else prints there goes to stderr."""
    sys.stdout.flush()
    greeting = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return greeting


def tell(stream: TextIO, **fields: object) -> None:
    """Tell the parent, and close the line. The parent-death signal stays as it is.

    For a process that becomes another program, which has no thread to watch stdin.
    """
    stream.write(json.dumps(fields) + "\n")
    stream.close()


def greet(stream: TextIO, **fields: object) -> None:
    """Tell the parent that the engine listens, or is about to, and close the line.

    From here on the watching thread runs freely and takes over from the parent-death signal,
    because it can end the whole process group: a helper process of the engine would outlive
    a signal that only the worker gets.
    """
    tell(stream, **fields)
    _set_parent_death_signal(0)


def watch_stdin(before_end: Callable[[], object] = lambda: None) -> None:
    """Start the thread that ends this process and its group when stdin ends."""

    def watch() -> None:
        while os.read(0, 4096):
            pass
        try:
            before_end()
        finally:
            end_group()

    threading.Thread(target=watch, name="stdin-watch", daemon=True).start()


def end_group() -> None:
    """End this process, and its process group when it leads one. Does not return."""
    if sys.platform != "win32" and os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(0)


def _set_parent_death_signal(number: int) -> None:
    if sys.platform != "linux":
        return
    import ctypes

    # Failure leaves the other cord; there is nobody to tell.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
