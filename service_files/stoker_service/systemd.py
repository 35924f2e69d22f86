"""Start at login by the systemd user manager: supervised, and the port answers at once.

The links that `systemctl enable` makes are made here, so that what `off` must remove is known
to the last folder. The manager is only told afterwards; whatever it says, the files are right.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from stoker import paths
from stoker.errors import AutostartBlocked, AutostartFailed
from stoker_service import files, record, units
from stoker_service.base import DRAIN_S, Part, PartState, Record, Wish
from stoker_service.commands import SHORT_S, Result, Runner
from stoker_service.files import Entry, File, Item, Link
from stoker_service.xdg import (
    OFF_SENTENCES,
    Folders,
    daemon_entry,
    entry_state,
    program_problem,
    tray_entry,
    unreadable,
)

START_S: Final = 100.0  # longer than systemd's own 90 s for a start
_STOP_MARGIN_S: Final = 70.0  # the daemon asks systemd for 60 s beyond its drain
_ESCAPED: Final = re.compile(rb"\\x([0-9a-fA-F]{2})")
_UNITS: Final = (units.SOCKET, units.SERVICE)
_UNMASK: Final = f"To allow it again: systemctl --user unmask {' '.join(_UNITS)}"
# Where an administrator forbids a user's unit.
MASK_FOLDERS: Final = (Path("/etc/systemd/user"), Path("/run/systemd/user"))


@dataclass(frozen=True, slots=True)
class SystemdAutostart:
    """The daemon as a user unit; the tray as a desktop entry, which every session understands."""

    folders: Folders
    run: Runner
    user: str
    linger_folder: Path = Path("/var/lib/systemd/linger")
    mask_folders: tuple[Path, ...] = MASK_FOLDERS

    @property
    def name(self) -> str:
        return "systemd"

    @property
    def supervises(self) -> bool:
        return True

    # --- the seam ----------------------------------------------------------------------------

    def install(self, parts: Collection[Part], wish: Wish) -> tuple[str, ...]:
        done: list[str] = []
        with files.working_on(self._entries(), self.folders.home):
            if Part.DAEMON in parts:
                done += self._install_daemon(wish)
            if Part.TRAY in parts:
                tray = tray_entry(self.folders)
                files.install(tray, wish, others=self._entries())
                done += [f"The tray icon starts at login ({tray.anchor}).", *unreadable(tray, wish)]
        return tuple(done)

    def uninstall(self, parts: Collection[Part]) -> tuple[str, ...]:
        done: list[str] = []
        with files.working_on(self._entries(), self.folders.home):
            if Part.DAEMON in parts:
                done += self._uninstall_daemon()
            if Part.TRAY in parts and files.uninstall(tray_entry(self.folders)):
                done.append(OFF_SENTENCES[Part.TRAY])
        return tuple(done)

    def status(self) -> dict[Part, PartState]:
        return {
            Part.DAEMON: self._daemon_state(),
            Part.TRAY: entry_state(tray_entry(self.folders), "starts at login"),
        }

    def installed(self) -> Record | None:
        entry = unit_entry(self.folders)
        noted = record.read(entry.anchor)
        if noted is None or not self._is_enabled():
            return noted
        return replace(noted, on_demand=not _is_link(entry.links[-1]))

    def is_current(self, wish: Wish) -> bool:
        return files.is_current(unit_entry(self.folders), wish)

    def holds_port(self) -> bool:
        return self._systemctl("is-active", units.SOCKET).ok and not self._is_active()

    def start(self, timeout_s: float = START_S) -> bool:
        noted = self.installed()
        if noted is None or not self._is_enabled() or self._mask() is not None:
            return False
        wanted = [unit for unit in _UNITS if (self._units_folder / unit).exists()]
        # Five failures a minute ago do not count.
        self._systemctl("reset-failed", *wanted, timeout_s=min(timeout_s, SHORT_S))
        started = self._systemctl("start", *wanted, timeout_s=timeout_s)
        if self._is_active():
            return True
        if started.code is None:
            msg = f"systemd did not start {units.SERVICE} within {timeout_s:.0f} s"
            raise AutostartFailed(msg, timed_out=True)
        reason = program_problem(noted) or started.reason
        raise AutostartFailed(f"systemd could not start {units.SERVICE}: {reason}")

    def stop(self, drain_s: float = DRAIN_S) -> bool:
        if record.read(unit_entry(self.folders).anchor) is None:
            return False
        stopped = self._systemctl("stop", *_UNITS, timeout_s=drain_s + _STOP_MARGIN_S)
        if not stopped.ok and self._is_active():
            raise AutostartFailed(f"systemd could not stop {units.SERVICE}: {stopped.reason}")
        return True

    # --- install and uninstall ---------------------------------------------------------------

    def _install_daemon(self, wish: Wish) -> Iterator[str]:
        """Step by step; yields what was done."""
        self._refuse(wish)
        entry = unit_entry(self.folders)
        if wish.hardened:
            reason = self._cannot_confine(wish)
            if reason:
                wish = replace(wish, hardened=False)
                yield f"The daemon is not confined to its own folders: {reason}."
        before = record.read(entry.anchor)
        old_socket = _text(self._units_folder / units.SOCKET)
        linger, trouble = self._linger_first(wish, before or Record())
        files.install(entry, wish, others=self._entries(), linger=linger)
        files.uninstall(daemon_entry(self.folders))  # it would start the daemon a second time
        when = "with the first request" if wish.on_demand else "at login"
        yield f"Stoker starts {when} ({entry.anchor})."
        reloaded = self._systemctl("daemon-reload")
        if reloaded.ok:
            self._check_loaded(entry, new=before is None)
            yield from self._listen(wish, old_socket)
        else:
            yield f"systemd was not told ({reloaded.reason}); it takes effect at the next login."
        yield from self._linger_last(entry, wish, linger=linger)
        if trouble:
            yield trouble

    def _refuse(self, wish: Wish) -> None:
        """Raise for what cannot be done, before anything is written."""
        mask = self._mask()
        if mask is not None:
            msg = f"{mask} is masked: starting at login was forbidden there"
            raise AutostartBlocked(msg, hint=_UNMASK)
        if wish.on_demand and not units.has_socket(wish):
            msg = "with port 0 nothing can listen in the daemon's place"
            raise AutostartFailed(msg, hint="Choose a port: `stoker config set port 4328`.")

    def _uninstall_daemon(self) -> Iterator[str]:
        entry = unit_entry(self.folders)
        noted = record.read(entry.anchor)
        if noted is not None:  # the daemon keeps its own hold on the port when it runs
            self._systemctl("stop", units.SOCKET)
        found = files.uninstall(entry)
        if files.uninstall(daemon_entry(self.folders)) or found:
            yield OFF_SENTENCES[Part.DAEMON]
        if found:
            reloaded = self._systemctl("daemon-reload")
            if not reloaded.ok:
                yield f"systemd was not told ({reloaded.reason}); it forgets at the next login."
        if noted is not None and noted.linger:
            reason = self._set_linger(on=False)
            if reason:
                yield f"Lingering could not be switched off: {reason}."

    def _check_loaded(self, entry: Entry, *, new: bool) -> None:
        """Raise when the manager does not take our unit, and leave nothing half done then."""
        shown = self._systemctl("show", "-p", "LoadState", "-p", "FragmentPath", units.SERVICE)
        facts = dict(line.partition("=")[::2] for line in shown.out.splitlines())
        if not shown.ok or (
            facts.get("LoadState") == "loaded" and _is_same(facts.get("FragmentPath"), entry.anchor)
        ):
            return
        if new:
            files.uninstall(entry)
            self._systemctl("daemon-reload")
        msg = f"systemd's user manager does not read units in {entry.anchor.parent}"
        hint = "XDG_CONFIG_HOME differs between this terminal and your login; make it the same."
        if facts.get("LoadState") not in {"loaded", "not-found"}:
            msg = f"systemd does not accept {entry.anchor}"
            hint = f"See: systemctl --user status {units.SERVICE}"
        raise AutostartFailed(msg, hint=hint)

    def _listen(self, wish: Wish, old_socket: str) -> Iterator[str]:
        """Let the port answer from now on, unless a daemon has it already."""
        if self._is_active():
            return  # it has the port, or gets the new one at its next start
        listens = self._systemctl("is-active", units.SOCKET).ok
        if not units.has_socket(wish):
            if listens:
                self._systemctl("stop", units.SOCKET)
            return
        if listens and units.socket(wish) == old_socket:
            return
        if listens or _is_free(wish):
            started = self._systemctl("restart", units.SOCKET)
            if not started.ok:
                yield f"systemd does not listen on port {wish.port} yet: {started.reason}."

    # --- lingering ---------------------------------------------------------------------------

    def _linger_first(self, wish: Wish, before: Record) -> tuple[bool, str | None]:
        """Whether lingering is ours to take back, as it must be noted, and what went wrong."""
        if wish.linger:
            return before.linger or not self._lingers(), None
        reason = self._set_linger(on=False) if before.linger else None
        return (
            (True, f"Lingering could not be switched off: {reason}.") if reason else (False, None)
        )

    def _linger_last(self, entry: Entry, wish: Wish, *, linger: bool) -> Iterator[str]:
        """Switch it on; it was noted as ours before, so that an interruption loses nothing."""
        if not wish.linger:
            return
        reason = self._set_linger(on=True)
        if reason:
            if linger and not self._lingers():
                files.install(entry, wish, others=self._entries(), linger=False)
            msg = f"Stoker starts at login, but not with the machine: {reason}"
            hint = f"An administrator can allow it: loginctl enable-linger {self.user}"
            raise AutostartFailed(msg, hint=hint)
        yield "It starts with the machine and goes on after a logout (lingering)."

    def _lingers(self) -> bool:
        return (self.linger_folder / self.user).exists()

    def _set_linger(self, *, on: bool) -> str | None:
        """Why it could not be done, or None."""
        if self._lingers() == on:
            return None
        verb = "enable-linger" if on else "disable-linger"
        done = self.run("loginctl", "--no-ask-password", verb, self.user)
        return None if done.ok else done.reason

    # --- looking -----------------------------------------------------------------------------

    @property
    def _units_folder(self) -> Path:
        return unit_entry(self.folders).anchor.parent

    def _entries(self) -> list[Entry]:
        """Everything of ours that may share a folder."""
        return [unit_entry(self.folders), daemon_entry(self.folders), tray_entry(self.folders)]

    def _daemon_state(self) -> PartState:
        entry = unit_entry(self.folders)
        mask = self._mask()
        if mask is not None:
            return PartState(enabled=False, detail=f"masked by {mask}. {_UNMASK}")
        noted = record.read(entry.anchor)
        if noted is None:
            if entry.anchor.exists():
                problem = f"{entry.anchor} was not written by Stoker; it is left alone."
                return PartState(enabled=False, detail="off", problem=problem)
            return entry_state(daemon_entry(self.folders), "starts with the desktop")
        if not self._is_enabled():
            return PartState(enabled=False, detail=f"disabled with systemctl ({entry.anchor})")
        when = "starts at login" if _is_link(entry.links[-1]) else "starts with the first request"
        return PartState(
            enabled=True, detail=f"{when} ({entry.anchor})", problem=program_problem(noted)
        )

    def _is_enabled(self) -> bool:
        return any(map(_is_link, unit_entry(self.folders).links))

    def _mask(self) -> Path | None:
        """What forbids our units, the user's or the administrator's."""
        folders = (self._units_folder, *self.mask_folders)
        masks = (folder / unit for folder in folders for unit in _UNITS)
        return next(filter(files.is_mask, masks), None)

    def _is_active(self) -> bool:
        return self._systemctl("is-active", units.SERVICE).ok

    def _cannot_confine(self, wish: Wish) -> str | None:
        """Why this system cannot run the hardened unit, or None: the manager itself tries it."""
        for folder in _writable(wish):
            if not folder.is_dir():
                return f"{folder} is not there yet; start Stoker once"
        lines = ("PrivateUsers=yes", "ProtectSystem=strict", "ProtectHome=read-only")
        options = [word for line in lines for word in ("-p", line)]
        tried = self.run("systemd-run", "--user", "--wait", "--quiet", *options, "true")
        return None if tried.ok else f"it needs user namespaces ({tried.reason})"

    def _systemctl(self, *words: str, timeout_s: float = SHORT_S) -> Result:
        return self.run("systemctl", "--user", "--no-ask-password", *words, timeout_s=timeout_s)


def unit_entry(folders: Folders) -> Entry:
    """The daemon's units and the links that enable them."""
    folder = folders.config / "systemd" / "user"
    service, listener = folder / units.SERVICE, folder / units.SOCKET
    drop_in = folder / f"{units.SERVICE}.d" / units.HARDENED
    at_login = folder / "default.target.wants" / units.SERVICE
    listening = folder / "sockets.target.wants" / units.SOCKET

    def render(wish: Wish, noted: Record) -> tuple[Item, ...]:
        items: list[Item] = [File(service, units.service(wish, noted))]
        if units.has_socket(wish):
            items += [File(listener, units.socket(wish)), Link(listening, str(listener))]
        if wish.hardened:
            items.append(File(drop_in, units.hardened(_writable(wish))))
        if not wish.on_demand:
            items.append(Link(at_login, str(service)))
        return tuple(items)

    return Entry(
        files=(service, listener, drop_in),
        links=(listening, at_login),
        render=render,
        program=lambda wish: wish.program.daemon,
        unblock=_UNMASK,
    )


def _writable(wish: Wish) -> list[Path]:
    """The folders that the daemon writes to."""
    places = paths.from_environment(dict(wish.program.environment))
    return list(dict.fromkeys((places.data, places.config, places.state, places.run)))


def _is_link(path: Path) -> bool:
    return path.is_symlink() and not files.is_mask(path)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _is_same(shown: str | None, path: Path) -> bool:
    """Whether a path as systemctl prints it, with odd bytes in hexadecimal, is this one."""
    raw = _ESCAPED.sub(lambda found: bytes([int(found[1], 16)]), os.fsencode(shown or ""))
    try:
        return Path(os.fsdecode(raw)).samefile(path)
    except OSError:
        return False


def _is_free(wish: Wish) -> bool:
    """Whether nobody listens there. A connection would start the daemon, so none is made."""
    host = "127.0.0.1" if wish.host == "localhost" else wish.host
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as channel:
            channel.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            channel.bind((host, wish.port))
    except OSError:
        return False
    return True
