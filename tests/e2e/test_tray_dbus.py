"""Every item of the tray's menu, clicked over D-Bus: real tray, real daemon, no screen."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from stoker.schemas import PullView
from stoker.types import ModelState, PullState
from stoker_tray import prefs
from tests.fakes.bus_services import FakeNotifications
from tests.fakes.daemon import Daemon, assert_gone
from tests.fakes.desktop_programs import wait_until
from tests.fakes.desktop_session import Session, artefact_folder
from tests.fakes.hub import Drip, Hub
from tests.fakes.pulling import model_bytes
from tests.fakes.session_bus import DBusError, PrivateBus
from tests.fakes.tray_host import Line, TrayHost

pytestmark = pytest.mark.e2e

SWITCH_S = 60.0  # a load on a busy two-core machine


class Menu:
    """The menu as a person reads it: lines are named by how they begin."""

    def __init__(self, host: TrayHost) -> None:
        self._host = host

    def line(self, *path: str) -> Line | None:
        """The line that these beginnings lead to, if it is there."""
        found = self._host.menu()
        for text in path:
            inside = [line for line in found.inside if line.label.startswith(text)]
            if not inside:
                return None
            found = inside[0]
        return found

    def wait_for(self, *path: str, label: str = "") -> Line:
        """The line, once it is there and contains this text."""

        def look() -> Line | None:
            line = self.line(*path)
            return line if line is not None and label in line.label else None

        return wait_until(look, f"{path} with {label!r} in the menu", SWITCH_S)

    def click(self, *path: str) -> None:
        """Open the menu and click; the line must be one that can be clicked."""
        line = self.wait_for(*path)  # while it is open, no line comes
        self._host.open_menu()
        assert line.enabled, line
        self._host.event(line.number, "clicked")
        with contextlib.suppress(DBusError):  # the click may have ended the tray
            self._host.close_menu()

    def is_checked(self, *path: str) -> bool:
        line = self.line(*path)
        assert line is not None, path
        return line.checked


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as hub:
        yield hub


@pytest.fixture
def daemon(tmp_path: Path, starter_gguf: Path, canary: Path, hub: Hub) -> Iterator[Daemon]:
    """A daemon with two models, one of them ready, whose downloads come from a simulated hub."""
    daemon = Daemon(tmp_path / "home", hub_endpoint=hub.endpoint)
    daemon.canary = canary
    with daemon:
        daemon.add(starter_gguf, "starter")
        daemon.add(starter_gguf, "second")
        with daemon.client() as client:
            client.load("starter")
        yield daemon


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    if not PrivateBus.is_installed():
        problem = "THE TRAY WAS NOT TRIED ON A SESSION BUS: needs dbus-daemon"
        if os.environ.get("CI") == "true":
            pytest.fail(problem)
        pytest.skip(problem)
    with Session(artefact_folder(tmp_path / "artefacts")) as session:
        yield session


@pytest.fixture
def notifications(session: Session) -> Iterator[FakeNotifications]:
    with FakeNotifications(session.bus) as notifications:
        yield notifications


@pytest.fixture
def host(session: Session) -> Iterator[TrayHost]:
    with TrayHost(session.bus) as host:
        yield host


@pytest.fixture
def tray(session: Session, host: TrayHost, daemon: Daemon) -> psutil.Process:
    """The real tray, whose menu shows the daemon's model."""
    process = session.start_tray(daemon.home)
    host.wait_for_item()
    Menu(host).wait_for("starter — ready")
    return process


@pytest.fixture
def menu(host: TrayHost, tray: psutil.Process) -> Menu:
    return Menu(host)


def wait_for_model(daemon: Daemon, name: str, state: ModelState) -> None:
    wait_until(lambda: daemon.model(name).state is state, f"{name} {state}", SWITCH_S)


def wait_for_download(daemon: Daemon, state: PullState) -> PullView:
    """The pull that is no import, once it is in this state."""

    def look() -> PullView | None:
        pulls = (pull for pull in daemon.status().pulls if not pull.reference.startswith("/"))
        return next((pull for pull in pulls if pull.state is state), None)

    return wait_until(look, f"a download that is {state}")


def can_connect(base_url: str) -> bool:
    url = urlsplit(base_url)
    try:
        socket.create_connection((str(url.hostname), int(url.port or 80)), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


def files_below(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Mode and content of everything in it."""
    return {
        str(path.relative_to(folder)): (
            path.lstat().st_mode,
            path.read_bytes() if path.is_file() else b"",
        )
        for path in folder.rglob("*")
    }


# --- models ----------------------------------------------------------------------------------


def test_a_model_is_used(menu: Menu, daemon: Daemon) -> None:
    """The other one is unloaded, and the radio mark moves."""
    assert menu.is_checked("Models", "starter")

    menu.click("Models", "second")

    wait_for_model(daemon, "second", ModelState.READY)
    wait_for_model(daemon, "starter", ModelState.UNLOADED)
    menu.wait_for("second — ready")
    # A model that drains is still marked, until the next face.
    wait_until(lambda: not menu.is_checked("Models", "starter"), "one mark")
    assert menu.is_checked("Models", "second")


def test_none_unloads(menu: Menu, daemon: Daemon) -> None:
    """The model's memory is free again; the endpoint stays."""
    menu.click("Models", "None")

    wait_for_model(daemon, "starter", ModelState.UNLOADED)
    menu.wait_for("No model loaded")
    assert menu.is_checked("Models", "None")
    assert can_connect(daemon.base_url)


def test_free_memory_unloads_what_is_idle(menu: Menu, daemon: Daemon) -> None:
    menu.click("Free memory now")

    wait_for_model(daemon, "starter", ModelState.UNLOADED)
    wait_until(lambda: menu.line("Free memory now") is None, "nothing left to free")


# --- the server ------------------------------------------------------------------------------


def test_the_server_goes_off_and_on_again(menu: Menu, daemon: Daemon) -> None:
    """Off closes the port and unloads; on brings the address and the model back."""
    base_url = daemon.base_url
    assert menu.is_checked("Serve on")

    menu.click("Serve on")

    wait_until(lambda: not can_connect(base_url), "a closed port")
    menu.wait_for("Server is off")
    assert not menu.is_checked("Serve on")
    assert menu.line("Models") is None
    wait_for_model(daemon, "starter", ModelState.UNLOADED)
    menu.click("Serve on")
    wait_until(lambda: can_connect(base_url), "an open port")
    wait_for_model(daemon, "starter", ModelState.READY)
    menu.wait_for("starter — ready")
    assert daemon.base_url == base_url


# --- downloads -------------------------------------------------------------------------------


def test_a_download_is_paused_resumed_and_finished(
    menu: Menu, daemon: Daemon, hub: Hub, notifications: FakeNotifications
) -> None:
    """It comes byte by byte until the pause; after it, the rest comes at once."""
    hub.publish("org/model-GGUF", {"model-Q4_K_M.gguf": model_bytes(400_000)})
    hub.always = Drip(after=50_000)
    with daemon.client() as client:
        client.pull("org/model-GGUF", name="pulled")

    menu.click("pulled — ", "Pause")

    wait_for_download(daemon, PullState.PAUSED)
    menu.wait_for("pulled — ", label="paused")
    hub.always = None
    menu.click("pulled — ", "Resume")
    wait_for_download(daemon, PullState.DONE)
    menu.wait_for("Models", "pulled")
    assert notifications.wait_for(1).title == "pulled is downloaded"


def test_a_download_is_cancelled(menu: Menu, daemon: Daemon, hub: Hub) -> None:
    hub.publish("org/model-GGUF", {"model-Q4_K_M.gguf": model_bytes(400_000)})
    hub.always = Drip(after=50_000)
    with daemon.client() as client:
        client.pull("org/model-GGUF", name="pulled")

    menu.click("pulled — ", "Cancel")

    wait_for_download(daemon, PullState.CANCELLED)
    wait_until(lambda: menu.line("pulled — ") is None, "a menu without the download")


def test_a_model_of_the_catalogue_is_added(
    menu: Menu, daemon: Daemon, notifications: FakeNotifications
) -> None:
    """A click pulls it by its short name; here the hub lacks it, and the user is told so."""
    offer = menu.wait_for("Add model").inside[0]

    menu.click("Add model", offer.label)

    pull = wait_for_download(daemon, PullState.FAILED)
    assert pull.model is not None
    assert notifications.wait_for(1).title == f"{pull.model} could not be downloaded"
    failed = menu.wait_for(f"{pull.model} — failed")
    assert [line.label for line in failed.inside] == ["Try again"]
    menu.click(failed.label, "Try again")
    assert notifications.wait_for(2).title == f"{pull.model} could not be downloaded"


# --- the desktop -----------------------------------------------------------------------------


def test_the_url_is_copied(session: Session, host: TrayHost, daemon: Daemon) -> None:
    """It reaches the clipboard's program as it is, without a line end."""
    record = session.provide("wl-copy")
    session.programs.environ["WAYLAND_DISPLAY"] = "wayland-of-a-test"
    session.start_tray(daemon.home)
    host.wait_for_item()

    Menu(host).click("Copy endpoint URL")

    wait_until(record.exists, "a copied address")
    assert record.read_text().strip("\n") == daemon.base_url


def test_the_url_is_shown_where_there_is_no_clipboard(
    menu: Menu, daemon: Daemon, notifications: FakeNotifications
) -> None:
    menu.click("Copy endpoint URL")

    assert daemon.base_url in notifications.wait_for(1).text


def test_the_logs_are_opened(session: Session, menu: Menu, daemon: Daemon) -> None:
    """In the user's own program for folders."""
    record = session.provide("xdg-open")

    menu.click("Open logs")

    wait_until(record.exists, "an opened folder")
    assert record.read_text().strip() == str(daemon.paths.logs)


@pytest.mark.parametrize("switch", ["Start at login", "Show this icon at login"])
def test_start_at_login_goes_on_and_off_without_a_trace(
    session: Session, menu: Menu, switch: str
) -> None:
    """On writes the system's own entry; off leaves the home as it was, byte for byte."""
    assert not menu.wait_for(switch).checked
    before = files_below(session.home)

    menu.click(switch)

    wait_until(lambda: menu.is_checked(switch), f"{switch}: on")
    assert any("stoker" in name for name in set(files_below(session.home)) - set(before))
    menu.click(switch)
    wait_until(lambda: not menu.is_checked(switch), f"{switch}: off")
    assert files_below(session.home) == before


def test_a_muted_notification_is_silent_also_after_a_restart(
    session: Session,
    host: TrayHost,
    menu: Menu,
    daemon: Daemon,
    hub: Hub,
    notifications: FakeNotifications,
) -> None:
    """The choice is kept; another kind of notification is still shown."""
    menu.click("Notifications", "A download is finished")
    wait_until(lambda: not menu.is_checked("Notifications", "A download is finished"), "muted")
    wait_until(lambda: prefs.load(daemon.paths.tray_settings), "the choice on disk")
    session.programs.end("tray")
    session.start_tray(daemon.home)
    host.wait_for_item(2)
    menu.wait_for("starter — ready")
    assert not menu.is_checked("Notifications", "A download is finished")

    hub.publish("org/model-GGUF", {"model-Q4_K_M.gguf": model_bytes(40_000)})
    daemon.pull("org/model-GGUF", name="pulled")
    menu.wait_for("Models", "pulled")
    daemon.pull("org/absent-GGUF", name="absent")

    assert "absent" in notifications.wait_for(1).title
    menu.click("Notifications", "A download is finished")
    wait_until(lambda: menu.is_checked("Notifications", "A download is finished"), "not muted")


# --- life ------------------------------------------------------------------------------------


def test_quit_removes_the_icon_only(menu: Menu, session: Session, daemon: Daemon) -> None:
    menu.click("Quit icon")

    assert session.programs.wait_for_end("tray") == 0
    assert daemon.model("starter").state is ModelState.READY


def test_stop_ends_the_daemon_and_the_icon(menu: Menu, session: Session, daemon: Daemon) -> None:
    workers = daemon.workers()

    menu.click("Stop Stoker")

    assert session.programs.wait_for_end("tray") == 0
    assert daemon.process is not None
    assert daemon.process.wait(SWITCH_S) == 0
    assert_gone(workers)


def test_start_starts_the_daemon(
    session: Session, host: TrayHost, tray: psutil.Process, menu: Menu, daemon: Daemon
) -> None:
    """The icon stays when the daemon is gone, and one click brings it back with its model."""
    daemon.stop()
    menu.wait_for("Stoker is not running")

    host.left_click()  # the one thing to do without a daemon

    try:
        menu.wait_for("starter — ready")
        assert daemon.model("starter").state is ModelState.READY
        assert tray.is_running()
    finally:
        assert daemon.cli("stop").returncode == 0
