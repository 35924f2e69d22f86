"""A session bus of our own, and peers on it.

``with PrivateBus(folder) as bus:`` runs a real dbus-daemon that knows no services to start, so that
no test reaches the desktop of whoever runs it. A `BusPeer` is another program on that bus.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from jeepney import (
    DBusAddress,
    HeaderFields,
    Message,
    MessageFlag,
    MessageType,
    new_error,
    new_method_call,
    new_method_return,
    new_signal,
)
from jeepney.bus_messages import message_bus
from jeepney.io.blocking import DBusConnection, prep_socket

WAIT_S = 30.0  # until a test gives up; a busy machine is slow

_CONFIG = """\
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type>
  <listen>unix:path={socket}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
  </policy>
</busconfig>
"""

Body = tuple[Any, ...]


class Deadline(AssertionError):
    """What a test waited for did not happen."""


def wait_for(condition: Callable[[], object], what: str, changed: threading.Condition) -> None:
    """Wait until the condition is true; whoever may make it so notifies `changed`."""
    with changed:
        if not changed.wait_for(condition, WAIT_S):
            raise Deadline(f"{what}: not within {WAIT_S:.0f} s")


class PrivateBus:
    """A dbus-daemon at a fixed address: may be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "bus"
        self._config = folder / "bus.conf"
        self._config.write_text(_CONFIG.format(socket=self.socket))
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()

    @staticmethod
    def is_installed() -> bool:
        return shutil.which("dbus-daemon") is not None

    @property
    def environ(self) -> dict[str, str]:
        return {"DBUS_SESSION_BUS_ADDRESS": f"unix:path={self.socket}"}

    def start(self) -> None:
        """Start, and return when it listens."""
        command = ["dbus-daemon", "--nofork", "--nopidfile", "--print-address=1"]
        self._process = subprocess.Popen(
            [*command, f"--config-file={self._config}"], stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        with self._process.stdout as output:  # the address comes when it listens
            assert output.readline(), "dbus-daemon did not start"

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(WAIT_S)
            self._process = None
        self.socket.unlink(missing_ok=True)


@dataclass(frozen=True)
class Signal:
    sender: str
    path: str
    interface: str
    member: str
    body: Body


class DBusError(Exception):
    """A call was answered with this error."""

    def __init__(self, name: str, body: Body) -> None:
        super().__init__(f"{name}: {body}")
        self.name = name


class Refuse(Exception):
    """Raised by `BusPeer.answer`: the error to answer with."""


class Silence(Exception):
    """Raised by `BusPeer.answer`: there is no answer at all."""


class BusPeer:
    """A program on the bus: calls, hears signals, and answers when it owns a name.

    One thread reads. All that others may wait for is told to `changed`. `close` and `open` again is
    that program's restart.
    """

    name = ""  # to own

    def __init__(self, bus: PrivateBus) -> None:
        self.changed = threading.Condition()
        self.signals: list[Signal] = []
        self.calls: list[str] = []  # members that were called, in order
        self.caller = ""  # of the call that `answer` answers
        self._bus = bus
        self._sending = threading.Lock()
        self._replies: dict[int, Message] = {}
        self._connection: DBusConnection | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def open(self) -> None:
        connection = DBusConnection(prep_socket(str(self._bus.socket)))
        self._connection = connection
        self._thread = threading.Thread(target=self._read, args=(connection,), daemon=True)
        self._thread.start()
        if self.name:
            self.bus_call(message_bus.RequestName(self.name))

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None or self._thread is None:
            return
        with contextlib.suppress(OSError):  # the bus may be gone
            connection.sock.shutdown(2)
        self._thread.join(WAIT_S)
        connection.close()

    @property
    def unique_name(self) -> str:
        assert self._connection is not None
        return str(self._connection.unique_name)

    # --- calling -----------------------------------------------------------------------------

    def bus_call(self, message: Message) -> Body:
        """Send a call and return what the answer carries; raises `DBusError`."""
        serial = self._send(message)
        wait_for(lambda: serial in self._replies, "an answer on the bus", self.changed)
        reply = self._replies.pop(serial)
        fields = reply.header.fields
        if reply.header.message_type is MessageType.error:
            raise DBusError(fields[HeaderFields.error_name], reply.body)
        body: Body = reply.body
        return body

    def call(
        self, to: str, path: str, interface: str, member: str, signature: str = "", *args: object
    ) -> Body:
        address = DBusAddress(path, to, interface)
        return self.bus_call(new_method_call(address, member, signature or None, args))

    def ask_bus(self, member: str, signature: str = "", *args: object) -> Body:
        """Call the bus itself."""
        name = "org.freedesktop.DBus"
        return self.call(name, "/org/freedesktop/DBus", name, member, signature, *args)

    def shout(
        self, to: str, path: str, interface: str, member: str, signature: str = "", *args: object
    ) -> int:
        """Call, and do not wait for an answer; the number is for `is_answered`."""
        address = DBusAddress(path, to, interface)
        return self._send(new_method_call(address, member, signature or None, args))

    def is_answered(self, number: int) -> bool:
        return number in self._replies

    def listen(self, rule: str) -> None:
        self.bus_call(message_bus.AddMatch(rule))

    def emit(
        self, path: str, interface: str, member: str, signature: str = "", *args: object
    ) -> None:
        self._send(new_signal(DBusAddress(path, None, interface), member, signature or None, args))

    def wait(self, condition: Callable[[], object], what: str) -> None:
        wait_for(condition, what, self.changed)

    def _send(self, message: Message, connection: DBusConnection | None = None) -> int:
        link = connection or self._connection
        assert link is not None, "not on the bus"
        with self._sending:
            serial: int = next(link.outgoing_serial)
            link.send(message, serial=serial)
        return serial

    # --- being called ------------------------------------------------------------------------

    def answer(self, member: str, args: Body) -> tuple[str, Body]:
        """What to answer; raise `Refuse` for an error, `Silence` for nothing."""
        raise Refuse(member, *args)

    def _read(self, connection: DBusConnection) -> None:
        while True:
            try:
                message = connection.receive(timeout=None)
                with self.changed:
                    self._take(message, connection)
                    self.changed.notify_all()
            except OSError:  # closed, or the bus is gone
                return

    def _take(self, message: Message, connection: DBusConnection) -> None:
        fields, kind = message.header.fields, message.header.message_type
        if kind is MessageType.method_call:
            self._answer(message, connection)
        elif kind is MessageType.signal:
            sender, *facts = (fields.get(each, "") for each in _SIGNAL_FACTS)
            signal = Signal(sender, facts[0], facts[1], facts[2], message.body)
            if signal.sender != "org.freedesktop.DBus":  # it tells everybody who they are
                self.signals.append(signal)
        else:
            self._replies[fields[HeaderFields.reply_serial]] = message

    def _answer(self, call: Message, connection: DBusConnection) -> None:
        member = call.header.fields[HeaderFields.member]
        self.calls.append(member)
        self.caller = call.header.fields[HeaderFields.sender]
        try:
            signature, body = self.answer(member, call.body)
        except Silence:
            return
        except Refuse as refuse:
            reply = new_error(call, "org.freedesktop.DBus.Error.Failed", "s", (str(refuse),))
        else:
            reply = new_method_return(call, signature or None, body)
        if not call.header.flags & MessageFlag.no_reply_expected:
            self._send(reply, connection)


_SIGNAL_FACTS = (
    HeaderFields.sender,
    HeaderFields.path,
    HeaderFields.interface,
    HeaderFields.member,
)


def settle(peer: BusPeer) -> None:
    """Return when all that was on its way to this peer has arrived: the bus keeps the order."""
    peer.bus_call(message_bus.GetId())


def now_ms() -> int:
    """A time stamp as hosts send it."""
    return int(time.monotonic() * 1000) & 0x7FFFFFFF
