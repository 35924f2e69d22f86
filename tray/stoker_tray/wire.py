"""The tray's own few lines of HTTP to the daemon: one call, or the stream of events.

Whatever the daemon answers, however slowly, and wherever it is cut: a call ends by its deadline
with parsed JSON or a `StokerError`, and the stream never waits. Not for: what the JSON means
(`state`), or another server than this user's own daemon. The standard client would cost 8 MB.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from stoker import errors, transport
from stoker_tray.answer import (
    BODY_BYTES,
    HEAD_BYTES,
    Answer,
    EventParser,
    makes_no_sense,
    parsed,
    reported,
    went_away,
)

ANSWER_S: Final = 30.0  # a call that only looks or asks; a busy disk may make a list slow
EVENTS: Final = "/events?resources=false"  # samples are asked for only while the menu is open

# A UNIX socket connects at once. So does TCP to somebody who listens; Windows, though, asks again
# for two seconds when nobody does.
_CONNECT_S: Final = 0.5
_PIECE_BYTES: Final = 64 * 1024
_PIECES: Final = 16  # for one `read`, so that a flood of events leaves time for clicks
_OK: Final = 200
_FAILED: Final = 400

_OURS_TO_BLAME: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)
_UCRED: Final = struct.Struct("iII")  # Linux: pid, uid, gid
_XUCRED: Final = struct.Struct("II")  # macOS and the BSDs: version, uid, then groups we skip
_XUCRED_BYTES: Final = 76
_SOL_LOCAL: Final = 0
_LOCAL_PEERCRED: Final = 1


class Hangup:
    """Call it to end a `call` that runs in another thread, or to keep it from beginning."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._channel: socket.socket | None = None
        self._wanted = False

    def __call__(self) -> None:
        with self._lock:
            self._wanted = True
            if self._channel is not None:
                with contextlib.suppress(OSError):  # the other end was faster
                    self._channel.shutdown(socket.SHUT_RDWR)

    @contextmanager
    def over(self, channel: socket.socket) -> Iterator[None]:
        """In this block, hanging up ends this channel. Raises DaemonNotRunning after one."""
        with self._lock:
            if self._wanted:
                raise went_away()
            self._channel = channel
        try:
            yield
        finally:
            with self._lock:
                self._channel = None


def call(
    socket_path: Path,
    method: str,
    target: str,
    body: object = None,
    timeout_s: float = ANSWER_S,
    *,
    hangup: Hangup | None = None,
) -> object:
    """The daemon's answer, parsed. Raises DaemonNotRunning, DaemonNotReady, or what it reports."""
    deadline = time.monotonic() + timeout_s
    route = transport.find(socket_path)
    with _connect(route) as channel, (hangup or Hangup()).over(channel):
        try:
            channel.settimeout(timeout_s)
            channel.sendall(_request(route, method, target, body))
            status, text = _whole_answer(channel, deadline)
        except TimeoutError as error:
            msg = f"the daemon gave no answer within {timeout_s:g} s"
            raise errors.DaemonNotReady(msg) from error
        except OSError as error:
            raise went_away() from error
    if status >= _FAILED:
        raise reported(status, text)
    return parsed(text)


def _whole_answer(channel: socket.socket, deadline: float) -> tuple[int, bytes]:
    answer, body = Answer(), bytearray()
    while not answer.complete:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        channel.settimeout(left_s)
        piece = channel.recv(_PIECE_BYTES)
        if not piece:
            answer.end()
        body += answer.feed(piece)
        if len(body) > BODY_BYTES:
            makes_no_sense()
    return answer.status, bytes(body)


class EventStream:
    """The daemon's events, for a `select` on `fileno`. No method ever waits.

    Raises DaemonNotRunning or DaemonNotReady when it cannot be opened; over TCP that may take
    half a second.
    """

    def __init__(self, socket_path: Path) -> None:
        self._answer = Answer()
        self._events = EventParser()
        self._refusal = bytearray()  # the body of an answer that is an error
        self._ended = False
        route = transport.find(socket_path)
        self._channel = _connect(route)
        try:
            # It fits into any socket's buffer: all of it is sent, or nothing.
            self._channel.send(_request(route, "GET", EVENTS, None))
        except OSError as error:
            self.close()
            raise went_away() from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def fileno(self) -> int:
        return self._channel.fileno()

    def close(self) -> None:
        self._channel.close()

    def read(self) -> list[dict[str, Any]]:
        """All events that have come; [] when only a ping, or a part of one, has.

        Raises DaemonNotRunning when the stream has ended, DaemonError when it makes no sense, and
        what the daemon reports instead of a stream.
        """
        events: list[dict[str, Any]] = []
        for _ in range(_PIECES):
            if self._ended:
                break
            try:
                piece = self._channel.recv(_PIECE_BYTES)
            except BlockingIOError:
                return events
            except OSError:
                piece = b""
            events += self._take(piece)
        if self._ended and not events:
            raise went_away()
        return events

    def _take(self, piece: bytes) -> list[dict[str, Any]]:
        body = self._answer.feed(piece)
        self._ended = not piece or self._answer.complete
        if self._answer.status in {0, _OK}:
            return self._events.feed(body)
        self._refusal += body
        if self._ended or len(self._refusal) > HEAD_BYTES:
            raise reported(self._answer.status, bytes(self._refusal))
        return []


def _request(route: transport.Route, method: str, target: str, body: object) -> bytes:
    """`target` is quoted already."""
    lines = [f"{method} {target} HTTP/1.1", f"Host: {route.host}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in route.headers.items()]
    content = b"" if body is None else json.dumps(body).encode()
    if body is not None:
        lines += ["Content-Type: application/json"]
    if method != "GET":
        lines += [f"Content-Length: {len(content)}"]
    return "\r\n".join([*lines, "", ""]).encode("ascii") + content


def _connect(route: transport.Route) -> socket.socket:
    """A socket to this user's daemon; it does not block. Raises DaemonNotRunning, NotReady."""
    on_tcp = route.socket_path is None
    try:
        channel = route.connect(_CONNECT_S if on_tcp else 0)
    except BlockingIOError as error:  # its backlog is full
        raise errors.DaemonNotReady("the daemon is too busy to answer") from error
    except OSError as error:
        if error.errno in _OURS_TO_BLAME:
            raise errors.DaemonNotReady(f"cannot reach the daemon: {error.strerror}") from error
        raise errors.DaemonNotRunning("Stoker is not running") from error
    channel.settimeout(0)
    # Over TCP the daemon asks for a token that only this user's programs know.
    if not on_tcp and not _is_ours(channel):
        channel.close()
        msg = f"the socket {route.socket_path} belongs to another user"
        raise errors.DaemonNotRunning(msg, hint="Set STOKER_HOME to a folder that is yours.")
    return channel


def _is_ours(channel: socket.socket) -> bool:
    """Whether the user who listens at the other end, as the kernel knows it, is this one."""
    if sys.platform == "win32":
        return False  # there are no UNIX sockets
    try:
        return _peer_uid(channel) == os.getuid()
    except OSError:
        return False


def _peer_uid(channel: socket.socket) -> int | None:
    """The user who listens at the other end, as the kernel knows it."""
    try:
        if sys.platform == "linux":
            raw = channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
            return int(_UCRED.unpack(raw)[1])
        raw = channel.getsockopt(_SOL_LOCAL, _LOCAL_PEERCRED, _XUCRED_BYTES)
        return int(_XUCRED.unpack_from(raw)[1])
    except struct.error:
        return None
