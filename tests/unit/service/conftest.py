"""Homes to start at login from, and the back ends on them with stand-ins for the system's tools."""

from __future__ import annotations

from pathlib import Path

import pytest

from stoker_service.base import Autostart
from stoker_service.commands import Result
from stoker_service.launchd import LaunchdAutostart
from stoker_service.systemd import SystemdAutostart, unit_entry
from stoker_service.xdg import Folders, XdgAutostart
from tests.fakes.service_home import FakeRunner

HOME = "it's a $HOME “é” %h"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An empty home whose name needs quoting everywhere."""
    folder = tmp_path / HOME
    folder.mkdir()
    return folder


@pytest.fixture
def runner(home: Path) -> FakeRunner:
    """A user manager that takes everything, and finds our unit where we wrote it."""

    def show(words: tuple[str, ...]) -> Result:
        path = home / ".config" / "systemd" / "user" / words[-1]
        state = "loaded" if path.exists() else "not-found"
        return Result(0, f"LoadState={state}\nFragmentPath={path}\n")

    return FakeRunner(
        answers={
            "show -p LoadState": show,
            "is-active": Result(3, "inactive\n"),
            "print-disabled": Result(0, "disabled services = {\n}\n"),
            "launchctl print gui": Result(113, err="Could not find service"),
        }
    )


@pytest.fixture
def systemd(home: Path, runner: FakeRunner) -> SystemdAutostart:
    return SystemdAutostart(
        Folders(home, home / ".config"),
        runner,
        user="me",
        linger_folder=home.parent / "linger",
        mask_folders=(home.parent / "etc",),
    )


@pytest.fixture
def xdg(home: Path) -> XdgAutostart:
    folders = Folders(home, home / ".config")
    return XdgAutostart(folders, rivals=(unit_entry(folders),))


@pytest.fixture
def launchd(home: Path, runner: FakeRunner) -> LaunchdAutostart:
    return LaunchdAutostart(home, runner, uid=501)


@pytest.fixture(params=["systemd", "xdg", "launchd"])
def back_end(request: pytest.FixtureRequest) -> Autostart:
    """Each back end that writes files."""
    found: Autostart = request.getfixturevalue(request.param)
    return found
