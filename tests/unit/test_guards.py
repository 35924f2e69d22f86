"""The guards of the test suite itself."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests import conftest


@pytest.mark.parametrize("address", [("192.0.2.1", 80), ("2001:db8::1", 80), ("host.example", 80)])
def test_a_test_cannot_reach_the_network(address: tuple[str, int]) -> None:
    """Another machine, by number or by name, is out of reach; the attempt is loud."""
    with pytest.raises(BaseException, match="this machine only"):
        socket.create_connection(address, timeout=1)


def test_a_test_can_reach_this_machine(tmp_path: Path) -> None:
    """Loopback and UNIX sockets work."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(("localhost", server.getsockname()[1]), timeout=5).close()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        server.listen()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "s"))


def test_a_process_that_works_for_a_home_is_found(stoker_home: Path) -> None:
    """By its variable or its working folder, even when it is nobody's child any more."""
    code = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"]
    elsewhere = {name: value for name, value in os.environ.items() if name != "STOKER_HOME"}
    with (
        subprocess.Popen(code, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as by_variable,
        subprocess.Popen(
            code, cwd=stoker_home, env=elsewhere, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as by_folder,
    ):
        for child in (by_variable, by_folder):
            assert child.stdout is not None
            child.stdout.readline()  # it runs our code now, with its final environment

        found = {process.pid for process in conftest._processes_of(stoker_home)}

        assert found == {by_variable.pid, by_folder.pid}


def test_a_home_hides_the_users_own_settings(
    stoker_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No STOKER_ or HF_ variable of the machine reaches a test."""
    _ = monkeypatch
    names = [name for name in os.environ if name.startswith(("STOKER_", "HF_"))]

    assert os.environ["STOKER_HOME"] == str(stoker_home)
    assert [n for n in names if n != "STOKER_HOME" and not n.startswith("STOKER_TEST_")] == []


def test_left_processes_are_ended_and_reported() -> None:
    """A leak fails the test that made it, and does not live on."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        process = psutil.Process(child.pid)

        with pytest.raises(pytest.fail.Exception, match="left behind"):
            conftest._fail_for([process])

        assert not process.is_running()
