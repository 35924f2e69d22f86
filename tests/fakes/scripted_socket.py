"""A server on a UNIX socket that says exactly what a test wrote down, right or wrong."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

DEADLINE_S = 20.0

Script = Callable[[socket.socket], None]


@contextmanager
def scripted(path: Path, script: Script, *, calls: Script | None = None) -> Iterator[list[bytes]]:
    """Answer each connection by `script`, then close it; the requests' bytes come in the list.

    Connections are served side by side, each in a thread of its own. With `calls`, that answers
    all but the stream of events.
    """
    requests: list[bytes] = []
    served: list[threading.Thread] = []
    path.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        door = threading.Thread(
            target=_accept, args=(listener, (script, calls or script), requests, served)
        )
        door.start()
        try:
            yield requests
        finally:
            listener.shutdown(socket.SHUT_RDWR)  # wakes the accept
            door.join(DEADLINE_S)
            for thread in served:
                thread.join(DEADLINE_S)
            path.unlink()
    assert not any(thread.is_alive() for thread in served), "a script has not ended"


def _accept(
    listener: socket.socket,
    scripts: tuple[Script, Script],
    requests: list[bytes],
    served: list[threading.Thread],
) -> None:
    while True:
        try:
            peer, _ = listener.accept()
        except OSError:
            return
        thread = threading.Thread(target=_serve, args=(peer, scripts, requests))
        served.append(thread)
        thread.start()


def _serve(peer: socket.socket, scripts: tuple[Script, Script], requests: list[bytes]) -> None:
    with peer:
        peer.settimeout(DEADLINE_S)
        with contextlib.suppress(OSError):  # a client that leaves is not the script's fault
            request = _request(peer)
            requests.append(request)
            for_events, for_calls = scripts
            (for_events if request.startswith(b"GET /events") else for_calls)(peer)


def _request(peer: socket.socket) -> bytes:
    """The head and, by its length, the body."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = peer.recv(65536)
        if not piece:
            return data
        data += piece
    head, body = data.split(b"\r\n\r\n", 1)
    _, found, rest = head.partition(b"Content-Length: ")
    length = int(rest.split(b"\r\n")[0]) if found else 0
    while len(body) < length:
        body += peer.recv(65536)
    return head + b"\r\n\r\n" + body


def says(*pieces: bytes) -> Script:
    """Send these, then close."""

    def script(peer: socket.socket) -> None:
        for piece in pieces:
            peer.sendall(piece)

    return script


def silent(peer: socket.socket) -> None:
    """Say nothing until the client leaves."""
    while peer.recv(65536):
        pass


def answer(body: bytes, status: str = "200 OK") -> bytes:
    """An ordinary answer with a length."""
    return b"HTTP/1.1 %b\r\ncontent-length: %d\r\n\r\n%b" % (status.encode(), len(body), body)


STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)


def chunk(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(body), body)


def event(json_text: bytes) -> bytes:
    """One event, in a chunk of its own."""
    return chunk(b"data: " + json_text + b"\n\n")
