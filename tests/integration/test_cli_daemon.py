"""The real program against a real daemon, as a user's shell runs it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.fakes.stoker_command import StokerCommand


@pytest.fixture
def stoker(
    stoker_home: Path, transport: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[StokerCommand]:
    """The daemon that a test starts is stopped at its end."""
    monkeypatch.setenv("STOKER_PORT", "0")
    command = StokerCommand(stoker_home.parent)
    yield command
    command("stop")


def _pid(stoker: StokerCommand) -> int:
    return int(json.loads(stoker("status", "--json").stdout)["daemon"]["pid"])


def _is_gone(pid: int) -> bool:
    """No such process, or a dead one that the machine's first process has not reaped yet."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_start_and_stop_can_be_repeated(stoker: StokerCommand) -> None:
    """After a start the daemon answers; after a stop its process is gone."""
    first = stoker("start")
    pid = _pid(stoker)
    again = stoker("start")

    assert (first.returncode, first.stderr) == (0, "")
    assert f"pid {pid}" in first.stdout
    assert "already running" in again.stdout
    assert _pid(stoker) == pid

    stopped = stoker("stop")

    assert stopped.returncode == 0
    assert _is_gone(pid)
    assert stoker("status").returncode == 3
    assert stoker("stop").stdout == "Stoker is not running.\n"


def test_two_starts_at_once_make_one_daemon(stoker: StokerCommand) -> None:
    command = [sys.executable, "-m", "stoker", "start"]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    told = [process.communicate(timeout=90) for process in both]

    assert [process.returncode for process in both] == [0, 0], told
    assert sorted("already" in out for out, _ in told) == [False, True]


def test_the_daemon_outlives_the_terminal(stoker: StokerCommand) -> None:
    """It leads a session of its own, which no terminal's end can hang up."""
    stoker("start")

    pid = _pid(stoker)

    assert os.getsid(pid) == pid


def test_restart_makes_another_process(stoker: StokerCommand) -> None:
    stoker("start")
    before = _pid(stoker)

    assert stoker("restart").returncode == 0

    assert _pid(stoker) != before
    assert _is_gone(before)


def test_a_start_after_a_kill_is_clean(stoker: StokerCommand) -> None:
    stoker("start")
    pid = _pid(stoker)
    os.kill(pid, signal.SIGKILL)

    assert stoker("status").returncode == 3
    assert stoker("start").returncode == 0


def test_a_taken_port_is_told_by_the_start(stoker: StokerCommand) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()

        ran = stoker("start", STOKER_PORT=str(other.getsockname()[1]))

    error, hint = ran.stderr.splitlines()
    assert ran.returncode == 1
    assert "is taken" in error
    assert "stoker config set port" in hint


def test_a_second_daemon_on_the_same_home_is_refused(stoker: StokerCommand) -> None:
    stoker("start")

    ran = stoker("serve")

    assert ran.returncode == 1
    assert "already runs" in ran.stderr.splitlines()[0]


def test_a_relative_home_is_the_same_home_for_the_daemon(
    stoker: StokerCommand, stoker_home: Path
) -> None:
    relative = stoker_home.name  # the commands run in the folder above it

    assert stoker("start", STOKER_HOME=relative).returncode == 0
    assert stoker("status").returncode == 0


def test_the_log_can_be_read_after_the_stop(stoker: StokerCommand) -> None:
    stoker("start")
    stoker("stop")

    ran = stoker("logs", "-n", "500")

    assert "event='ready'" in ran.stdout
    assert "event='stopped'" in ran.stdout.splitlines()[-1]


def test_doctor_needs_no_daemon(stoker: StokerCommand) -> None:
    ran = stoker("doctor", "--json")

    report = json.loads(ran.stdout)
    assert ran.returncode == (0 if report["ok"] else 1)
    assert {"daemon", "settings"} <= {finding["topic"] for finding in report["findings"]}
    assert report["machine"]["memory"]["total_bytes"] > 0
    assert all(finding["fix"] for finding in report["findings"] if finding["level"] != "ok")
