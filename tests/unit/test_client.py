from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stoker import client as client_module
from stoker import errors, paths
from stoker.client import StokerClient
from stoker.paths import Paths
from stoker.schemas import Snapshot, StatusView

STATUS = {
    "daemon": {"version": "9.9.9", "pid": 1, "uptime_s": 1.5, "home": "/h"},
    "server": {"enabled": True, "base_url": "http://127.0.0.1:4328/v1"},
    "models": [],
    "resources": {"cpu_percent": 0, "ram_used_bytes": 1, "ram_total_bytes": 2},
    "field_of_a_newer_daemon": 1,
}
SNAPSHOT = {"type": "snapshot", "status": STATUS}


@pytest.fixture
def places(stoker_home: Path) -> Paths:
    found = paths.from_environment()
    found.create()
    return found


class CannedDaemon:
    """Answers each connection with the next of its answers, byte for byte, and hangs up."""

    def __init__(self, path: Path, answers: list[bytes | None]) -> None:
        self.requests: list[bytes] = []
        self._answers = answers
        self._done = threading.Event()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        for answer in self._answers:
            peer, _ = self._listener.accept()
            with peer:
                request = b""
                while b"\r\n\r\n" not in request:
                    request += peer.recv(65536)
                head, _, body = request.partition(b"\r\n\r\n")
                length = _content_length(head)
                while len(body) < length:
                    body += peer.recv(65536)
                self.requests.append(head + b"\r\n\r\n" + body)
                if answer is None:
                    self._done.wait(30)
                else:
                    peer.sendall(answer)

    def close(self) -> None:
        self._done.set()
        self._thread.join(10)
        self._listener.close()


def _content_length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.split(b":")[1])
    return 0


@contextmanager
def canned(places: Paths, *answers: bytes | None) -> Iterator[CannedDaemon]:
    daemon = CannedDaemon(places.control_socket, list(answers))
    try:
        yield daemon
    finally:
        daemon.close()
        places.control_socket.unlink()


def answer(body: object, status: int = 200, *, version: str = "9.9.9") -> bytes:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = (
        f"HTTP/1.1 {status} X\r\nX-Stoker-Version: {version}\r\nContent-Length: {len(raw)}\r\n\r\n"
    )
    return head.encode() + raw


def stream(*lines: str, ended: bool = True) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks = [f"{len(line.encode()):x}\r\n{line}\r\n".encode() for line in lines]
    return head + b"".join(chunks) + (b"0\r\n\r\n" if ended else b"")


def test_without_a_socket_the_daemon_is_not_running(places: Paths) -> None:
    with StokerClient(places) as client, pytest.raises(errors.DaemonNotRunning) as caught:
        client.status()

    assert caught.value.message == "Stoker is not running"
    assert "stoker start" in caught.value.hint


def test_a_dead_daemons_socket_means_not_running(places: Paths) -> None:
    with canned(places, None) as daemon:
        daemon._done.set()
        with StokerClient(places) as client, pytest.raises(errors.DaemonNotRunning):
            client.status()
        daemon.close()

        with StokerClient(places) as client, pytest.raises(errors.DaemonNotRunning) as caught:
            client.status()

    assert caught.value.message == "Stoker is not running"


def test_a_reported_error_keeps_its_class_hint_and_facts(places: Paths) -> None:
    view = {
        "code": "model_not_found",
        "message": "no model x",
        "hint": "Did you mean y?",
        "facts": {"available": ["y"]},
    }
    with (
        canned(places, answer(view, 404)),
        StokerClient(places) as client,
        pytest.raises(errors.UnknownModel) as caught,
    ):
        client.model("x")

    assert (caught.value.message, caught.value.hint) == ("no model x", "Did you mean y?")
    assert caught.value.facts["available"] == ["y"]


def test_an_error_of_a_newer_daemon_is_still_an_error(places: Paths) -> None:
    view = {"code": "brand_new", "message": "m", "hint": "h"}
    with (
        canned(places, answer(view, 418)),
        StokerClient(places) as client,
        pytest.raises(errors.StokerError) as caught,
    ):
        client.load("x")

    assert caught.value.message == "m"


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        (answer(b"<html>", 502), errors.DaemonError),
        (answer(b"not json"), errors.DaemonError),
        (answer({"daemon": 3}), errors.DaemonError),
        (b"", errors.DaemonNotRunning),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", errors.DaemonNotRunning),
        (b"rubbish\r\n\r\n", errors.DaemonNotRunning),
    ],
)
def test_answers_that_are_none(places: Paths, raw: bytes, kind: type[errors.StokerError]) -> None:
    """Whatever comes back, the caller sees one of our errors."""
    with canned(places, raw), StokerClient(places) as client, pytest.raises(kind):
        client.status()


def test_a_silent_daemon_is_given_up(places: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "EVENT_S", 0.05)
    with (
        canned(places, None),
        StokerClient(places) as client,
        pytest.raises(errors.DaemonNotReady, match="no answer within"),
    ):
        list(client.events())


def test_the_version_of_the_daemon_is_known_after_a_call(places: Paths) -> None:
    error = answer({"code": "x", "message": "m", "hint": "h"}, 400, version="10.0.0")
    with canned(places, answer(STATUS), error), StokerClient(places) as client:
        assert client.daemon_version is None

        view = client.status()
        assert client.daemon_version == "9.9.9"
        with pytest.raises(errors.StokerError):
            client.status()

    assert isinstance(view, StatusView)
    assert client.daemon_version == "10.0.0"


def test_a_daemon_may_restart_between_calls(places: Paths) -> None:
    with StokerClient(places) as client:
        with canned(places, answer(STATUS)):
            client.status()
        with pytest.raises(errors.DaemonNotRunning):
            client.status()
        with canned(places, answer(STATUS)):
            assert client.status().daemon.version == "9.9.9"


def test_names_cannot_break_out_of_the_path(places: Paths) -> None:
    removed = answer({"id": "x", "bytes_freed": 1})
    with canned(places, removed, answer({}, 404)) as daemon, StokerClient(places) as client:
        client.remove("owner/repo:Q4?x=1#y z")
        with pytest.raises(errors.StokerError):
            client.pull_view("../models/x")

    assert daemon.requests[0].startswith(b"DELETE /models/owner/repo%3AQ4%3Fx%3D1%23y%20z HTTP")
    assert daemon.requests[1].startswith(b"GET /pulls/..%2Fmodels%2Fx HTTP")


MODEL = {"id": "m", "state": "ready"}


@pytest.mark.parametrize(
    ("call", "request_", "body", "said"),
    [
        (
            lambda client: client.server(enabled=False),
            b"POST /server ",
            {"enabled": False},
            {"enabled": False, "base_url": "http://h/v1"},
        ),
        (lambda client: client.use("m"), b"POST /use ", {"model": "m"}, MODEL),
        (lambda client: client.free(), b"POST /free ", None, {"models": ["m"], "bytes_freed": 9}),
        (lambda client: client.catalogue(), b"GET /catalogue ", None, []),
    ],
)
def test_a_call_asks_for_its_route(
    places: Paths,
    call: Callable[[StokerClient], object],
    request_: bytes,
    body: object,
    said: object,
) -> None:
    with canned(places, answer(said)) as daemon, StokerClient(places) as client:
        call(client)

    head, _, sent = daemon.requests[0].partition(b"\r\n\r\n")
    assert head.startswith(request_)
    assert (json.loads(sent) if sent else None) == body


@pytest.mark.parametrize(
    ("resources", "path"), [(True, b"/events "), (False, b"/events?resources=false ")]
)
def test_samples_can_be_left_out(places: Paths, path: bytes, *, resources: bool) -> None:
    raw = stream('data: {"type": "goodbye"}\n\n')
    with canned(places, raw) as daemon, StokerClient(places) as client:
        list(client.events(resources=resources))

    assert daemon.requests[0].startswith(b"GET " + path)


def test_events_come_typed_and_pings_and_unknown_kinds_are_skipped(places: Paths) -> None:
    resources = {"type": "resources", "resources": STATUS["resources"]}
    raw = stream(
        f"data: {json.dumps(SNAPSHOT)}\n\n",
        ": ping\n\n",
        'data: {"type": "of_a_newer_daemon"}\n\n',
        f"data: {json.dumps(resources)}\n\nda",
        'ta: {"type": "goodbye"}\n\n',
        "data: never read\n\n",
    )
    with canned(places, raw), StokerClient(places) as client:
        events = list(client.events())

    assert [event.type for event in events] == ["snapshot", "resources", "goodbye"]


def test_an_event_stream_that_is_cut_raises(places: Paths) -> None:
    """Only a goodbye is a proper end."""
    raw = stream(f"data: {json.dumps(SNAPSHOT)}\n\n", ended=False)
    with canned(places, raw), StokerClient(places) as client:
        events = client.events()

        assert isinstance(next(events), Snapshot)
        with pytest.raises(errors.DaemonNotRunning):
            next(events)


def test_an_event_without_sense_is_an_error(places: Paths) -> None:
    raw = stream('data: {"type": "snapshot"}\n\n')
    with (
        canned(places, raw),
        StokerClient(places) as client,
        pytest.raises(errors.DaemonError, match="makes no sense"),
    ):
        list(client.events())


def test_verify_yields_progress_and_results(places: Paths) -> None:
    result = {"id": "m", "file": "f", "sha256": "0" * 64, "ok": False, "finding": "changed"}
    raw = stream(
        '{"bytes_done": 1, "bytes_total": 2}\n',
        json.dumps({"bytes_done": 2, "bytes_total": 2, "result": result}) + "\n",
    )
    with canned(places, raw) as daemon, StokerClient(places) as client:
        first, second = client.verify(["m"])

    assert (first.bytes_done, first.result) == (1, None)
    assert second.result is not None
    assert second.result.finding == "changed"
    assert daemon.requests[0].endswith(b'{"models": ["m"]}')


def test_a_verify_that_is_cut_raises(places: Paths) -> None:
    """Half a verification must not look like a whole one."""
    raw = stream('{"bytes_done": 1, "bytes_total": 2}\n', ended=False)
    with canned(places, raw), StokerClient(places) as client:
        lines = client.verify()

        assert next(lines).bytes_done == 1
        with pytest.raises(errors.DaemonNotRunning):
            next(lines)


def test_a_verify_that_is_refused_raises_the_reason(places: Paths) -> None:
    view = {"code": "model_not_found", "message": "no model x", "hint": "h"}
    with (
        canned(places, answer(view, 404)),
        StokerClient(places) as client,
        pytest.raises(errors.UnknownModel),
    ):
        list(client.verify(["x"]))


def test_load_waits_longer_than_the_daemon_does(places: Paths) -> None:
    """So that the daemon's own reason is what the user sees."""
    places.config_file.write_text("load_timeout_s = 5000\nwait_timeout_s = 70\n")

    assert StokerClient(places)._load_s() > 5070


def test_a_config_with_a_mistake_does_not_stop_a_load(places: Paths) -> None:
    places.config_file.write_text("no_such_setting = 1\n")

    assert StokerClient(places)._load_s() > 600


def test_importing_the_client_is_cheap() -> None:
    """No HTTP library, no event loop, no settings, no part of the daemon."""
    code = (
        "import sys, stoker.client\n"
        "heavy = {'httpx2', 'asyncio', 'ssl', 'fastapi', 'pydantic_settings', 'stoker.store'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or None)"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")
