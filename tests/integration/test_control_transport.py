"""The control plane on loopback TCP: who is let in, and what lies in the run folder."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest
from structlog.testing import capture_logs

from stoker import transport
from stoker.api.control_transport import bind_loopback, control_listening
from stoker.errors import DaemonAlreadyRunning, StoreUnsafe
from stoker.paths import Paths, from_environment
from stoker.store import disk
from stoker.transport import ControlFile


@pytest.fixture
def places(stoker_home: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    monkeypatch.setenv("STOKER_TEST_CONTROL", "tcp")
    places = from_environment()
    places.create()
    return places


class App:
    """Reads the whole body and counts what it is asked."""

    count = 0

    async def __call__(self, _scope: Any, receive: Any, send: Any) -> None:
        self.count += 1
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"served"})


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
async def found(places: Paths, app: App) -> AsyncIterator[ControlFile]:
    """A control plane that runs, and what its file says."""
    async with control_listening(app, places):
        written = transport.read(places.control_file)
        assert written is not None
        yield written


def ask(port: int, *headers: str) -> bytes:
    """All that comes back until the connection ends; of the body only its length is sent."""
    with socket.create_connection(("127.0.0.1", port), 10) as asking:
        head = ["POST /stop HTTP/1.1", *headers, "", ""]
        asking.sendall("\r\n".join(head).encode("latin-1"))
        answer = b""
        try:
            while piece := asking.recv(65536):
                answer += piece
        except ConnectionResetError:
            pass
        return answer


@pytest.mark.anyio
async def test_who_shows_the_token_is_served(found: ControlFile, app: App) -> None:
    lines = (f"Host: 127.0.0.1:{found.port}", f"Authorization: Bearer {found.token}")

    answer = await anyio.to_thread.run_sync(ask, found.port, *lines, "Connection: close")

    assert b"\r\nserved\r\n" in answer
    assert app.count == 1


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("shown", "code"),
    [
        ([], b"peer_not_allowed"),
        (["Authorization: Bearer "], b"peer_not_allowed"),
        (["Authorization: Bearer {wrong}"], b"peer_not_allowed"),
        (["Authorization: Bearer {token}x"], b"peer_not_allowed"),
        (["Authorization: Basic {token}"], b"peer_not_allowed"),
        (["Authorization: Bearer \xe4\xf6"], b"peer_not_allowed"),
        (["Authorization: Bearer {token}", "Authorization: Bearer {wrong}"], b"peer_not_allowed"),
        (["Cookie: token={token}"], b"peer_not_allowed"),
    ],
    ids=str,
)
async def test_who_does_not_is_cut_off_before_the_body(
    found: ControlFile, app: App, shown: list[str], code: bytes
) -> None:
    """The answer comes, and the connection ends, while the body is still owed."""
    wrong = found.token[:-1] + ("a" if found.token[-1] != "a" else "b")
    lines = [line.format(token=found.token, wrong=wrong) for line in shown]
    lines += [f"Host: 127.0.0.1:{found.port}", "Content-Length: 1000000"]

    with capture_logs() as logged:
        answer = await anyio.to_thread.run_sync(ask, found.port, *lines)

    assert answer.startswith(b"HTTP/1.1 403 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"].encode() == code
    assert app.count == 0
    assert [entry["event"] for entry in logged] == ["control_request_refused"]
    assert found.token not in repr(logged)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "hosts", [[], ["evil.example"], ["localhost:{port}"], ["127.0.0.1"], ["127.0.0.1:{port}"] * 2]
)
async def test_a_name_that_leads_here_is_refused(
    found: ControlFile, app: App, hosts: list[str]
) -> None:
    """Against DNS rebinding, should a page ever come to know the token."""
    lines = [f"Host: {host.format(port=found.port)}" for host in hosts]
    lines += [f"Authorization: Bearer {found.token}", "Content-Length: 0"]

    answer = await anyio.to_thread.run_sync(ask, found.port, *lines)

    assert answer.startswith((b"HTTP/1.1 403 ", b"HTTP/1.1 400 "))
    assert app.count == 0


@pytest.fixture
def bystander() -> Iterator[psutil.Process]:
    """A process of ours that has nothing to do with Stoker."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield psutil.Process(process.pid)
        process.kill()


# --- what lies in the folder -----------------------------------------------------------------


@pytest.mark.anyio
async def test_the_file_is_ours_alone_and_goes_with_the_daemon(places: Paths, app: App) -> None:
    """Each start has a port and a token of its own; nothing else listens."""
    seen = []
    for _ in range(2):
        async with control_listening(app, places):
            mode = stat.S_IMODE(places.control_file.stat().st_mode)
            written = transport.read(places.control_file)
            assert written is not None
            seen.append(written)
            assert sys.platform == "win32" or mode == 0o600
            assert written.pid == os.getpid()
            assert not places.control_socket.exists()
        assert list(places.run.glob("control*")) == []

    assert seen[0].token != seen[1].token
    assert len(seen[0].token) >= 43


@pytest.mark.anyio
async def test_the_file_of_a_dead_daemon_is_replaced(
    places: Paths, app: App, bystander: psutil.Process
) -> None:
    """Also when its port and its process's number live on, in different hands."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        stale = ControlFile(other.getsockname()[1], "a" * 43, bystander.pid)
        places.control_file.write_bytes(stale.encode())
        places.control_file.chmod(0o600)

        async with control_listening(app, places):
            assert transport.read(places.control_file) not in {stale, None}


@pytest.mark.anyio
async def test_a_daemon_that_listens_is_left_alone(
    places: Paths, app: App, found: ControlFile
) -> None:
    with pytest.raises(DaemonAlreadyRunning):
        async with control_listening(app, places):
            pass

    assert transport.read(places.control_file) == found


@pytest.mark.anyio
async def test_what_is_in_the_way_is_told(places: Paths, app: App) -> None:
    places.control_file.mkdir()

    with pytest.raises(ExceptionGroup) as caught:
        async with control_listening(app, places):
            pass

    assert caught.group_contains(StoreUnsafe, match="cannot write")
    assert places.control_file.is_dir()


@pytest.mark.anyio
async def test_a_file_that_a_client_just_reads_is_written_a_moment_later(
    places: Paths, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows replaces no open file."""
    rename, refused = disk.rename, list[Path]()

    def busy(source: Path, target: Path) -> None:
        if len(refused) < 3:
            refused.append(target)
            raise PermissionError
        rename(source, target)

    monkeypatch.setattr(disk, "rename", busy)

    async with control_listening(app, places):
        assert transport.read(places.control_file) is not None
    assert refused == [places.control_file] * 3


@pytest.mark.anyio
@pytest.mark.skipif(sys.platform == "win32", reason="no UNIX sockets")
async def test_each_transport_removes_what_the_other_left(
    places: Paths, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that clients, which go by what lies there, find the daemon that runs."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(places.control_socket))
    async with control_listening(app, places):
        assert not places.control_socket.exists()
        left = places.control_file.read_bytes()

    places.control_file.write_bytes(left)
    monkeypatch.setenv("STOKER_TEST_CONTROL", "unix")
    async with control_listening(app, places):
        assert places.control_socket.is_socket()
        assert not places.control_file.exists()


def test_the_port_is_on_loopback_only() -> None:
    with closing(bind_loopback()) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"
        assert not listener.get_inheritable()


def test_on_windows_the_port_is_ours_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """There a second program could bind the same port, were it not for this option."""
    exclusive = socket.SO_KEEPALIVE  # any option that Linux can read back
    monkeypatch.setattr(socket, "SO_EXCLUSIVEADDRUSE", exclusive, raising=False)

    with closing(bind_loopback()) as listener:
        assert listener.getsockopt(socket.SOL_SOCKET, exclusive)
