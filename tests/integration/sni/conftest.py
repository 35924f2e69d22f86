"""A real session bus, the tray's adapter on it, and what else is there."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from stoker_tray.adapters.sni import SniShell
from tests.fakes.bus_services import FakeNotifications
from tests.fakes.session_bus import PrivateBus
from tests.fakes.sni_shell import MakeShell, Show
from tests.fakes.tray_host import TrayHost
from tests.fakes.tray_listener import RecordingListener, StandInIcons, running


@pytest.fixture(autouse=True)
def dbus_daemon() -> None:
    if not PrivateBus.is_installed():
        pytest.skip("dbus-daemon is missing: install the package dbus")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: a socket's holds about 100 bytes."""
    found = Path(tempfile.mkdtemp(prefix="st-", dir="/tmp"))
    yield found
    shutil.rmtree(found)


@pytest.fixture
def bus(folder: Path) -> Iterator[PrivateBus]:
    with PrivateBus(folder) as found:
        yield found


@pytest.fixture
def host(bus: PrivateBus) -> Iterator[TrayHost]:
    with TrayHost(bus) as found:
        yield found


@pytest.fixture
def notifications(bus: PrivateBus) -> Iterator[FakeNotifications]:
    with FakeNotifications(bus) as found:
        yield found


@pytest.fixture
def listener() -> RecordingListener:
    return RecordingListener()


@pytest.fixture
def draw() -> StandInIcons:
    return StandInIcons()


@pytest.fixture
def make_shell(folder: Path, listener: RecordingListener, draw: StandInIcons) -> MakeShell:
    return MakeShell(folder, listener, draw)


@pytest.fixture
def shell(make_shell: MakeShell, bus: PrivateBus) -> Iterator[SniShell]:
    """An adapter that runs."""
    found = make_shell()
    with running(found):
        yield found


@pytest.fixture
def show(shell: SniShell, host: TrayHost) -> Show:
    return Show(shell, host)
