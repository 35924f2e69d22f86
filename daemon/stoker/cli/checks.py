"""What `doctor` looks at beside the hardware: settings, folders, daemon, port, tray, version."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Final

from stoker import __version__, errors
from stoker.cli import autostart, process
from stoker.hardware.assess import Finding

if TYPE_CHECKING:
    from stoker.paths import Paths
    from stoker.schemas import StatusView
    from stoker.settings import Settings

_TRAY_NAME: Final = "org.kde.StatusNotifierWatcher"
_BUS_TIMEOUT_S: Final = 2.0
_UPDATE_S: Final = 5.0  # a person waits for it


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def check_settings(places: Paths) -> tuple[Settings | None, Finding]:
    """The settings when they are sound, and what was found."""
    from stoker import settings

    file = places.config_file
    try:
        loaded = settings.load(file)
    except errors.BadSetting as error:
        return None, Finding("fail", "settings", error.message, error.hint)
    text = f"{file} is sound" if file.exists() else "all settings have their defaults"
    return loaded, Finding("ok", "settings", text)


def check_folders(places: Paths) -> Finding:
    """Whether everything that Stoker writes can be written."""
    for folder in (places.data, places.config, places.state, places.run):
        there = existing(folder)
        if not os.access(there, os.W_OK | os.X_OK):
            fix = f"Make it yours: chown {os.environ.get('USER', 'you')} {there}"
            return Finding("fail", "folders", f"{there} cannot be written", fix)
    return Finding("ok", "folders", f"data in {places.data}")


def check_daemon(wishes: Settings | None) -> list[Finding]:
    """Whether it runs and answers; when not, whether its port is free."""
    try:
        status = process.running()
    except errors.StokerError as error:
        return [Finding("fail", "daemon", error.message, error.hint)]
    if status is not None:
        # A problem says itself what to do about it.
        return [_running(status), *(Finding("fail", "problem", text) for text in status.problems)]
    is_free = wishes is None or not wishes.port or port_is_free(wishes.host, wishes.port)
    holder = None if is_free else _manager_on_port()
    if holder is not None:
        text = f"it is not running; {holder} starts it with the first request"
        return [Finding("ok", "daemon", text)]
    findings = [Finding("warn", "daemon", "it is not running", errors.DaemonNotRunning.hint)]
    if wishes is not None and not is_free:
        text = f"port {wishes.port} is taken by another program"
        findings.append(Finding("fail", "port", text, errors.PortTaken.hint))
    return findings


def _manager_on_port() -> str | None:
    """The service manager that listens in the daemon's place, if one does."""
    try:
        manager = autostart.manager()
        return manager.name if manager is not None and manager.holds_port() else None
    except errors.StokerError:
        return None


def _running(status: StatusView) -> Finding:
    server = status.server
    place = f"endpoint {server.base_url}" if server.enabled else "the server is off"
    text = f"version {status.daemon.version} answers, {place}"
    if status.daemon.version != __version__:
        text += f", but this program is version {__version__}"
        return Finding("warn", "daemon", text, "Run `stoker restart`.")
    if not server.enabled:
        return Finding("warn", "daemon", text, errors.ServerOff.hint)
    return Finding("ok", "daemon", text)


def port_is_free(host: str, port: int) -> bool:
    """Whether nothing listens there. A connection might start the daemon, so none is made."""
    address = "127.0.0.1" if host == "localhost" else host
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            if sys.platform != "win32":  # there it would share a taken port
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address, port))
    except OSError:
        return False
    return True


def check_update(wishes: Settings | None) -> list[Finding]:
    """Whether a newer version is there; asks for it only when the user wants that."""
    if wishes is None:
        return []
    if not wishes.update_check:
        text = "the check is off; `stoker config set update_check true` turns it on"
        return [Finding("ok", "update", text)]
    if wishes.offline:
        return [Finding("ok", "update", "the check rests while offline mode is on")]
    return [_look_for_update()]


def _look_for_update() -> Finding:
    import anyio

    from stoker import updates

    try:
        found = anyio.run(partial(updates.look, __version__, deadline_s=_UPDATE_S))
    except errors.StokerError as error:
        return Finding("warn", "update", error.message, error.hint)
    if found is None:
        return Finding("ok", "update", f"version {__version__} is the newest")
    text = f"version {found} is there; this is {__version__}"
    return Finding("warn", "update", text, f"See {updates.PAGE}")


def tray_host(environ: Mapping[str, str] = os.environ) -> bool | None:
    """Whether this desktop shows tray icons; None when there is no desktop or no way to ask."""
    if not sys.platform.startswith("linux"):
        return True
    if not (environ.get("DISPLAY") or environ.get("WAYLAND_DISPLAY")):
        return None
    try:
        jeepney = import_module("jeepney")  # comes with the tray; it has no types
        blocking = import_module("jeepney.io.blocking")
    except ImportError:  # the tray is not installed
        return None
    bus_name = "org.freedesktop.DBus"
    bus = jeepney.DBusAddress("/org/freedesktop/DBus", bus_name, bus_name)
    try:
        with blocking.open_dbus_connection("SESSION") as connection:
            call = jeepney.new_method_call(bus, "NameHasOwner", "s", (_TRAY_NAME,))
            reply = connection.send_and_get_reply(call, timeout=_BUS_TIMEOUT_S)
    except (OSError, KeyError, ValueError, TimeoutError):
        return None
    return reply.body[0] is True
