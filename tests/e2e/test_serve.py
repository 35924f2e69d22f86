"""Starting and stopping, as a service manager and a second user of the same home see it."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.fakes.daemon import Daemon


def test_ready_is_told_only_when_both_sockets_accept(tmp_path: Path) -> None:
    """At the moment of READY=1 a client can connect to the endpoint and to the control socket."""
    with (
        tempfile.TemporaryDirectory(dir="/tmp") as folder,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
    ):
        manager.bind(f"{folder}/notify")
        manager.settimeout(30)
        daemon = Daemon(tmp_path / "home")
        daemon.environ["NOTIFY_SOCKET"] = f"{folder}/notify"
        # Not `daemon.start()`: that waits until it answers, which is what is to be shown.
        process = subprocess.Popen(daemon.command, env=daemon.environ, stdin=subprocess.DEVNULL)
        try:
            message = manager.recv(500).decode()
            with daemon.client() as client:
                status = client.status()
        finally:
            process.terminate()
            code = process.wait(20)

    assert message.startswith("READY=1\n")
    assert status.server.base_url in message
    assert code == 0


def test_one_daemon_per_home(tmp_path: Path) -> None:
    """A second one says so and leaves the first alone."""
    with Daemon(tmp_path / "home") as daemon:
        second = daemon.cli("serve")

        assert second.returncode == 1
        assert "already runs" in second.stderr
        assert daemon.status().daemon.pid == daemon.pid


def test_a_taken_port_is_a_clear_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        daemon = Daemon(tmp_path / "home", port=port)

        result = daemon.cli("serve")

    assert result.returncode == 1
    assert str(port) in result.stderr
    assert "taken" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_wrong_setting_is_a_clear_error(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / "home", keep_alive="10")

    result = daemon.cli("serve")

    assert result.returncode == 2
    assert "keep_alive_s" in result.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="modes are POSIX")
def test_nothing_of_the_home_is_open_to_others(tmp_path: Path) -> None:
    with Daemon(tmp_path / "home") as daemon:
        sockets = [p for p in daemon.paths.run.iterdir() if p.is_socket()]

        assert sockets
        for path in (daemon.paths.store, daemon.paths.run, daemon.paths.state, *sockets):
            assert path.stat().st_mode & 0o077 == 0, path
