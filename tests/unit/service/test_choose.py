"""Which back end and which program: from the environment, never by asking the user."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from stoker.errors import AutostartFailed
from stoker_service import choose, find, same_home
from stoker_service.commands import Commands
from stoker_service.launchd import LaunchdAutostart
from stoker_service.systemd import SystemdAutostart
from stoker_service.windows import WindowsAutostart
from stoker_service.xdg import XdgAutostart


@pytest.fixture
def runtime() -> Iterator[Path]:
    """A runtime folder in a short path, with a user manager that listens."""
    with (
        tempfile.TemporaryDirectory(prefix="st-", dir="/tmp") as name,
        socket.socket(socket.AF_UNIX) as manager,
    ):
        folder = Path(name)
        (folder / "systemd").mkdir()
        manager.bind(str(folder / "systemd" / "private"))
        manager.listen()
        yield folder


def test_linux_with_a_user_manager_is_systemds(runtime: Path, tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(runtime)}

    found = choose(environ, "linux")

    assert isinstance(found, SystemdAutostart)
    assert found.folders.config == tmp_path / ".config"
    assert isinstance(found.run, Commands)
    assert found.run.environment["XDG_RUNTIME_DIR"] == str(runtime)
    assert runtime / "systemd" / "user" in found.mask_folders


def test_a_manager_that_left_its_socket_behind_is_none(runtime: Path, tmp_path: Path) -> None:
    (runtime / "systemd" / "private").unlink()
    (runtime / "systemd" / "private").touch()

    found = choose({"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(runtime)}, "linux")

    assert isinstance(found, XdgAutostart)


@pytest.mark.parametrize(("value", "expected"), [("/elsewhere", "/elsewhere"), ("rel", None)])
def test_the_configuration_folder_is_the_users(
    tmp_path: Path, value: str, expected: str | None
) -> None:
    """A relative one does not count, says the specification."""
    environ = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": value, "XDG_RUNTIME_DIR": str(tmp_path)}

    found = choose(environ, "freebsd14")

    assert isinstance(found, XdgAutostart)
    assert found.folders.config == (Path(expected) if expected else tmp_path / ".config")


def test_other_systems_have_their_own(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path), "USERNAME": "me", "USERDOMAIN": "DESK"}

    windows = choose(environ, "win32")

    assert isinstance(choose(environ, "darwin"), LaunchdAutostart)
    assert isinstance(windows, WindowsAutostart)
    assert (windows.user, windows.task_name) == ("DESK\\me", "Stoker-me")


# --- the program -----------------------------------------------------------------------------

PYTHON = (sys.executable, "-I", "-m")


def test_the_launcher_is_preferred_for_it_outlives_an_upgrade(tmp_path: Path) -> None:
    launcher = tmp_path / "my stoker"
    launcher.touch(mode=0o755)
    environ = {"STOKER_COMMAND": str(launcher)}

    alone = find(environ)
    launcher.with_name("my stoker-tray").touch(mode=0o755)
    both = find(environ)

    assert (alone.daemon, alone.cli) == ((str(launcher), "serve"), (str(launcher),))
    assert alone.tray == (*PYTHON, "stoker_tray")
    assert both.tray == (f"{launcher}-tray",)


@pytest.mark.parametrize("command", [None, "", "stoker", "/nowhere/stoker", "/"])
def test_without_a_launcher_it_is_this_python(command: str | None) -> None:
    program = find({} if command is None else {"STOKER_COMMAND": command})

    assert program.daemon == (*PYTHON, "stoker", "serve")
    assert program.tray == (*PYTHON, "stoker_tray")


def test_a_launcher_that_cannot_run_is_none(tmp_path: Path) -> None:
    (tmp_path / "stoker").touch(mode=0o644)
    if os.access(tmp_path / "stoker", os.X_OK):
        pytest.skip("this system runs every file")

    assert find({"STOKER_COMMAND": str(tmp_path / "stoker")}).daemon[0] == sys.executable


def test_a_python_that_does_not_know_itself_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "")

    with pytest.raises(AutostartFailed, match="its own path"):
        find({})


def test_the_home_goes_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made absolute: a program started at login has another working folder."""
    monkeypatch.chdir(tmp_path)
    folders = {"XDG_DATA_HOME": "/data", "XDG_STATE_HOME": "relative", "XDG_CACHE_HOME": "/cache"}

    assert find({"STOKER_HOME": "mine", **folders}).environment == (
        ("STOKER_HOME", str(tmp_path / "mine")),
    )
    assert find(folders).environment == (("XDG_DATA_HOME", "/data"),)
    assert find({}).environment == ()


def test_homes_are_compared_by_where_they_lead(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    one, other = (("STOKER_HOME", str(tmp_path / name)) for name in ("real", "link"))
    default = ("XDG_STATE_HOME", str(Path("~/.local/state").expanduser()))

    assert same_home([one], [other])
    assert same_home([], [default])
    assert not same_home([one], [])
    assert not same_home([], [("XDG_STATE_HOME", str(tmp_path))])


def test_commands_end_in_time_and_never_raise(tmp_path: Path) -> None:
    run = Commands({"WORD": "a  b"})

    assert run("sh", "-c", 'echo "$WORD"').out == "a  b\n"
    assert run("sh", "-c", "sleep 60", timeout_s=0.1).reason == "it did not answer in time"
    assert run(str(tmp_path / "none")).reason.endswith("No such file or directory")
    assert run("sh", "-c", "echo no   >&2; echo way >&2; exit 3").reason == "no"
    assert run("false").reason == "exit code 1"
