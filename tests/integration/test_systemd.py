"""Start at login with a real systemd user manager and the real daemon, in an oddly named home."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.fakes.service_home import Tree, tree
from tests.fakes.session_bus import PrivateBus
from tests.fakes.tray_host import TrayHost
from tests.fakes.user_manager import UserManager, user_manager

HOME = "it's “my” home $HOME %h"
WAIT_S = 60.0  # for what a machine under load does at its leisure
COMMAND_S = 150.0
LAUNCHER = """\
#!/bin/sh
STOKER_COMMAND='{launcher}'
export STOKER_COMMAND
exec '{python}' -I -m stoker "$@"
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="systemd is for Linux")


@dataclass
class Machine:
    """A user's machine: a manager, a terminal, and a `stoker` installed by a launcher."""

    manager: UserManager
    stoker_home: Path
    launcher: Path

    def run(self, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.launcher, *words],
            env={**self.manager.environ, "STOKER_HOME": str(self.stoker_home), **environ},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )

    def stoker(self, *words: str, **environ: str) -> str:
        """Run a command that succeeds; what it printed, remarks included."""
        done = self.run(*words, **environ)
        assert done.returncode == 0, done
        return done.stdout + done.stderr

    @property
    def port(self) -> int:
        line = (self.stoker_home / "config.toml").read_text().splitlines()[0]
        return int(line.removeprefix("port = "))

    @port.setter
    def port(self, port: int) -> None:
        (self.stoker_home / "config.toml").write_text(f"port = {port}\n")

    @property
    def pid(self) -> int:
        """Of the daemon that answers; 0 when none does."""
        with contextlib.suppress(AssertionError):
            return int(json.loads(self.stoker("status", "--json"))["daemon"]["pid"])
        return 0

    @property
    def supervised_pid(self) -> int:
        return int(self.manager.property("stoker.service", "MainPID") or 0)

    def is_healthy(self) -> bool:
        """Whether a request is answered. Raises ConnectionRefusedError when the port is closed."""
        address = f"http://127.0.0.1:{self.port}/health"
        with contextlib.closing(socket.create_connection(("127.0.0.1", self.port), WAIT_S)):
            pass
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(address, timeout=WAIT_S) as answer:
                return bool(answer.status == 200)
        except ConnectionResetError:  # it was killed with our request in its hands
            return False

    def files(self) -> Tree:
        return tree(self.manager.home)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / HOME
    folder.mkdir()
    (folder / ".config").mkdir()
    (folder / ".config" / "mine").write_text("keep me")
    return folder


@pytest.fixture
def launcher(tmp_path: Path) -> Path:
    path = tmp_path / "stoker"
    path.write_text(LAUNCHER.format(launcher=path, python=sys.executable))
    path.chmod(0o755)
    return path


@pytest.fixture
def machine(home: Path, launcher: Path, stoker_home: Path) -> Iterator[Machine]:
    with user_manager(home) as manager:
        found = Machine(manager, stoker_home, launcher)
        found.port = free_port()
        yield found
        found.stoker("stop")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(done: object, told: object = "") -> None:
    """Until the callable says so."""
    assert callable(done)
    deadline = time.monotonic() + WAIT_S
    while not done():
        assert time.monotonic() < deadline, told
        time.sleep(0.05)


def is_refused(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def is_read_only(path: Path) -> bool:
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)


# --- the port and the daemon -----------------------------------------------------------------


def test_the_first_request_starts_the_daemon(machine: Machine) -> None:
    before = machine.files()
    machine.stoker("autostart", "on")
    assert machine.manager.state("stoker.service") == "inactive"

    assert machine.is_healthy()

    assert machine.pid == machine.supervised_pid != 0
    machine.stoker("stop")
    assert is_refused(machine.port)
    machine.stoker("autostart", "off")
    assert machine.files() == before


def test_it_starts_at_login_and_stays_stopped_after_a_stop(
    home: Path, launcher: Path, stoker_home: Path
) -> None:
    with user_manager(home) as manager:
        first = Machine(manager, stoker_home, launcher)
        first.port = free_port()
        before = first.files()
        first.stoker("autostart", "on")

    with user_manager(home) as manager:
        after_login = Machine(manager, stoker_home, launcher)
        wait_until(lambda: loaded(after_login) == ["starter"], "not restored")
        assert "Paris" in after_login.stoker("run", "starter", "--temperature", "0", CAPITAL)
        assert "starter" in manager.property("stoker.service", "StatusText")
        after_login.stoker("stop")
        after_login.stoker("autostart", "off")


@pytest.mark.e2e
def test_a_graphical_login_brings_the_endpoint_the_model_and_the_icon(
    home: Path, launcher: Path, stoker_home: Path, starter_gguf: Path, bus: PrivateBus
) -> None:
    """What `autostart on` wrote is all that a desktop's session needs."""
    tray = launcher.with_name("stoker-tray")
    tray.write_text(launcher.read_text().replace(" -m stoker ", " -m stoker_tray "))
    tray.chmod(0o755)
    with user_manager(home) as manager:
        machine = Machine(manager, stoker_home, launcher)
        machine.port = free_port()
        machine.stoker("start")
        machine.stoker("import", str(starter_gguf), "--name", "starter")
        machine.stoker("use", "starter")
        machine.stoker("stop")
        before = machine.files()
        machine.stoker("autostart", "on")
        after_on = machine.files()
    session = home / ".config/systemd/user" / "desktop.target"
    session.write_text(DESKTOP_SESSION)

    with TrayHost(bus) as panel, user_manager(home, **bus.environ) as manager:
        machine = Machine(manager, stoker_home, launcher)
        manager.systemctl("start", "desktop.target")
        panel.wait_for_item()
        wait_until(lambda: panel.menu().inside[0].label == "starter — ready", "no model")
        assert machine.is_healthy()
        machine.stoker("stop")
        wait_until(lambda: panel.menu().inside[0].label == "Stoker is not running", "not told")

    session.unlink()
    assert tree(home) == after_on
    with user_manager(home) as manager:
        Machine(manager, stoker_home, launcher).stoker("autostart", "off")
    assert tree(home) == before


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[PrivateBus]:
    if not PrivateBus.is_installed():
        pytest.skip("NOT TESTED with an icon: needs dbus-daemon")
    folder = tmp_path / "bus"
    folder.mkdir()
    with PrivateBus(folder) as bus:
        yield bus


# As a desktop's own session is one: the icon comes by systemd's generator for autostart entries.
DESKTOP_SESSION = """\
[Unit]
BindsTo=graphical-session.target
Wants=graphical-session-pre.target xdg-desktop-autostart.target
Before=graphical-session.target xdg-desktop-autostart.target
"""
CAPITAL = "What is the capital of France? Answer in one short sentence."


def loaded(machine: Machine) -> list[str]:
    """The models that are ready, as far as a daemon answers."""
    ran = machine.run("ps", "--json")
    models = json.loads(ran.stdout) if ran.returncode == 0 else []
    return [model["id"] for model in models if model["state"] == "ready"]
