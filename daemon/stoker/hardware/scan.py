"""How fast this machine reads memory: the process that does nothing but read.

Started as ``python -I -m stoker.hardware.scan BYTES THREADS SECONDS ROUNDS``, by `measure` only.
Each thread fills a buffer of its own and then looks for a byte that is not in it, which reads
every byte and writes none. Prints a JSON list of rounds, each a list of what one thread did:
bytes read, seconds, and seconds of these on the processor. Imports the standard library only: its
start is part of the measurement's time.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import sys
import threading
import time
from collections.abc import Callable
from typing import Final, cast

_FILL: Final = 1  # a page that was never written is one and the same page of zeros
_ABSENT: Final = 2
_PIECE: Final = 4 * 1024 * 1024  # bytes between two looks at the clock; a millisecond's work
_BARRIER_S: Final = 10.0


class _Reader(threading.Thread):
    """Reads its buffer round and round while a round lasts; ctypes lets the others run."""

    def __init__(self, size: int, barrier: threading.Barrier, seconds: float, rounds: int) -> None:
        super().__init__(daemon=True)
        self._size = size // _PIECE * _PIECE
        self._barrier = barrier
        self._seconds = seconds
        self._rounds = rounds
        self.done: list[tuple[int, float, float]] = []  # bytes, seconds, of them on the CPU

    def run(self) -> None:
        with mmap.mmap(-1, self._size) as buffer:
            view = (ctypes.c_char * self._size).from_buffer(buffer)
            address = ctypes.addressof(view)
            ctypes.memset(address, _FILL, self._size)
            try:
                for _ in range(self._rounds):
                    self._barrier.wait(_BARRIER_S)
                    self.done.append(self._round(address))
            finally:
                del view  # a mapping with a view of it cannot be closed

    def _round(self, address: int) -> tuple[int, float, float]:
        find = _memchr()
        read = at = 0
        began, ran = time.perf_counter(), time.thread_time()
        while (now := time.perf_counter()) - began < self._seconds:
            find(address + at, _ABSENT, _PIECE)
            read += _PIECE
            at = (at + _PIECE) % self._size
        return read, now - began, time.thread_time() - ran


def _memchr() -> Callable[[int, int, int], object]:
    library = ctypes.CDLL("ucrtbase" if sys.platform == "win32" else None)
    function = library.memchr
    function.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)
    function.restype = ctypes.c_void_p
    return cast("Callable[[int, int, int], object]", function)


def main(arguments: list[str]) -> None:
    size, threads, rounds = int(arguments[0]), int(arguments[1]), int(arguments[3])
    barrier = threading.Barrier(threads)
    readers = [_Reader(size, barrier, float(arguments[2]), rounds) for _ in range(threads)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    rows = list(zip(*(reader.done for reader in readers), strict=True))
    sys.stdout.write(json.dumps(rows))


if __name__ == "__main__":
    main(sys.argv[1:])
