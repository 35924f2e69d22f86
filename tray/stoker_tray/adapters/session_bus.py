"""One connection to the session bus that never blocks: jeepney's messages, our own reading.

jeepney's own connection waits without a limit for the bus's first answer and for room to send, and
keeps a message of any size in memory.
"""

from __future__ import annotations

import logging
import re
import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, Final, Self

from jeepney import (
    DBusAddress,
    HeaderFields,
    Message,
    MessageFlag,
    MessageType,
    new_method_call,
    new_signal,
)
from jeepney.auth import BEGIN, Authenticator
from jeepney.low_level import calc_msg_size

log = logging.getLogger(__name__)

BUS: Final = "org.freedesktop.DBus"
BUS_OBJECT: Final = DBusAddress("/org/freedesktop/DBus", BUS, BUS)

MESSAGE_LIMIT = 1 << 20  # bytes; nothing that a tray is asked comes near
_FRAME_LIMIT = 1 << 27  # bytes; D-Bus allows no larger message: beyond it the stream is broken
_UNSENT_LIMIT = 4 << 20  # bytes; a bus that takes nothing for so long is as good as lost
_UNSENT_PAUSE = 256 << 10  # bytes; no more requests are read until the answers have left
_READ_SIZE = 64 << 10
_WAITING_LIMIT = 64  # calls without an answer; the oldest is given up
_FIRST_BYTES = 16  # of a message, which tell its size
# What jeepney raises for bytes that are no message.
_MALFORMED = (
    ValueError,
    LookupError,
    TypeError,
    AssertionError,
    RecursionError,
    struct.error,
)

Body = tuple[Any, ...]
Answered = Callable[[Message], None]


class BusGone(Exception):
    """There is no session bus, or not any more."""


# --- addresses -------------------------------------------------------------------------------

_ESCAPED = re.compile(rb"%([0-9A-Fa-f]{2})")


def _unescape(text: str) -> bytes:
    return _ESCAPED.sub(lambda m: bytes([int(m[1], 16)]), text.encode("utf-8", "surrogateescape"))


def _sockets_of(address: str, runtime_dir: str | None) -> Iterator[bytes]:
    for entry in address.split(";"):
        transport, _, info = entry.partition(":")
        facts = dict(pair.partition("=")[::2] for pair in info.split(","))
        if transport != "unix":
            continue
        if facts.get("path"):
            yield _unescape(facts["path"])
        elif facts.get("abstract"):
            yield b"\0" + _unescape(facts["abstract"])
        elif facts.get("runtime") == "yes" and runtime_dir:
            yield runtime_dir.encode("utf-8", "surrogateescape") + b"/bus"


def bus_sockets(environ: Mapping[str, str]) -> list[bytes]:
    """The sockets where this session's bus may be, in the order to try them."""
    runtime_dir = environ.get("XDG_RUNTIME_DIR")
    address = environ.get("DBUS_SESSION_BUS_ADDRESS") or "unix:runtime=yes"
    found = list(_sockets_of(address, runtime_dir))
    return found or list(_sockets_of("unix:runtime=yes", runtime_dir))


def _connect(environ: Mapping[str, str]) -> socket.socket:
    sockets = bus_sockets(environ)
    reason = "neither DBUS_SESSION_BUS_ADDRESS nor XDG_RUNTIME_DIR names one"
    for path in sockets:
        link = socket.socket(socket.AF_UNIX)
        link.settimeout(0)  # a bus whose queue is full refuses at once
        try:
            link.connect(path)
        except OSError as error:
            link.close()
            reason = f"{path.decode('utf-8', 'replace')}: {error.strerror or error}"
        else:
            return link
    raise BusGone(f"no session bus: {reason}")


# --- messages --------------------------------------------------------------------------------


def header(message: Message, field: HeaderFields) -> str:
    """A text field of a message's header; empty when it has none."""
    value = message.header.fields.get(field)
    return value if isinstance(value, str) else ""


def failure(message: Message) -> str:
    """The error's name if it is one, else empty."""
    if message.header.message_type is not MessageType.error:
        return ""
    return header(message, HeaderFields.error_name) or "an error without a name"


def body(message: Message, signature: str) -> Body | None:
    """What a message carries, or None if it is an error or not of this signature."""
    if failure(message):
        return None
    return message.body if header(message, HeaderFields.signature) == signature else None


# --- the connection --------------------------------------------------------------------------


class SessionBus:
    """One connection to the session bus: say what to send, poll, take what came.

    Making one, `read` and `flush` raise `BusGone` when there is no bus, or not any more; sending to
    a bus that is gone does nothing. A message that comes in malformed or larger than
    `MESSAGE_LIMIT` is dropped. `name` is empty until the bus has let us in.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.name = ""
        self._link = _connect(environ)
        self._fault = ""  # why the bus is gone
        self._login: Authenticator | None = Authenticator()
        self._unsent = bytearray()
        self._held: list[bytes] = []  # to be sent when the bus has let us in
        self._unread = bytearray()
        self._skip = 0  # bytes of a message that is too large
        self._serial = 0
        self._waiting: dict[int, Answered] = {}
        self._write(self._login.data_to_send() or b"")
        self.call(BUS_OBJECT, "Hello", answered=self._welcomed)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._link.close()
        self._waiting.clear()

    def fileno(self) -> int:
        return self._link.fileno()

    @property
    def wants_to_read(self) -> bool:
        return len(self._unsent) < _UNSENT_PAUSE

    @property
    def wants_to_write(self) -> bool:
        return bool(self._unsent)

    # --- sending -----------------------------------------------------------------------------

    def send(self, message: Message) -> int:
        """Send a message and return its serial number.

        Raises what jeepney raises for a body that does not fit its signature; nothing is sent then.
        """
        self._serial += 1
        data = message.serialise(serial=self._serial)
        if self._login is None:
            self._write(data)
        else:
            self._held.append(data)
        return self._serial

    def call(
        self,
        peer: DBusAddress,
        member: str,
        signature: str | None = None,
        body: Body = (),
        answered: Answered | None = None,
    ) -> None:
        """Call a method; `answered` gets the reply or the error when it comes, if it comes."""
        message = new_method_call(peer, member, signature, body)
        if answered is None:
            message.header.flags |= MessageFlag.no_reply_expected
        serial = self.send(message)
        if answered is None:
            return
        self._waiting[serial] = answered
        if len(self._waiting) > _WAITING_LIMIT:
            del self._waiting[next(iter(self._waiting))]

    def signal(
        self, path: str, interface: str, member: str, signature: str | None = None, body: Body = ()
    ) -> None:
        emitter = DBusAddress(path, interface=interface)
        self.send(new_signal(emitter, member, signature, body))

    def listen(self, rule: str) -> None:
        """Ask the bus for the signals that fit this match rule."""
        self.call(BUS_OBJECT, "AddMatch", "s", (f"type='signal',{rule}",))

    def _write(self, data: bytes) -> None:
        if self._fault:
            return
        self._unsent += data
        if len(self._unsent) > _UNSENT_LIMIT:
            self._fault = "the session bus takes nothing any more"
        try:
            while self._unsent:
                del self._unsent[: self._link.send(self._unsent)]
        except BlockingIOError:
            return
        except OSError as error:
            self._fault = f"the session bus was lost: {error.strerror or error}"

    def flush(self) -> None:
        """Send as much of the rest as the bus takes now."""
        self._write(b"")
        if self._fault:
            raise BusGone(self._fault)

    # --- reading -----------------------------------------------------------------------------

    def read(self) -> list[Message]:
        """What has come; give each message to `settle` first."""
        try:
            data = self._link.recv(_READ_SIZE)
        except BlockingIOError:
            return []
        except OSError as error:
            raise BusGone(f"the session bus was lost: {error.strerror or error}") from None
        if not data:
            raise BusGone("the session bus was closed")
        if self._login is not None:
            self._log_in(self._login, data)
            return []
        self._unread += data
        return list(self._messages())

    def _log_in(self, login: Authenticator, data: bytes) -> None:
        try:
            login.feed(data)
        except ValueError as error:
            raise BusGone(f"the session bus does not let us in: {error}") from None
        if login.authenticated:
            self._login = None
            self._write(BEGIN + b"".join(self._held))
            self._held.clear()
        else:
            self._write(login.data_to_send() or b"")

    def _messages(self) -> Iterator[Message]:
        while (raw := self._next_raw()) is not None:
            try:
                yield Message.from_buffer(raw)
            except _MALFORMED as error:
                log.debug("a malformed D-Bus message was dropped: %r", error)

    def _next_raw(self) -> bytes | None:
        """The next whole message; a too large one is skipped as it comes in."""
        while True:
            skipped = min(self._skip, len(self._unread))
            del self._unread[:skipped]
            self._skip -= skipped
            if len(self._unread) < _FIRST_BYTES:
                return None
            size = self._next_size()
            if size > MESSAGE_LIMIT:
                log.debug("a D-Bus message of %d bytes was dropped", size)
                self._skip = size
            elif len(self._unread) < size:
                return None
            else:
                raw = bytes(self._unread[:size])
                del self._unread[:size]
                return raw

    def _next_size(self) -> int:
        try:
            size: int = calc_msg_size(bytes(self._unread[:_FIRST_BYTES]))
        except LookupError:
            size = _FRAME_LIMIT + 1
        if size > _FRAME_LIMIT:
            raise BusGone("the session bus sent what is no D-Bus message")
        return size

    def settle(self, message: Message) -> bool:
        """Give an answer to who waits for it; False if this is none."""
        if message.header.message_type not in {MessageType.method_return, MessageType.error}:
            return False
        answered = self._waiting.pop(message.header.fields.get(HeaderFields.reply_serial), None)
        if answered is not None:
            answered(message)
        return True

    def _welcomed(self, message: Message) -> None:
        reply = body(message, "s")
        if reply is None:
            raise BusGone("the session bus does not let us in")
        self.name = reply[0]
