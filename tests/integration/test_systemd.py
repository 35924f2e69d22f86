"""Start at login with a real systemd user manager and the real daemon, in an oddly named home."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from stoker import paths
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
exec '{python}' -I -m {module} "$@"
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

    def is_up(self) -> bool:
        """Whether the unit's daemon has said that it is ready."""
        return self.manager.state("stoker.service") == "active"

    def is_replaced(self, pid: int) -> bool:
        """Whether a daemon of the unit after this one has said that it is ready."""
        return self.supervised_pid not in {0, pid} and self.is_up()

    def is_logged_in(self) -> bool:
        """Whether all that starts at login was started."""
        return self.manager.state("default.target") == "active"

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


@dataclass(frozen=True)
class User:
    """Who logs in, again and again, with one home."""

    home: Path
    stoker_home: Path
    launcher: Path

    @contextmanager
    def login(self, **variables: str) -> Iterator[Machine]:
        """With these variables in the login and in the terminal; at its end they log out."""
        with user_manager(self.home, **variables) as manager:
            yield Machine(manager, self.stoker_home, self.launcher)

    def files(self) -> Tree:
        return tree(self.home)


@pytest.fixture
def user(tmp_path: Path, stoker_home: Path) -> User:
    """With files of their own, and Stoker installed on a free port."""
    found = User(tmp_path / HOME, stoker_home, tmp_path / "stoker")
    (found.home / ".config").mkdir(parents=True)
    (found.home / ".config" / "mine").write_text("keep me")
    install(found.launcher, "stoker", found.launcher)
    (stoker_home / "config.toml").write_text(f"port = {free_port()}\n")
    return found


@pytest.fixture
def machine(user: User) -> Iterator[Machine]:
    with user.login() as machine:
        yield machine
        machine.stoker("stop")


def install(launcher: Path, module: str, command: Path) -> None:
    text = LAUNCHER.format(launcher=command, python=sys.executable, module=module)
    launcher.write_text(text)
    launcher.chmod(0o755)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(done: Callable[[], bool], told: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not done():
        assert time.monotonic() < deadline, told
        time.sleep(0.05)


def is_refused(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def is_read_only(path: Path) -> bool:
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)


def drop_in(machine: Machine, *lines: str) -> None:
    """A change of the user's own to our unit."""
    folder = machine.manager.home / ".config/systemd/user/stoker.service.d"
    folder.mkdir(parents=True)
    (folder / "mine.conf").write_text("\n".join(("[Service]", *lines, "")))


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


def test_it_starts_at_login_and_stays_stopped_after_a_stop(user: User) -> None:
    before = user.files()
    with user.login() as machine:
        machine.stoker("autostart", "on")

    with user.login() as machine:
        wait_until(machine.is_up, "not started")
        assert machine.pid == machine.supervised_pid != 0
        assert machine.is_healthy()
        machine.stoker("stop")
        assert is_refused(machine.port)
        assert machine.manager.state("stoker.socket") == "inactive"
        assert machine.supervised_pid == 0
        machine.stoker("autostart", "off")
    assert user.files() == before


def test_on_demand_waits_for_a_request_after_the_login(user: User) -> None:
    before = user.files()
    with user.login() as machine:
        machine.stoker("autostart", "on", "--on-demand")

    with user.login() as machine:
        wait_until(machine.is_logged_in, "the login does not end")
        assert machine.manager.state("stoker.service") == "inactive"
        assert machine.is_healthy()
        assert machine.pid == machine.supervised_pid != 0
        machine.stoker("stop")
        machine.stoker("autostart", "off")
    assert user.files() == before


def test_a_killed_daemon_comes_back_and_its_port_is_never_refused(machine: Machine) -> None:
    machine.stoker("autostart", "on")
    machine.stoker("start")
    killed = machine.supervised_pid

    os.kill(killed, signal.SIGKILL)

    def is_back() -> bool:
        assert not is_refused(machine.port)
        return machine.is_replaced(killed)

    wait_until(is_back, "not started again")
    assert machine.manager.property("stoker.service", "NRestarts") == "1"  # not for our asking
    assert machine.is_healthy()
    assert machine.pid == machine.supervised_pid


def test_a_frozen_daemon_is_replaced(machine: Machine) -> None:
    drop_in(machine, "WatchdogSec=2", "RestartSec=0")
    before = machine.files()
    machine.stoker("autostart", "on")
    machine.stoker("start")
    frozen = psutil.Process(machine.supervised_pid)

    frozen.suspend()

    wait_until(lambda: machine.is_replaced(frozen.pid), "it hangs for ever")
    assert not frozen.is_running()
    assert machine.is_healthy()
    assert machine.pid == machine.supervised_pid
    machine.stoker("autostart", "off")
    assert machine.files() == before


def test_a_server_that_is_off_stays_off_whatever_happens_to_the_daemon(machine: Machine) -> None:
    machine.stoker("autostart", "on")
    machine.stoker("start")
    machine.stoker("server", "off")
    killed = machine.supervised_pid

    os.kill(killed, signal.SIGKILL)

    def is_back() -> bool:
        assert is_refused(machine.port)
        return machine.is_replaced(killed)

    wait_until(is_back, "not started again")
    machine.stoker("restart")
    assert is_refused(machine.port)
    machine.stoker("server", "on")
    assert machine.is_healthy()
    assert machine.pid == machine.supervised_pid


# --- the terminal and the manager ------------------------------------------------------------


def test_start_stop_and_restart_go_through_the_manager(machine: Machine) -> None:
    machine.stoker("autostart", "on")

    machine.stoker("start")
    first = machine.pid
    assert first == machine.supervised_pid != 0

    machine.stoker("restart")
    second = machine.pid
    assert second == machine.supervised_pid != first

    machine.stoker("stop")
    assert machine.supervised_pid == 0
    assert not psutil.pid_exists(second)


def test_a_daemon_started_by_hand_is_under_the_manager_after_a_restart(machine: Machine) -> None:
    before = machine.files()
    machine.stoker("start")
    by_hand = machine.pid
    machine.stoker("autostart", "on")
    assert machine.pid == by_hand
    assert machine.supervised_pid == 0

    machine.stoker("restart")

    assert machine.pid == machine.supervised_pid != by_hand
    machine.stoker("autostart", "off")
    assert machine.is_healthy()  # what runs goes on running
    assert machine.files() == before


def test_a_new_port_is_the_port_after_a_restart(machine: Machine) -> None:
    before = machine.files()
    machine.stoker("autostart", "on")
    machine.stoker("start")
    old, machine.port = machine.port, free_port()

    said = machine.stoker("restart")

    assert "brought up to date" in said
    assert is_refused(old)
    assert machine.is_healthy()
    assert machine.pid == machine.supervised_pid
    assert machine.manager.property("stoker.socket", "Listen").startswith(
        f"127.0.0.1:{machine.port} "
    )
    machine.stoker("autostart", "off")
    assert machine.files() == before


def test_another_home_does_not_touch_the_unit(machine: Machine) -> None:
    machine.stoker("autostart", "on")
    machine.stoker("start")
    supervised = machine.supervised_pid
    other = Machine(machine.manager, machine.stoker_home / "other", machine.launcher)
    other.stoker_home.mkdir()
    other.port = free_port()

    other.stoker("start")

    assert other.pid not in {0, supervised}
    other.stoker("restart")
    assert other.is_healthy()
    other.stoker("stop")
    assert is_refused(other.port)
    assert machine.pid == machine.supervised_pid == supervised
    assert machine.is_healthy()


def test_settings_of_the_terminal_are_honoured_without_the_manager(machine: Machine) -> None:
    machine.stoker("autostart", "on")
    port = free_port()

    said = machine.stoker("start", STOKER_PORT=str(port))

    assert "STOKER_PORT of this terminal is not seen by systemd" in said
    assert machine.pid != machine.supervised_pid == 0
    assert not is_refused(port)
    assert is_refused(machine.port)
    machine.stoker("restart")
    assert machine.is_healthy()
    assert machine.pid == machine.supervised_pid


def test_a_manager_that_cannot_start_it_is_told_and_gone_without(machine: Machine) -> None:
    drop_in(machine, "ExecStartPre=/bin/false")
    before = machine.files()
    machine.stoker("autostart", "on")

    said = machine.stoker("start")

    assert "systemd could not start stoker.service" in said
    assert "started without it" in said
    assert machine.pid != machine.supervised_pid == 0
    assert machine.is_healthy()
    machine.stoker("autostart", "off")
    assert machine.files() == before


# --- what the login finds --------------------------------------------------------------------


def test_a_program_that_is_gone_is_a_silent_login(user: User) -> None:
    before = user.files()
    with user.login() as machine:
        machine.stoker("autostart", "on")
    away = user.launcher.rename(user.launcher.with_name("away"))

    with user.login() as machine:
        wait_until(machine.is_logged_in, "the login does not end")
        for unit in ("stoker.service", "stoker.socket"):
            assert machine.manager.state(unit) == "inactive"
            assert machine.manager.property(unit, "ConditionResult") == "no"
        assert "stoker" not in machine.manager.systemctl("list-units", "--failed").stdout
        assert is_refused(machine.port)
        away.rename(user.launcher)
        machine.stoker("autostart", "off")
    assert user.files() == before


def test_a_configuration_that_the_manager_does_not_read_is_refused(
    machine: Machine, tmp_path: Path
) -> None:
    before = machine.files()
    own = tmp_path / "own"

    ran = machine.run("autostart", "on", XDG_CONFIG_HOME=str(own))

    assert ran.returncode == 1
    assert "does not read units in" in ran.stderr
    assert "XDG_CONFIG_HOME differs" in ran.stderr
    assert not own.exists()
    assert machine.files() == before


def test_a_configuration_folder_of_the_users_own_is_used(user: User, tmp_path: Path) -> None:
    own = tmp_path / "own"
    before = user.files()
    with user.login(XDG_CONFIG_HOME=str(own)) as machine:
        machine.stoker("autostart", "on")
        assert (own / "systemd/user/stoker.service").is_file()
        assert user.files() == before

    with user.login(XDG_CONFIG_HOME=str(own)) as machine:
        wait_until(machine.is_up, "not started")
        machine.stoker("stop")
        machine.stoker("autostart", "off")
    assert not own.exists()
    assert user.files() == before


def test_a_hardened_daemon_cannot_write_outside_its_folders(machine: Machine) -> None:
    before = machine.files()
    machine.stoker("start")  # makes its folders
    said = machine.stoker("autostart", "on", "--hardened")
    if "not confined" in said:
        pytest.skip(f"NOT TESTED in the sandbox: {said}")

    machine.stoker("restart")

    seen = Path(f"/proc/{machine.supervised_pid}/root")
    for folder in ("usr", "etc", "var/lib", "root"):
        assert is_read_only(seen / folder)
    assert not is_read_only(seen / machine.stoker_home.relative_to("/"))
    assert machine.is_healthy()
    machine.stoker("autostart", "off")
    assert machine.files() == before


# --- a model and an icon ---------------------------------------------------------------------


@pytest.mark.e2e
def test_a_login_brings_back_the_model_that_served_last(
    user: User, starter_gguf: Path, canary: Path
) -> None:
    before = user.files()
    with user.login() as machine:
        machine.stoker("start")  # makes its folders
        machine.stoker("autostart", "on", "--hardened")
        machine.stoker("restart")
        use_starter(machine, starter_gguf, canary)
        assert "Paris" in machine.stoker("run", "starter", "--temperature", "0", CAPITAL)
        machine.stoker("autostart", "on")

    with user.login() as machine:
        wait_until(lambda: loaded(machine) == ["starter"], "not restored")
        assert "Paris" in machine.stoker("run", "starter", "--temperature", "0", CAPITAL)
        assert "starter" in machine.manager.property("stoker.service", "StatusText")
        machine.stoker("stop")
        machine.stoker("autostart", "off")
    assert user.files() == before


@pytest.mark.e2e
def test_a_graphical_login_brings_the_endpoint_the_model_and_the_icon(
    user: User, starter_gguf: Path, canary: Path, bus: PrivateBus
) -> None:
    """What `autostart on` wrote is all that a desktop's session needs."""
    install(user.launcher.with_name("stoker-tray"), "stoker_tray", user.launcher)
    session = user.home / ".config/systemd/user/desktop.target"
    session.parent.mkdir(parents=True)
    session.write_text(DESKTOP_SESSION)
    before = user.files()
    with user.login() as machine:
        machine.stoker("start")
        use_starter(machine, starter_gguf, canary)
        machine.stoker("stop")
        machine.stoker("autostart", "on")

    # The desktops that are installed here have entries of their own: none of them is started.
    with TrayHost(bus) as panel, user.login(XDG_CONFIG_DIRS=str(user.home)) as machine:
        wait_until(machine.is_logged_in, "the login does not end")
        start_desktop(machine, bus)
        panel.wait_for_item()
        assert machine.manager.state(ICON_UNIT) == "active"
        wait_until(lambda: first_line(panel) == "starter — ready", "no model")
        assert machine.is_healthy()
        machine.stoker("stop")
        wait_until(lambda: first_line(panel) == "Stoker is not running", "not told")
        machine.stoker("autostart", "off")
    assert user.files() == before


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


ICON_UNIT = r"app-stoker\x2dtray@autostart.service"  # as the generator names it


def start_desktop(machine: Machine, bus: PrivateBus) -> None:
    """As a desktop does: it tells the manager its variables, then starts its target.

    The manager has a bus of its own, which knows services of this machine to start.
    """
    variables = [f"{name}={value}" for name, value in bus.environ.items()]
    for words in (("set-environment", *variables), ("start", "desktop.target")):
        done = machine.manager.systemctl(*words)
        assert done.returncode == 0, done


def first_line(panel: TrayHost) -> str:
    """Of the menu as it is now; empty before there is one."""
    return next((line.label for line in panel.menu().inside), "")


@pytest.fixture(scope="session")
def canary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The verdict of the engine's self-test, which runs once for these tests."""
    return tmp_path_factory.mktemp("canary") / "canary.json"


def use_starter(machine: Machine, gguf: Path, canary: Path) -> None:
    """The daemon gets the model, and it is the one that serves."""
    verdict = paths.from_environment({"STOKER_HOME": str(machine.stoker_home)}).canary
    if canary.exists():
        shutil.copy(canary, verdict)
    machine.stoker("import", str(gguf), "--name", "starter")
    machine.stoker("use", "starter")
    if verdict.exists():
        shutil.copy(verdict, canary)


CAPITAL = "What is the capital of France? Answer in one short sentence."


def loaded(machine: Machine) -> list[str]:
    """The models that are ready, as far as a daemon answers."""
    ran = machine.run("ps", "--json")
    models = json.loads(ran.stdout) if ran.returncode == 0 else []
    return [model["id"] for model in models if model["state"] == "ready"]
