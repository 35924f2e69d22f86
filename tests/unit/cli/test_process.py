from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from stoker import errors, paths, transport
from stoker.cli import process

from .conftest import Run


def test_the_listener_of_a_socket_is_found_by_its_pid(stoker_home: Path) -> None:
    path = stoker_home / "c.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        assert process.socket_owner(path) == os.getpid()
    assert process.socket_owner(path) is None


def test_force_is_used_on_a_daemon_only() -> None:
    """A pid that turns out to be another program is left alone, and said so."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        with pytest.raises(errors.DaemonError, match="not a Stoker daemon"):
            process.end_by_force(psutil.Process(child.pid))

        assert child.poll() is None
        child.kill()


def test_force_ends_what_ignores_a_polite_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_TERM_S", 0.2)
    code = "import signal; signal.signal(15, signal.SIG_IGN); print(flush=True); signal.pause()"
    with subprocess.Popen([sys.executable, "-c", code, "serve"], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()

        target = psutil.Process(child.pid)

        process.end_by_force(target)

        assert process.gone(target, 0)


def test_a_dead_process_that_nobody_reaped_is_gone() -> None:
    """A container's first process may never reap; waiting for that would never end."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        target = psutil.Process(child.pid)
        before = process.gone(target, 0)

        child.kill()

        assert not before
        assert process.gone(target, 5)
        assert psutil.pid_exists(child.pid)


def test_a_stop_without_a_daemon_is_done(run: Run) -> None:
    ran = run("stop")

    assert (ran.code, ran.out) == (0, "Stoker is not running.\n")


@pytest.mark.parametrize("command", ["status", "list", "ps", "verify"])
def test_without_a_daemon_the_exit_code_is_3(run: Run, command: str) -> None:
    ran = run(command)

    assert ran.code == 3
    assert "stoker start" in ran.err.splitlines()[1]


def test_a_wrong_setting_is_told_before_a_process_is_started(
    run: Run, stoker_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STOKER_PORT", "many")

    ran = run("start")

    assert ran.code == 2
    assert ran.err.startswith("error: port: ")
    assert not (stoker_home / "state").exists()


def test_a_hanging_daemon_on_tcp_is_found_by_its_file(stoker_home: Path) -> None:
    """As on Windows, where no socket tells who listens."""
    places = paths.from_environment()
    places.create()
    with socket.create_server((transport.LOOPBACK, 0)) as listener:
        found = transport.ControlFile(listener.getsockname()[1], "a" * 43, os.getpid())
        places.control_file.touch(0o600)
        places.control_file.write_bytes(found.encode())

        assert process.owner(places) == os.getpid()
    assert process.owner(places) is None
