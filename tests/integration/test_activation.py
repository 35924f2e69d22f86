"""The real daemon under a service manager: sockets that it was handed, and what it tells."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stoker import paths
from stoker.client import StokerClient
from tests.fakes.manager import PATIENCE_S, Manager, activated
from tests.integration.control_plane import wait_for

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="systemd is Linux's")

HOST = "127.0.0.1"
SERVE = (sys.executable, "-I", "-m", "stoker", "serve")


@pytest.fixture
def manager() -> Iterator[Manager]:
    with Manager() as manager:
        yield manager


@pytest.fixture
def unit() -> Iterator[socket.socket]:
    """The socket of a socket unit: its address was named, and systemd listens on it."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        address = probe.getsockname()
    with socket.create_server(address) as held:
        yield held


@contextmanager
def service(
    manager: Manager, unit: socket.socket, *, port: int | None = None, **environ: str
) -> Iterator[subprocess.Popen[bytes]]:
    """`stoker serve` as systemd starts it for the unit; at the end it is gone."""
    settings = {
        "NOTIFY_SOCKET": manager.address,
        "STOKER_PORT": str(unit.getsockname()[1] if port is None else port),
    }
    with subprocess.Popen(
        activated(SERVE, unit),
        stdin=subprocess.DEVNULL,
        env={**os.environ, **settings, **environ},
        pass_fds=(unit.fileno(),),
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def client() -> StokerClient:
    return StokerClient(paths.from_environment())


def ask(port: int) -> str:
    """The first line of the answer, or what became of the connection."""
    try:
        with socket.create_connection((HOST, port), PATIENCE_S) as peer:
            peer.sendall(b"GET /health HTTP/1.1\r\nHost: localhost:%d\r\n\r\n" % port)
            return peer.recv(4096).decode().split("\r\n")[0]
    except ConnectionRefusedError:
        return "refused"
    except ConnectionResetError:  # it came just before the socket was shut
        return "reset"


def listens(unit: socket.socket) -> bool:
    return bool(unit.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def stop(process: subprocess.Popen[bytes]) -> int:
    process.terminate()
    return process.wait(PATIENCE_S)


def test_a_request_that_came_before_the_daemon_is_answered(
    stoker_home: Path, manager: Manager, unit: socket.socket
) -> None:
    """Systemd took the connection and started the daemon for it."""
    port = unit.getsockname()[1]
    with socket.create_connection((HOST, port), PATIENCE_S) as early:
        early.sendall(b"GET /health HTTP/1.1\r\nHost: localhost:%d\r\n\r\n" % port)
        with service(manager, unit) as process:
            assert early.recv(4096).startswith(b"HTTP/1.1 200")
            manager.until("READY=1")
            with client() as talk:
                status = talk.status()
            code = stop(process)

    assert status.server.base_url == f"http://{HOST}:{port}/v1"
    assert status.problems == ()
    assert code == 0
    assert listens(unit)


def test_off_and_on_under_systemd(stoker_home: Path, manager: Manager, unit: socket.socket) -> None:
    """The status line follows; at its end the daemon leaves a socket that listens."""
    port = unit.getsockname()[1]
    with service(manager, unit) as process, client() as talk:
        assert f"STATUS=Serving http://{HOST}:{port}/v1" in manager.until("READY=1")
        assert manager.next() == "BARRIER=1"

        talk.server(enabled=False)
        assert ask(port) == "refused"
        assert manager.next() == "STATUS=The server is off"
        talk.server(enabled=True)
        assert ask(port) == "HTTP/1.1 200 OK"
        assert manager.next() == f"STATUS=Serving http://{HOST}:{port}/v1"
        talk.server(enabled=False)
        code = stop(process)

        last = manager.until("STOPPING=1")
        assert "EXTEND_TIMEOUT_USEC=" in last
        assert code == 0
        assert listens(unit)


def test_a_daemon_that_was_off_is_ready_and_refuses(
    stoker_home: Path, manager: Manager, unit: socket.socket
) -> None:
    """It refuses only when the manager has taken note that it is ready."""
    port = unit.getsockname()[1]
    with service(manager, unit), client() as talk:
        manager.until("BARRIER=1")
        talk.server(enabled=False)
        wait_for(lambda: ask(port) == "refused")
    assert not listens(unit)  # it was killed

    with service(manager, unit) as process, client() as talk:
        unit.listen()  # as systemd makes a new socket for a new start
        assert manager.until("READY=1").endswith("STATUS=The server is off")
        assert not talk.status().server.enabled
        assert listens(unit)
        manager.until("BARRIER=1")
        wait_for(lambda: ask(port) == "refused")

        talk.server(enabled=True)

        assert ask(port) == "HTTP/1.1 200 OK"
        assert stop(process) == 0
    assert listens(unit)


def test_signs_of_life_stop_when_the_daemon_hangs(
    stoker_home: Path, manager: Manager, unit: socket.socket
) -> None:
    """Until its very end they come, from the loop that does the work."""
    with service(manager, unit, WATCHDOG_USEC="20000") as process:
        manager.until("READY=1")
        manager.until("WATCHDOG=1")
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        manager.drain()

        assert not manager.has_message()

        process.send_signal(signal.SIGCONT)
        manager.until("WATCHDOG=1")
        process.terminate()
        manager.until("STOPPING=1")
        assert process.wait(PATIENCE_S) == 0


def test_the_settings_win_over_the_socket_unit(
    stoker_home: Path, manager: Manager, unit: socket.socket
) -> None:
    """Ours is served, systemd's refuses, and the status says how to mend it."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        other = probe.getsockname()[1]
    with service(manager, unit, port=other) as process, client() as talk:
        manager.until("BARRIER=1")
        wait_for(lambda: ask(unit.getsockname()[1]) == "refused")
        status = talk.status()

        assert ask(other) == "HTTP/1.1 200 OK"
        assert status.server.base_url == f"http://{HOST}:{other}/v1"
        assert "stoker autostart on" in status.problems[0]
        assert stop(process) == 0
    assert listens(unit)
