"""A control socket that says what a test wants, as fast as it wants; no daemon behind it.

``with ScriptedControl(home, status) as control:`` listens where the daemon of `home` would. Its
answers are those of the daemon's own schemas.
"""

from __future__ import annotations

import contextlib
import queue
import socketserver
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from stoker import paths
from stoker.schemas import Event, Goodbye, Snapshot, StatusView

LISTEN_STEP_S = 0.05


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that came."""

    method: str
    target: str
    body: bytes


class ScriptedControl:
    """See the module. A new stream gets `status` as its snapshot, then what is published."""

    def __init__(self, home: Path, status: StatusView) -> None:
        self.status = status
        self.asked: list[Asked] = []
        self._streams: list[queue.SimpleQueue[bytes]] = []
        self._lock = threading.Lock()
        found = paths.from_environment({"STOKER_HOME": str(home)})
        found.create()
        self._socket = found.control_socket
        self._socket.unlink(missing_ok=True)
        self._server = _Server(str(self._socket), self)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(LISTEN_STEP_S,), name="control"
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self.publish(Goodbye())
        self._put(b"")
        self._thread.join()
        self._server.server_close()  # joins the requests' threads
        self._socket.unlink(missing_ok=True)

    @property
    def watchers(self) -> int:
        """Streams that are open."""
        with self._lock:
            return len(self._streams)

    def become(self, status: StatusView) -> None:
        """From now on this is the status; tell every stream."""
        self.status = status
        self.publish(Snapshot(status=status))

    def publish(self, *events: Event) -> None:
        """Send these to every stream."""
        for event in events:
            self.publish_text(event.model_dump_json())

    def publish_text(self, text: str) -> None:
        """Send this as an event's text, whatever it is."""
        self._put(b"data: " + text.encode() + b"\n\n")

    def asked_for(self, target: str) -> int:
        """How often it was asked."""
        return sum(one.target.split("?")[0] == target for one in self.asked)

    def _put(self, line: bytes) -> None:
        with self._lock:
            for stream in self._streams:
                stream.put(line)

    @contextlib.contextmanager
    def _stream(self) -> Any:
        stream: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        with self._lock:
            self._streams.append(stream)
        try:
            yield stream
        finally:
            with self._lock:
                self._streams.remove(stream)


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = False
    block_on_close = True

    def __init__(self, address: str, control: ScriptedControl) -> None:
        self.control = control
        super().__init__(address, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no fault."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        self._note()
        target = self.path.split("?")[0]
        if target == "/events":
            self._events()
        elif target == "/status":
            self._answer(200, self.server.control.status.model_dump_json().encode())
        elif target == "/catalogue":
            self._answer(200, b"[]")
        else:
            self._answer(404, b"{}")

    def do_POST(self) -> None:
        self._note()
        self._answer(200, b'{"done": true}')

    def _note(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        self.server.control.asked.append(Asked(self.command, self.path, body))

    def _events(self) -> None:
        with self.server.control._stream() as stream:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            snapshot = Snapshot(status=self.server.control.status).model_dump_json().encode()
            line = b"data: " + snapshot + b"\n\n"
            while line:
                self.wfile.write(b"%x\r\n%b\r\n" % (len(line), line))
                line = stream.get()
            self.wfile.write(b"0\r\n\r\n")
        self.close_connection = True

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base's name
        pass
