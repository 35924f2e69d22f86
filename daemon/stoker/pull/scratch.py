"""A file of our own that is filled front to back and thrown away; the simplest sink."""

from __future__ import annotations

import errno
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from stoker.errors import DiskFull, SizeMismatch

NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


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
        try:
            self._stream.write(data)
        except OSError as error:
            if error.errno in NO_ROOM:
                raise DiskFull("no room for a temporary file") from error
            raise
        self.bytes_done += len(data)

    def advance_hash(self) -> None:
        """Hashed when it is complete."""

    def checkpoint(self) -> None:
        """Never resumed after a crash."""

    def reset(self) -> None:
        self._stream.seek(0)
        self._stream.truncate()
        self.bytes_done = 0
