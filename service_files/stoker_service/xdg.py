"""Start at login by the desktop: entries in ~/.config/autostart.

The tray starts so under every desktop; the daemon only where there is no systemd user manager.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from stoker.errors import AutostartFailed
from stoker_service import desktop, files, record
from stoker_service.base import Part, PartState, Record, Wish
from stoker_service.files import Entry, File

DAEMON_FILE: Final = "stoker.desktop"
TRAY_FILE: Final = "stoker-tray.desktop"


@dataclass(frozen=True, slots=True)
class Folders:
    """Where this user's files are."""

    home: Path
    config: Path

    @property
    def autostart(self) -> Path:
        return self.config / "autostart"


def daemon_entry(folders: Folders) -> Entry:
    """`stoker start`, which detaches the daemon and ends."""
    path = folders.autostart / DAEMON_FILE

    def words(wish: Wish) -> tuple[str, ...]:
        return (*wish.program.cli, "start")

    def render(wish: Wish, noted: Record) -> tuple[File]:
        about = "Starts the private AI on this machine"
        return (File(path, desktop.entry("Stoker", about, words(wish), noted)),)

    return Entry(files=(path,), render=render, program=words)


def tray_entry(folders: Folders) -> Entry:
    path = folders.autostart / TRAY_FILE

    def words(wish: Wish) -> tuple[str, ...]:
        return wish.program.tray

    def render(wish: Wish, noted: Record) -> tuple[File]:
        about = "Shows the private AI on this machine in the system tray"
        return (File(path, desktop.entry("Stoker tray icon", about, words(wish), noted)),)

    return Entry(files=(path,), render=render, program=words)


def entry_state(entry: Entry, on: str) -> PartState:
    """The state of an entry of this kind; `on` says in words what it does."""
    path = entry.anchor
    noted = record.read(path)
    if noted is None:
        if path.exists() or path.is_symlink():
            problem = f"{path} was not written by Stoker; it is left alone."
            return PartState(enabled=False, detail="off", problem=problem)
        return PartState(enabled=False, detail="off")
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    if desktop.is_off(text):
        return PartState(enabled=False, detail=f"switched off in the desktop's settings ({path})")
    return PartState(enabled=True, detail=f"{on} ({path})", problem=program_problem(noted))


def unreadable(entry: Entry, wish: Wish) -> list[str]:
    """A warning about a path that not every desktop can start."""
    values = (value for _, value in wish.program.environment)
    if not desktop.is_unreadable((*entry.program(wish), *values)):
        return []
    return ["GNOME and KDE cannot start it, for its path has one of $ ` \\ in it."]


def program_problem(noted: Record) -> str | None:
    if noted.program and not Path(noted.program[0]).exists():
        return f"{noted.program[0]} is gone; `stoker autostart on` names the present program."
    return None


@dataclass(frozen=True, slots=True)
class XdgAutostart:
    """For systems without a user manager. It has no supervision: a dead daemon stays dead."""

    folders: Folders
    rivals: tuple[Entry, ...] = ()  # the daemon's entries in other back ends: at most one is on

    @property
    def name(self) -> str:
        return "xdg"

    @property
    def supervises(self) -> bool:
        return False

    def install(self, parts: Collection[Part], wish: Wish) -> tuple[str, ...]:
        refuse_wishes(wish, "without a systemd user manager")
        done: list[str] = []
        entries = self._entries()
        everything = [*entries.values(), *self.rivals]
        with files.working_on(everything, self.folders.home):
            for part in (part for part in Part if part in parts):
                entry = entries[part]
                files.install(entry, wish, others=everything)
                done += [f"{_SENTENCES[part]} ({entry.anchor}).", *unreadable(entry, wish)]
            if Part.DAEMON in parts:
                for rival in self.rivals:
                    files.uninstall(rival)
        return tuple(done)

    def uninstall(self, parts: Collection[Part]) -> tuple[str, ...]:
        entries = self._entries()
        found = []
        with files.working_on([*entries.values(), *self.rivals], self.folders.home):
            for part in (part for part in Part if part in parts):
                rivals = self.rivals if part is Part.DAEMON else ()
                removed = [files.uninstall(entry) for entry in (entries[part], *rivals)]
                if any(removed):
                    found.append(OFF_SENTENCES[part])
        return tuple(found)

    def status(self) -> dict[Part, PartState]:
        return {
            Part.DAEMON: entry_state(daemon_entry(self.folders), "starts with the desktop"),
            Part.TRAY: entry_state(tray_entry(self.folders), "starts with the desktop"),
        }

    def installed(self) -> Record | None:
        return record.read(daemon_entry(self.folders).anchor)

    def is_current(self, wish: Wish) -> bool:
        return files.is_current(daemon_entry(self.folders), wish)

    def holds_port(self) -> bool:
        return False

    def start(self, timeout_s: float = 0) -> bool:
        _ = timeout_s
        return False

    def stop(self, drain_s: float = 0) -> bool:
        _ = drain_s
        return False

    def _entries(self) -> dict[Part, Entry]:
        return {Part.DAEMON: daemon_entry(self.folders), Part.TRAY: tray_entry(self.folders)}


_SENTENCES: Final = {
    Part.DAEMON: "Stoker starts with the desktop",
    Part.TRAY: "The tray icon starts with the desktop",
}
OFF_SENTENCES: Final = {
    Part.DAEMON: "Stoker does not start at login any more.",
    Part.TRAY: "The tray icon does not start at login any more.",
}


def refuse_wishes(wish: Wish, where: str) -> None:
    """Raise AutostartFailed for what only a systemd user manager can do."""
    for wanted, words in (
        (wish.on_demand, "Stoker cannot be started by the first request"),
        (wish.linger, "Stoker cannot be started before the login"),
        (wish.hardened, "the daemon cannot be confined to its own folders"),
    ):
        if wanted:
            msg = f"{words} {where}"
            raise AutostartFailed(msg, hint="`stoker autostart on` alone starts it at login.")
