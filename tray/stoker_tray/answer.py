"""One HTTP/1.1 answer of the daemon and the events in it, parsed as the bytes come; no socket.

Bytes that make no sense raise DaemonError, wherever they are wrong; sizes are bounded. Not for:
requests, sockets and deadlines (`wire`).
"""

from __future__ import annotations

import json
from typing import Any, Final, NoReturn

from stoker import errors

HEAD_BYTES: Final = 64 * 1024  # of status line and headers; the daemon sends 300
BODY_BYTES: Final = 8 * 1024 * 1024  # of an answer or an event; 200 models are 100 kB

_SIZE_LINE_BYTES: Final = 1024  # of a chunk, its extensions included
_HEX: Final = frozenset(b"0123456789abcdefABCDEF")
_SIZE_DIGITS: Final = 12  # a terabyte
_STATUS_DIGITS: Final = 3
_FINAL: Final = 200  # a status below only says that an answer will come
_NO_BODY: Final = (204, 304)
_FRAMING: Final = (b"content-length", b"transfer-encoding")


class Answer:
    """`feed` it what comes, and tell it by `end` when the connection ends."""

    def __init__(self) -> None:
        self.status = 0  # until the head is complete
        self.complete = False
        self._rest = bytearray()
        self._body = bytearray()
        self._left = 0  # bytes of the body, or of this chunk, that have not come
        self._head_bytes = 0  # of heads and trailers until now
        self._until_end = False
        self._step = self._head

    def feed(self, data: bytes) -> bytes:
        """The bytes of the body that are in it."""
        self._rest += data
        while not self.complete and self._step():
            pass
        body, self._body = bytes(self._body), bytearray()
        return body

    def end(self) -> None:
        """The connection has ended. Raises DaemonNotRunning when the answer had not."""
        if not self._until_end:
            raise went_away()
        self.complete = True

    # Each step takes what it can from `_rest`, and says whether the next one may go on.

    def _head(self) -> bool:
        end = self._rest.find(b"\r\n\r\n")
        self._allow_head(len(self._rest) if end < 0 else end)
        if end < 0:
            return False
        first, *lines = bytes(self._rest[:end]).split(b"\r\n")
        del self._rest[: end + 4]
        self._head_bytes += end + 4
        status = _status(first)
        if status >= _FINAL:
            self.status = status
            self._choose_body(_headers(lines))
        return True

    def _choose_body(self, headers: dict[bytes, bytes]) -> None:
        coding, length = headers.get(b"transfer-encoding"), headers.get(b"content-length")
        if self.status in _NO_BODY:
            self.complete = True
        elif coding is not None:
            if coding.lower() != b"chunked" or length is not None:
                makes_no_sense()
            self._step = self._chunk_size
        elif length is not None:
            if not length.isdigit() or len(length) > _SIZE_DIGITS:
                makes_no_sense()
            self._left, self._step = int(length), self._sized
            self.complete = self._left == 0
        else:
            self._until_end, self._step = True, self._all

    def _sized(self) -> bool:
        self._move(self._left)
        self.complete = self._left == 0
        return False

    def _all(self) -> bool:
        self._left = len(self._rest)
        self._move(self._left)
        return False

    def _chunk_size(self) -> bool:
        line = self._line(_SIZE_LINE_BYTES)
        if line is None:
            return False
        digits = line.split(b";", 1)[0].strip(b" \t")
        if not digits or len(digits) > _SIZE_DIGITS or not _HEX.issuperset(digits):
            makes_no_sense()
        self._left = int(digits, 16)
        self._step = self._chunk if self._left else self._trailer
        return True

    def _chunk(self) -> bool:
        self._move(self._left)
        if self._left == 0:
            self._step = self._chunk_end
        return self._left == 0

    def _chunk_end(self) -> bool:
        line = self._line(0)
        if line is None:
            return False
        self._step = self._chunk_size
        return True

    def _trailer(self) -> bool:
        line = self._line(HEAD_BYTES)
        if line is None:
            return False
        self._allow_head(len(line))
        self._head_bytes += len(line) + 2
        self.complete = not line
        return True

    def _line(self, longest: int) -> bytes | None:
        """The next line; None when it has not come yet."""
        end = self._rest.find(b"\r\n", 0, longest + 2)
        if end < 0:
            if len(self._rest) >= longest + 2:
                makes_no_sense()
            return None
        line = bytes(self._rest[:end])
        del self._rest[: end + 2]
        return line

    def _move(self, most: int) -> None:
        """Up to so many bytes from the rest to the body."""
        self._left -= min(most, len(self._rest))
        self._body += self._rest[:most]
        del self._rest[:most]

    def _allow_head(self, more: int) -> None:
        if self._head_bytes + more > HEAD_BYTES:
            makes_no_sense()


def _status(line: bytes) -> int:
    version, _, rest = line.partition(b" ")
    code, _, _reason = rest.partition(b" ")
    if version not in {b"HTTP/1.1", b"HTTP/1.0"}:
        makes_no_sense()
    if len(code) != _STATUS_DIGITS or not code.isdigit():
        makes_no_sense()
    return int(code)


def _headers(lines: list[bytes]) -> dict[bytes, bytes]:
    """By lower-case name. Two different words on where the body ends make no sense."""
    found: dict[bytes, bytes] = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        name, value = name.lower(), value.strip(b" \t")
        if not colon or not name or name.strip() != name:
            makes_no_sense()
        if found.setdefault(name, value) != value and name in _FRAMING:
            makes_no_sense()
    return found


class EventParser:
    """Server-sent events, each one a JSON object, out of the bytes of a body."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._data: list[bytes] = []
        self._bytes = 0  # of `_data`

    def feed(self, body: bytes) -> list[dict[str, Any]]:
        """The events that are complete now."""
        seen = len(self._rest)
        self._rest += body
        if self._rest.find(b"\n", seen) < 0:
            self._allow(len(self._rest))
            return []
        *lines, rest = bytes(self._rest).split(b"\n")
        self._rest = bytearray(rest)
        found = [self._line(line.removesuffix(b"\r")) for line in lines]
        self._allow(len(rest))
        return [event for event in found if event is not None]

    def _line(self, line: bytes) -> dict[str, Any] | None:
        if line.startswith(b"data:"):
            self._allow(len(line))
            self._data.append(line[5:].removeprefix(b" "))
            self._bytes += len(line)
        if line or not self._data:
            return None
        data, self._data, self._bytes = b"\n".join(self._data), [], 0
        event = parsed(data)
        if not isinstance(event, dict):
            makes_no_sense()
        return event

    def _allow(self, more: int) -> None:
        if self._bytes + more > BODY_BYTES:
            makes_no_sense()


def parsed(text: bytes) -> object:
    """Raises DaemonError for what is not JSON, NaN and the like included."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        makes_no_sense(error)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


def reported(status: int, text: bytes) -> errors.StokerError:
    """The error that an answer with such a status is."""
    try:
        view = parsed(text)
    except errors.DaemonError:
        view = None
    if isinstance(view, dict):
        code, message, hint = (view.get(name) for name in ("code", "message", "hint"))
        facts = view.get("facts")
        if isinstance(code, str) and isinstance(message, str) and isinstance(hint, str):
            return errors.from_wire(code, message, hint, facts if isinstance(facts, dict) else {})
    return errors.DaemonError(f"the daemon failed without a reason (HTTP {status})")


def went_away() -> errors.DaemonNotRunning:
    return errors.DaemonNotRunning("the daemon went away in the middle of the call")


def makes_no_sense(cause: BaseException | None = None) -> NoReturn:
    msg = "the daemon's answer makes no sense to this tray"
    hint = "The two may be of different versions: run `stoker restart`."
    raise errors.DaemonError(msg, hint=hint) from cause
