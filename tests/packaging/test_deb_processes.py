"""How the Debian package's scripts find running processes, and who restarts a daemon."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "installers" / "deb" / "files" / "processes.py"

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="users and groups of UNIX")


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script that finds the package's processes, and a list of what it runs in `ran`."""
    spec = importlib.util.spec_from_file_location("stoker_processes", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # its dataclass looks it up
    spec.loader.exec_module(module)
    ran: list[tuple[list[str], int | None]] = []

    def run(command: list[str], *, user: int | None = None, **_: object) -> None:
        ran.append((command, user))

    monkeypatch.setattr(module, "_run", run)
    monkeypatch.setattr(module, "ran", ran, raising=False)
    return module


@pytest.mark.parametrize(
    ("environ", "cgroup", "ran"),
    [
        ({}, "/user.slice/session-1.scope", ["/usr/bin/stoker", "restart"]),
        (
            {"SYSTEMD_EXEC_PID": "42", "MANAGERPID": "7"},
            "/user.slice/user-5.slice/user@5.service/app.slice/stoker.service",
            ["systemctl", "--user", "try-restart", "stoker.service"],
        ),
        (
            {"SYSTEMD_EXEC_PID": "41", "MANAGERPID": "7"},
            "/user.slice/user-5.slice/user@5.service/app.slice/a-terminal.service",
            ["/usr/bin/stoker", "restart"],
        ),
        (
            {"SYSTEMD_EXEC_PID": "42"},
            "/system.slice/stoker-for-all.service",
            ["systemctl", "try-restart", "stoker-for-all.service"],
        ),
    ],
    ids=["by hand", "unit of the user", "in a unit of another program", "unit of the system"],
)
def test_a_daemon_is_restarted_by_whoever_ran_it(
    processes: ModuleType, environ: dict[str, str], cgroup: str, ran: list[str]
) -> None:
    """Its own service manager, else the user's own command; as that user."""
    argv = (processes.PROGRAM, "-I", "-m", "stoker", "serve")
    daemon = processes.Process(42, argv, 5, 5, (), environ, cgroup)

    processes._restart(daemon)

    assert processes.ran == [(ran, None if ran[:2] == ["systemctl", "try-restart"] else 5)]


def test_a_user_cannot_have_a_service_of_the_system_restarted(processes: ModuleType) -> None:
    """A group's name under the user's own slice may be anything."""
    cgroup = "/user.slice/user-5.slice/user@5.service/ssh.service"
    daemon = processes.Process(42, (), 5, 5, (), {"SYSTEMD_EXEC_PID": "42"}, cgroup)

    processes._restart(daemon)

    assert processes.ran == []


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_that_only_bears_the_name_is_let_alone(processes: ModuleType) -> None:
    """What a process calls itself proves nothing."""
    words = [processes.PROGRAM, "60"]
    with subprocess.Popen(words, executable=shutil.which("sleep")) as sleeper:
        try:
            found = [process.pid for process in processes.running()]
        finally:
            sleeper.kill()

    assert sleeper.pid not in found
