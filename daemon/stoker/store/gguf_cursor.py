"""Forward reading of a binary stream within hard bounds.

Nothing is allocated from a number that a file declares: every length is compared with the bytes
that remain, and only one buffer is held.
"""

from __future__ import annotations

import struct
from typing import BinaryIO, Final

from stoker.errors import GgufError

MAX_STRING_BYTES: Final = (
    1 << 20
)  # a chat template of this length does not exist; a token even less
_BUFFER_BYTES: Final = 1 << 18  # a few reads for a usual header, and small in memory
_LENGTH: Final = struct.Struct("<Q")


class Cursor:
    """Reads ``stream`` from its start to ``size``. Every failure is a GgufError."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream = stream
        self._size = size
        self._buffer = b""
        self._at = 0  # next byte, in the buffer
        self._base = 0  # where the buffer begins in the file
        stream.seek(0)

    @property
    def position(self) -> int:
        return self._base + self._at

    @property
    def remaining(self) -> int:
        return self._size - self.position

    def take(self, count: int, what: str) -> bytes:
        """The next bytes; the caller has bounded ``count``."""
        if count > len(self._buffer) - self._at:
            self._fill(count, what)
        start = self._at
        self._at += count
        return self._buffer[start : self._at]

    def number(self, code: str, what: str) -> int | float:
        """One little-endian number, by its struct code."""
        layout = struct.Struct("<" + code)
        value: int | float = layout.unpack(self.take(layout.size, what))[0]
        return value

    def whole(self, code: str, what: str) -> int:
        return int(self.number(code, what))

    def string(self, what: str, limit: int = MAX_STRING_BYTES) -> bytes:
        """A length and that many bytes."""
        length = self.whole("Q", what)
        if length > limit:
            msg = f"{what} declares {length} bytes; the limit is {limit}"
            raise GgufError(msg)
        return self.take(length, what)

    def skip(self, count: int, what: str) -> None:
        if count > self.remaining:
            raise _cut(what)
        if count <= len(self._buffer) - self._at:
            self._at += count
            return
        self._base = self.position + count
        self._stream.seek(self._base)
        self._buffer, self._at = b"", 0

    def skip_strings(self, count: int, what: str) -> None:
        """Pass over a list of strings without making any of them."""
        unpack = _LENGTH.unpack_from
        while count:
            if len(self._buffer) - self._at < _LENGTH.size:
                self._fill(_LENGTH.size, what)
            buffer, at, last = self._buffer, self._at, len(self._buffer) - _LENGTH.size
            while count and at <= last:  # the hot loop: some 300 000 rounds in a usual file
                (length,) = unpack(buffer, at)
                if length > MAX_STRING_BYTES:
                    msg = f"a string in {what} declares {length} bytes"
                    raise GgufError(msg)
                at += _LENGTH.size + length
                count -= 1
            self._at = min(at, len(buffer))
            self.skip(at - self._at, what)

    def _fill(self, count: int, what: str) -> None:
        """Hold at least ``count`` bytes from here on."""
        if count > self.remaining:
            raise _cut(what)
        held = self._buffer[self._at :]
        self._base, self._at = self.position, 0
        while len(held) < count:
            more = self._stream.read(
                min(max(count, _BUFFER_BYTES), self._size - self._base) - len(held)
            )
            if not more:
                raise _cut(what)
            held += more
        self._buffer = held


def _cut(what: str) -> GgufError:
    return GgufError(f"the file ends inside {what}")
