"""The connection to the bus: where it is, what is dropped, and a bus that misbehaves."""

from __future__ import annotations

import itertools
import select
import socket
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest
from jeepney import (
    DBusAddress,
    Message,
    MessageType,
    Parser,
    new_error,
    new_method_call,
    new_method_return,
    new_signal,
)

from stoker_tray.adapters import sni
from stoker_tray.adapters.session_bus import (
    MESSAGE_LIMIT,
    BusGone,
    SessionBus,
    body,
    bus_sockets,
    failure,
)
from stoker_tray.adapters.sni import SniShell
from tests.fakes.tray_listener import RecordingListener, StandInIcons, face, running

PING = new_method_call(DBusAddress("/", "a.b", "a.b"), "Ping")
WAIT_S = 30.0


class Bus:
    """The other end: lets in who comes, in the same thread, and sends what a test says."""

    def __init__(self, folder: Path) -> None:
        self.environ = {"DBUS_SESSION_BUS_ADDRESS": f"unix:path={folder}/bus"}
        self.parser = Parser()
        self._serials = itertools.count(1)
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(f"{folder}/bus")
        self._server.listen()
        self.link: socket.socket | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.close()
        if self.link is not None:
            self.link.close()

    def accept(self) -> socket.socket:
        self._server.settimeout(WAIT_S)
        self.link, _ = self._server.accept()
        self.link.settimeout(WAIT_S)
        return self.link

    def hang_up(self) -> None:
        assert self.link is not None
        self.link.close()

    def send(self, data: bytes) -> None:
        assert self.link is not None
        self.link.sendall(data)

    def say(self, message: Message) -> None:
        self.send(message.serialise(serial=next(self._serials)))

    def hear(self) -> Message:
        """The next message from the client."""
        assert self.link is not None
        while (message := self.parser.get_next_message()) is None:
            self.parser.add_data(self.link.recv(65536))
        return message


def read(client: SessionBus) -> list[Message]:
    """Wait for something, and take it as the tray's loop does."""
    assert select.select([client], [], [], WAIT_S)[0], "nothing came"
    client.flush()
    return [message for message in client.read() if not client.settle(message)]


@pytest.fixture
def bus() -> Iterator[Bus]:
    with tempfile.TemporaryDirectory(prefix="st-", dir="/tmp") as folder, Bus(Path(folder)) as bus:
        yield bus


@pytest.fixture
def client(bus: Bus) -> Iterator[SessionBus]:
    """A connection that the bus has let in."""
    with SessionBus(bus.environ) as found:
        link = bus.accept()
        link.recv(1024)
        bus.send(b"OK 1234\r\n")
        read(found)
        begin = link.recv(len(b"BEGIN\r\n"))
        assert begin == b"BEGIN\r\n"
        bus.say(new_method_return(with_serial(bus.hear()), "s", (":1.7",)))
        read(found)
        yield found


def with_serial(message: Message) -> Message:
    assert message.header.serial > 0
    return message


# --- addresses -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "runtime_dir", "expected"),
    [
        ("unix:path=/run/user/7/bus", "/run/user/7", [b"/run/user/7/bus"]),
        ("unix:path=/a/bus,guid=12ab", None, [b"/a/bus"]),
        ("unix:abstract=/tmp/x,guid=1", None, [b"\0/tmp/x"]),
        ("unix:path=/with%20space/%c3%a9", None, ["/with space/é".encode()]),
        ("tcp:host=1.2.3.4,port=5;unix:path=/b;unix:path=/c", None, [b"/b", b"/c"]),
        ("unix:runtime=yes", "/run/user/7", [b"/run/user/7/bus"]),
        ("unix:runtime=yes", None, []),
        (None, "/run/user/7", [b"/run/user/7/bus"]),
        ("", "/run/user/7", [b"/run/user/7/bus"]),
        ("autolaunch:", "/run/user/7", [b"/run/user/7/bus"]),
        ("nonsense", "/run/user/7", [b"/run/user/7/bus"]),
        (";;,=,:=;unix:;unix:path", "", []),
        (None, None, []),
    ],
)
def test_where_the_bus_may_be(
    address: str | None, runtime_dir: str | None, expected: list[bytes]
) -> None:
    environ = {"DBUS_SESSION_BUS_ADDRESS": address, "XDG_RUNTIME_DIR": runtime_dir}

    found = bus_sockets({name: text for name, text in environ.items() if text is not None})

    assert found == expected


@pytest.mark.parametrize(
    "place", ["unix:path=/nowhere/bus", "unix:path=" + "x" * 500, "unix:path=/a%00b", "tcp:x=y"]
)
def test_no_bus_is_no_more_than_that(place: str) -> None:
    with pytest.raises(BusGone):
        SessionBus({"DBUS_SESSION_BUS_ADDRESS": place})


def test_the_first_address_that_answers_is_taken(bus: Bus) -> None:
    second = bus.environ["DBUS_SESSION_BUS_ADDRESS"]
    environ = {"DBUS_SESSION_BUS_ADDRESS": f"unix:path=/nowhere;{second}"}

    with SessionBus(environ):
        assert bus.accept().recv(5) == b"\0AUTH"


# --- messages --------------------------------------------------------------------------------


def test_the_bus_gives_it_a_name(client: SessionBus) -> None:
    assert client.name == ":1.7"


def test_what_comes_in_pieces_is_one_message(client: SessionBus, bus: Bus) -> None:
    data = PING.serialise(serial=9)

    bus.send(data[:10])
    first = read(client)
    bus.send(data[10:])

    assert (first, len(read(client))) == ([], 1)


def test_an_answer_goes_to_who_asked(client: SessionBus, bus: Bus) -> None:
    answers: list[object] = []
    client.call(DBusAddress("/", "a.b", "a.b"), "Ask", answered=answers.append)
    client.call(DBusAddress("/", "a.b", "a.b"), "Fail", answered=answers.append)

    bus.say(new_method_return(bus.hear(), "s", ("yes",)))
    bus.say(new_error(bus.hear(), "a.b.Error", "s", ("no",)))
    others: list[Message] = []
    while len(answers) < 2:
        others += read(client)

    reply, error = answers
    assert (body(reply, "s"), body(reply, "u"), failure(reply)) == (("yes",), None, "")
    assert (body(error, "s"), failure(error), others) == (None, "a.b.Error", [])


def test_an_answer_that_nobody_asked_for_is_dropped(client: SessionBus, bus: Bus) -> None:
    stray = new_method_return(PING, "s", ("?",))
    stray.header.fields[5] = 4711

    bus.say(stray)

    assert read(client) == []


def test_answers_that_never_come_take_no_memory(client: SessionBus) -> None:
    for _ in range(1000):
        client.call(DBusAddress("/", "a.b", "a.b"), "Ask", answered=lambda _reply: None)

    assert len(client._waiting) <= 64


def test_a_message_too_large_is_skipped_and_the_next_one_is_read(
    client: SessionBus, bus: Bus
) -> None:
    huge = new_signal(DBusAddress("/", None, "a.b"), "Huge", "s", ("x" * MESSAGE_LIMIT,))

    data = huge.serialise(serial=1) + PING.serialise(serial=2)
    found: list[Message] = []
    for start in range(0, len(data), 1 << 15):
        bus.send(data[start : start + (1 << 15)])
        found += read(client)

    assert [message.header.serial for message in found] == [2]


def _malformed() -> Iterator[bytes]:
    good = bytearray(PING.serialise(serial=1))
    for place, value in ((1, 0), (1, 99), (3, 77), (16, 200), (18, 0x7A), (24, 0xFF)):
        bad = bytearray(good)
        bad[place] = value
        yield bytes(bad)
    text = new_signal(DBusAddress("/", None, "a.b"), "S", "s", ("abcd",)).serialise(serial=1)
    yield text.replace(b"abcd\0", b"\xff\xfe\xfd\xfc\0")
    yield text.replace(b"abcd\0", b"abcdZ")


@pytest.mark.parametrize("data", list(_malformed()))
def test_a_malformed_message_harms_no_other(data: bytes, client: SessionBus, bus: Bus) -> None:
    bus.send(data + PING.serialise(serial=2))
    found: list[Message] = []
    while not found or found[-1].header.serial != 2:
        found += read(client)

    assert found[-1].header.message_type is MessageType.method_call


@pytest.mark.parametrize(
    "garbage",
    [b"\xff" * 64, b"HTTP/1.1 400 Bad Request\r\n\r\n", struct.pack("<4I", 0x6C, 1 << 30, 1, 0)],
)
def test_what_is_no_message_ends_the_connection(
    garbage: bytes, client: SessionBus, bus: Bus
) -> None:
    bus.send(garbage)

    with pytest.raises(BusGone):
        read(client)


def test_a_closed_bus_is_gone(client: SessionBus, bus: Bus) -> None:
    bus.hang_up()

    with pytest.raises(BusGone):
        read(client)


def test_sending_to_a_bus_that_is_gone_is_found_out_later(client: SessionBus, bus: Bus) -> None:
    bus.hang_up()
    for _ in range(3):
        client.signal("/", "a.b", "Changed")

    with pytest.raises(BusGone):
        client.flush()


def test_a_bus_that_reads_nothing_holds_nobody_up_and_is_given_up(client: SessionBus) -> None:
    piece = "x" * 100_000

    for _ in range(20):
        client.signal("/", "a.b", "Changed", "s", (piece,))
    assert (client.wants_to_write, client.wants_to_read) == (True, False)
    for _ in range(40):
        client.signal("/", "a.b", "Changed", "s", (piece,))

    with pytest.raises(BusGone):
        client.flush()


# --- a bus that never lets us in -------------------------------------------------------------


def _rejects(bus: Bus) -> None:
    bus.send(b"REJECTED DBUS_COOKIE_SHA1\r\n")


def _talks_nonsense(bus: Bus) -> None:
    bus.send(bytes(range(256)) + b"\r\n")


def _never_ends_its_line(bus: Bus) -> None:
    bus.send(b"x" * 10_000)


def _closes(bus: Bus) -> None:
    bus.hang_up()


def _refuses_hello(bus: Bus) -> None:
    bus.send(b"OK 1234\r\n")
    assert bus.link is not None
    while not bus.parser.buf.bytes_buffered:
        data = bus.link.recv(65536)
        assert data, "it has left"
        bus.parser.add_data(data.partition(b"BEGIN\r\n")[2])
    bus.say(new_error(bus.hear(), "org.freedesktop.DBus.Error.LimitsExceeded", "s", ("full",)))


def _says_nothing(bus: Bus) -> None:
    assert bus.link is not None
    while bus.link.recv(65536):  # until it has had enough
        pass


@pytest.mark.parametrize(
    "misbehave",
    [_rejects, _talks_nonsense, _never_ends_its_line, _closes, _refuses_hello, _says_nothing],
)
def test_a_bus_that_never_lets_us_in_is_tried_again_and_again(
    misbehave: Callable[[Bus], None], bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sni, "WELCOME_S", 0.05 if misbehave is _says_nothing else WAIT_S)
    listener = RecordingListener()
    shell = SniShell(listener, draw=StandInIcons(), environ=bus.environ, first_pause_s=0.01)

    with running(shell):
        shell.show(face())
        for _ in range(3):
            with closing(bus.accept()) as link:
                link.recv(1024)
                misbehave(bus)
                link.close()
                bus.parser = Parser()

    assert listener.sights == ["unseen"]
