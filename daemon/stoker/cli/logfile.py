"""Reading the daemon's log from disk, so that it works while no daemon runs."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Generator
from pathlib import Path
from typing import BinaryIO, Final

_POLL_S: Final = 0.25


def last_lines(log: Path, count: int) -> tuple[list[str], int]:
    """The newest `count` lines, and where in the file they end.

    The rotated file before it is read too, so that a fresh rotation hides nothing.
    """
    lines: deque[bytes] = deque(maxlen=count)
    end = 0
    for file in (log.with_name(f"{log.name}.1"), log):
        stream = _open(file)
        if stream is not None:
            with stream:
                lines.extend(stream)
                end = stream.tell()
        else:
            end = 0
    return [_text(line) for line in lines], end


def follow(log: Path, start: int, *, wait: Callable[[float], None] = time.sleep) -> Generator[str]:
    """Every line after `start`, through rotations and for as long as the caller asks."""
    stream = _open(log)
    if stream is not None:
        stream.seek(min(start, os.fstat(stream.fileno()).st_size))
    rest = b""
    try:
        while True:
            moved = stream is None or _replaced(stream, log)  # asked first: then the rest is final
            data = stream.read() if stream is not None else b""
            *lines, rest = (rest + data).split(b"\n")
            yield from (_text(line) for line in lines)
            fresh = _open(log) if moved and not data else None
            if fresh is not None:
                if stream is not None:
                    stream.close()
                stream = fresh
            elif not data:
                wait(_POLL_S)
    finally:
        if stream is not None:
            stream.close()


def _open(log: Path) -> BinaryIO | None:
    try:
        return log.open("rb")
    except FileNotFoundError:
        return None


def _text(line: bytes) -> str:
    return line.decode(errors="replace").rstrip("\r\n")


def _replaced(stream: BinaryIO, log: Path) -> bool:
    """Whether the path is another file by now, or the same one cut short."""
    try:
        there = log.stat()
    except FileNotFoundError:
        return False
    here = os.fstat(stream.fileno())
    same = (there.st_ino, there.st_dev) == (here.st_ino, here.st_dev)
    return not same or there.st_size < stream.tell()
