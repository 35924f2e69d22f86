"""The tray's HTTP: right answers are read however they come, and wrong ones are a StokerError."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker import errors
from stoker_tray import wire
from stoker_tray.answer import BODY_BYTES, HEAD_BYTES, Answer, EventParser
from tests.fakes.scripted_socket import (
    STREAM_HEAD,
    answer,
    chunk,
    event,
    says,
    scripted,
    silent,
)

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no UNIX sockets")

ANSWER_S = 20.0  # nothing here takes so long
IS_ROOT = hasattr(os, "getuid") and os.getuid() == 0
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    b'5;name="v;w"\r\n{"a":\r\n0A\r\n [1, 2.5]}\r\n0;last\r\nX-After: 1\r\n\r\n'
)
SIZED = b'HTTP/1.1 200 OK\r\ncontent-length: 15\r\n\r\n{"a": [1, 2.5]}'
UNSIZED = b'HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{"a": [1, 2.5]}'
INFORMED = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + SIZED
SAID = {"a": [1, 2.5]}


@pytest.fixture
def path(stoker_home: Path) -> Path:
    return stoker_home / "control.sock"


def get(path: Path, timeout_s: float = ANSWER_S) -> object:
    return wire.call(path, "GET", "/status", None, timeout_s)


# --- one call --------------------------------------------------------------------------------


@pytest.mark.parametrize("whole", [CHUNKED, SIZED, UNSIZED, INFORMED])
def test_an_answer_is_parsed_however_it_is_sent(path: Path, whole: bytes) -> None:
    """In one piece, or byte by byte."""
    with scripted(path, says(whole)):
        assert get(path) == SAID
    with scripted(path, says(*(whole[n : n + 1] for n in range(len(whole))))):
        assert get(path) == SAID


def test_a_request_says_what_the_daemon_needs(path: Path) -> None:
    """A body has a type and a length; the connection is for this call only."""
    with scripted(path, says(answer(b"{}"))) as requests:
        wire.call(path, "POST", "/use", {"model": "größe"}, ANSWER_S)
        wire.call(path, "POST", "/free", None, ANSWER_S)
        wire.call(path, "GET", "/status", None, ANSWER_S)

    head, body = requests[0].split(b"\r\n\r\n")
    assert head.split(b"\r\n")[0] == b"POST /use HTTP/1.1"
    assert b"Content-Type: application/json" in head
    assert b"Connection: close" in head
    assert json.loads(body) == {"model": "größe"}
    assert b"Content-Length: 0" in requests[1]
    assert b"Content-" not in requests[2]


@pytest.mark.parametrize("whole", [CHUNKED, SIZED, INFORMED])
def test_an_answer_that_is_cut_is_an_error(path: Path, whole: bytes) -> None:
    """Wherever the connection ends before the answer does."""
    for length in range(len(whole)):
        with scripted(path, says(whole[:length])), pytest.raises(errors.DaemonNotRunning):
            get(path)


WRONG = {
    "not HTTP": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    "another HTTP": b"HTTP/2 200\r\n\r\n{}",
    "no status": b"HTTP/1.1 OK\r\n\r\n{}",
    "a long status": b"HTTP/1.1 2000 OK\r\n\r\n{}",
    "a signed status": b"HTTP/1.1 +20 OK\r\n\r\n{}",
    "no JSON": answer(b"<html>"),
    "nothing": answer(b""),
    "no content": b"HTTP/1.1 204 No Content\r\n\r\n",
    "half a JSON": answer(b'{"a":'),
    "not UTF-8": answer(b'{"a": "\xff\xfe"}'),
    "no number": answer(b'{"a": NaN}'),
    "a number of 5000 digits": answer(b"9" * 5000),
    "a deep JSON": answer(b"[" * 100_000),
    "a folded header": b"HTTP/1.1 200 OK\r\nA: 1\r\n  2\r\nContent-Length: 2\r\n\r\n{}",
    "a space before the colon": b"HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\n{}",
    "a header without a name": b"HTTP/1.1 200 OK\r\n: 2\r\n\r\n{}",
    "no header": b"HTTP/1.1 200 OK\r\nhello\r\n\r\n{}",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "a length and chunks": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "another coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
    "a negative length": b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\n{}",
    "a length of letters": b"HTTP/1.1 200 OK\r\nContent-Length: two\r\n\r\n{}",
    "a length in other digits": "HTTP/1.1 200 OK\r\nContent-Length: ٢\r\n\r\n{}".encode(),
    "an endless length": b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 40 + b"\r\n\r\n{}",
    "an endless head": b"HTTP/1.1 200 OK\r\nA: " + b"a" * 2 * HEAD_BYTES,
    "endless heads": b"HTTP/1.1 100 Continue\r\n\r\n" * HEAD_BYTES,
    "an endless trailer": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
    + b"A: b\r\n" * HEAD_BYTES,
    "an endless body": b"HTTP/1.1 200 OK\r\n\r\n" + b" " * (BODY_BYTES + 1),
    "an endless chunk size": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"0" * 4096,
    "an endless extension": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;"
    + b"a" * 4096,
    "a negative chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n{}",
    "a chunk in Python's digits": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0x2\r\n{}",
    "a chunk of nothing": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\r\n{}",
    "a chunk that is too long": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"2\r\n{}}\r\n0\r\n\r\n",
    "a failure without a reason": answer(b"oops", "500 Internal Server Error"),
    "a failure that is a list": answer(b"[]", "500 Internal Server Error"),
    "a failure of the wrong types": answer(b'{"code":1,"message":2,"hint":3}', "500 Error"),
}


@pytest.mark.parametrize("whole", WRONG.values(), ids=WRONG)
def test_an_answer_that_makes_no_sense_is_an_error(path: Path, whole: bytes) -> None:
    """It is the daemon's fault, and says so; nothing is guessed."""
    with scripted(path, says(whole)), pytest.raises(errors.DaemonError) as caught:
        get(path)

    assert caught.value.code == "daemon_error"
    assert caught.value.hint


def test_what_the_daemon_reports_is_raised_as_its_own_class(path: Path) -> None:
    view = {"code": "memory_short", "message": "m", "hint": "h", "facts": {"bytes": 1}}
    body = json.dumps(view).encode()

    with (
        scripted(path, says(answer(body, "507 Insufficient Storage"))),
        pytest.raises(errors.MemoryShort) as caught,
    ):
        get(path)

    assert (caught.value.message, caught.value.hint, caught.value.facts) == ("m", "h", {"bytes": 1})


def test_no_daemon_is_told_as_such(path: Path) -> None:
    """No socket, a file in its place, a dead daemon's socket, a path no socket can have."""
    with pytest.raises(errors.DaemonNotRunning):
        get(path)

    path.write_bytes(b"")
    with pytest.raises(errors.DaemonNotRunning):
        get(path)

    path.unlink()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(errors.DaemonNotRunning):
        get(path)
    with pytest.raises(errors.DaemonNotRunning):
        get(path / ("x" * 200))


def test_a_silent_daemon_is_given_up_by_the_deadline(path: Path) -> None:
    with scripted(path, silent), pytest.raises(errors.DaemonNotReady, match=r"0\.05 s"):
        get(path, 0.05)


def test_a_dribbling_daemon_does_not_move_the_deadline(path: Path) -> None:
    """It sends a byte of its head again and again, and never comes to an end."""

    def dribble(peer: socket.socket) -> None:
        peer.sendall(b"HTTP/1.1 200 OK\r\nA: ")
        while True:
            peer.sendall(b"a")
            time.sleep(0.005)

    with scripted(path, dribble), pytest.raises(errors.DaemonNotReady):
        get(path, 0.1)


def test_a_daemon_whose_backlog_is_full_is_not_waited_for(path: Path) -> None:
    """A stopped process still has its socket; the kernel's queue is all that answers."""
    with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as stack:
        listener.bind(str(path))
        listener.listen(0)
        with contextlib.suppress(errors.DaemonNotReady):
            for _ in range(8):
                stack.enter_context(wire.EventStream(path))

        with pytest.raises(errors.DaemonNotReady, match="busy"):
            get(path)


def test_a_call_can_be_ended_from_another_thread(path: Path) -> None:
    """Before it begins as well as in its middle."""
    asked, hangup = threading.Event(), wire.Hangup()

    def wait(peer: socket.socket) -> None:
        asked.set()
        silent(peer)

    def end() -> None:
        assert asked.wait(ANSWER_S)
        hangup()

    thread = threading.Thread(target=end)
    thread.start()
    with scripted(path, wait) as requests:
        with pytest.raises(errors.DaemonNotRunning):
            wire.call(path, "GET", "/status", hangup=hangup)
        thread.join()
        with pytest.raises(errors.DaemonNotRunning):
            wire.call(path, "GET", "/status", hangup=hangup)
    hangup()

    assert [request for request in requests if request] == requests[:1]


LISTEN_AS = """
import os, socket, sys
listener = socket.socket(socket.AF_UNIX)
os.umask(0)
listener.bind(sys.argv[1])
os.setgroups([]); os.setgid(65534); os.setuid(65534)
listener.listen()
print(flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(
    not hasattr(os, "getuid") or os.getuid() != 0, reason="only root becomes others"
)
def test_the_socket_of_another_user_is_no_daemon(path: Path) -> None:
    """Whoever listens there could show anything, and would be told what the user clicks."""
    command = [sys.executable, "-I", "-c", LISTEN_AS, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()

        with pytest.raises(errors.DaemonNotRunning, match="another user"):
            get(path)
        with pytest.raises(errors.DaemonNotRunning, match="another user"):
            wire.EventStream(path)


# --- the events ------------------------------------------------------------------------------


def read_until_end(path: Path) -> tuple[list[dict[str, Any]], list[int], errors.StokerError]:
    """All events, how many each read gave, and what ended the stream."""
    events: list[dict[str, Any]] = []
    reads: list[int] = []
    deadline = time.monotonic() + ANSWER_S
    with wire.EventStream(path) as stream:
        while time.monotonic() < deadline:
            select.select([stream], [], [], ANSWER_S)
            try:
                new = stream.read()
            except errors.StokerError as error:
                return events, reads, error
            reads.append(len(new))
            events += new
    raise AssertionError("the stream has no end")


EVENTS = (
    STREAM_HEAD
    + event(b'{"type": "snapshot", "n": 1}')
    + chunk(b": ping\n\n")
    + chunk(b'data: {"type":\r\n')
    + chunk(b'data: "model"}\r\n\r\n')
    + chunk(b'id: 3\nevent: x\ndata:{"type": "pull"}\n\n\ndata: {"type"')
    + chunk(b': "goodbye"}\n\n')
    + b"0\r\n\r\n"
)
TYPES = ["snapshot", "model", "pull", "goodbye"]


def test_events_are_read_however_they_come(path: Path) -> None:
    """In one piece or byte by byte; comments and other fields are no events."""
    for pieces in ([EVENTS], [EVENTS[n : n + 1] for n in range(len(EVENTS))]):
        with scripted(path, says(*pieces)) as requests:
            events, _, error = read_until_end(path)

        assert [found["type"] for found in events] == TYPES
        assert isinstance(error, errors.DaemonNotRunning)
        assert requests[0].startswith(b"GET /events?resources=false HTTP/1.1\r\n")


def test_a_stream_that_is_cut_gives_what_came_and_then_an_error(path: Path) -> None:
    """At every byte; half an event is none."""
    for length in range(len(EVENTS)):
        with scripted(path, says(EVENTS[:length])):
            events, _, error = read_until_end(path)

        assert [found["type"] for found in events] == TYPES[: len(events)]
        assert isinstance(error, errors.DaemonNotRunning)


def test_reading_never_waits(path: Path) -> None:
    """Also when the daemon has taken the connection and says nothing."""
    with scripted(path, silent), wire.EventStream(path) as stream:
        assert [stream.read(), stream.read()] == [[], []]


@pytest.mark.parametrize("body", [b"[]", b'"x"', b"{", b"\xff", b'{"a": Infinity}'], ids=str)
def test_an_event_that_makes_no_sense_ends_the_stream(path: Path, body: bytes) -> None:
    with scripted(path, says(STREAM_HEAD + event(body) + event(b"{}"))):
        events, _, error = read_until_end(path)

    assert events == []
    assert error.code == "daemon_error"


def test_an_endless_event_ends_the_stream(path: Path) -> None:
    """In one line or in many: memory is bounded."""
    for text in (b"data: " + b" " * BODY_BYTES, b"data: 1234567\n" * (BODY_BYTES // 8)):
        with scripted(path, says(STREAM_HEAD, chunk(text))):
            assert read_until_end(path)[-1].code == "daemon_error"


def test_a_refusal_instead_of_a_stream_is_raised(path: Path) -> None:
    body = b'{"code": "shutting_down", "message": "m", "hint": "h"}'

    with scripted(path, says(answer(body, "503 Service Unavailable"))):
        events, _, error = read_until_end(path)

    assert (events, type(error)) == ([], errors.ShuttingDown)


def test_a_flood_leaves_time_for_others(path: Path) -> None:
    """One read takes a part of what has come; nothing is lost."""
    count = 40_000
    flood = event(b'{"type": "model", "text": "' + b"x" * 100 + b'"}') * count

    with scripted(path, says(STREAM_HEAD, flood)):
        events, reads, _ = read_until_end(path)

    assert len(events) == count
    assert max(reads) < count / 2


# --- any bytes -------------------------------------------------------------------------------

NOISE = st.lists(
    st.sampled_from(
        [
            *(b"HTTP/1.1 200 OK", b"HTTP/1.1 100 x", b"Transfer-Encoding: chunked"),
            *(b"Content-Length: ", b"0", b"5", b"f", b";", b" ", b"data: ", b"{}"),
            *(b"\r\n", b"\r\n\r\n", b"\n\n", b"\n"),
        ]
    )
    | st.binary(max_size=8)
).map(b"".join)


@given(noise=NOISE, cuts=st.lists(st.integers(0, 200)))
def test_any_bytes_in_any_pieces_are_a_body_or_a_stoker_error(
    noise: bytes, cuts: list[int]
) -> None:
    """Neither a traceback nor another meaning by other cuts."""
    assert _meaning(_cut(noise, cuts)) == _meaning([noise])


@given(sizes=st.lists(st.integers(1, 30), max_size=6), cuts=st.lists(st.integers(0, 400)))
def test_chunks_of_any_size_in_any_pieces_are_the_body(sizes: list[int], cuts: list[int]) -> None:
    body = bytes(range(256))[: sum(sizes)]
    starts = [sum(sizes[:n]) for n in range(len(sizes))]
    chunks = [chunk(body[start : start + size]) for start, size in zip(starts, sizes, strict=True)]
    whole = STREAM_HEAD + b"".join(chunks) + b"0\r\n\r\nafter"

    assert _meaning(_cut(whole, cuts)) == (body, True)


def _cut(whole: bytes, cuts: list[int]) -> Iterator[bytes]:
    places = [0, *sorted(cut for cut in cuts if cut < len(whole)), len(whole)]
    return (whole[begin:end] for begin, end in itertools.pairwise(places))


def _meaning(pieces: Iterator[bytes] | list[bytes]) -> tuple[bytes, bool] | str:
    parser, body = Answer(), b""
    try:
        for piece in pieces:
            body += parser.feed(piece)
    except errors.StokerError as error:
        return error.code
    return body, parser.complete


@given(text=NOISE, cuts=st.lists(st.integers(0, 200)))
def test_any_text_in_any_pieces_is_events_or_a_stoker_error(text: bytes, cuts: list[int]) -> None:
    def found(pieces: Iterator[bytes] | list[bytes]) -> list[dict[str, Any]] | str:
        parser = EventParser()
        try:
            return [event for piece in pieces for event in parser.feed(piece)]
        except errors.StokerError as error:
            return error.code

    assert found(_cut(text, cuts)) == found([text])
