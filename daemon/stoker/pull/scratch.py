"""A file of our own that is filled front to back and thrown away; the simplest sink."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

from stoker.errors import SizeMismatch
from stoker.store import disk


class ScratchFile:
    """Resumes while it is open, never after. Single connection: writes must not leave gaps."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bytes_done = 0
        self._size = 0
        self._stream = path.open("wb", buffering=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stream.close()
        self.path.unlink(missing_ok=True)

    def set_size(self, size: int) -> None:
        self._size = size

    def missing(self, chunk: int) -> list[tuple[int, int]]:
        _ = chunk  # one range: one connection
        return [(self.bytes_done, self._size)] if self.bytes_done < self._size else []

    def write(self, offset: int, data: bytes | memoryview) -> None:
        if offset != self.bytes_done or offset + len(data) > self._size:
            raise SizeMismatch("bytes out of order, or more than announced")
        disk.write_at(self._stream.fileno(), data, offset)
        self.bytes_done += len(data)

    def advance_hash(self) -> bool:
        """Hashed when it is complete."""
        return False

    def checkpoint(self) -> None:
        """Never resumed after a crash."""

    def reset(self) -> None:
        self._stream.truncate(0)
        self.bytes_done = 0
