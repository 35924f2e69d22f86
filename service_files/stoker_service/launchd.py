"""Start at login on macOS: two LaunchAgents in ~/Library/LaunchAgents.

Writing the files is enough for the next login; `start` and `stop` load and unload the daemon's
agent in the session that runs. launchd's own switch (System Settings, Login Items) is respected.
"""

from __future__ import annotations

import math
import plistlib
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from stoker import paths
from stoker.errors import AutostartBlocked, AutostartFailed
from stoker_service import files, record
from stoker_service.base import DRAIN_S, Part, PartState, Record, Wish
from stoker_service.commands import Commands, Runner
from stoker_service.files import Entry, File
from stoker_service.xdg import OFF_SENTENCES, program_problem, refuse_wishes

LABELS: Final = {
    Part.DAEMON: "io.github.stoker-ai.stoker",
    Part.TRAY: "io.github.stoker-ai.stoker.tray",
}
# launchd's own is bare; pip and the engines look for tools.
_PATH: Final = "/opt/homebrew/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
_THROTTLE_S: Final = 10  # launchd's own least time between two starts
_STOP_MARGIN_S: Final = 15  # after the running answers have ended: workers and sockets close
_MARGIN_S: Final = 10.0  # beyond the time after which launchd kills
_START_S: Final = 30.0  # launchd starts the process and returns
_DISABLED: Final = r'"{label}"\s*=>\s*(?:true|disabled)'
_HEAD: Final = b"<plist "


@dataclass(frozen=True, slots=True)
class LaunchdAutostart:
    """The agents of this user."""

    home: Path
    run: Runner
    uid: int

    @property
    def name(self) -> str:
        return "launchd"

    @property
    def supervises(self) -> bool:
        return True

    def install(self, parts: Collection[Part], wish: Wish) -> tuple[str, ...]:
        refuse_wishes(wish, "by launchd")
        done = []
        entries = {part: agent_entry(self.home, part) for part in Part}
        with files.working_on(entries.values(), self.home):
            for part in _ordered(parts):
                if self._is_disabled(part):
                    msg = f"{LABELS[part]} is switched off in the system's Login Items"
                    hint = f"Switch it on there, or: launchctl enable {self._target(part)}"
                    raise AutostartBlocked(msg, hint=hint)
                files.install(entries[part], wish, others=entries.values())
                done.append(f"{_SENTENCES[part]} ({entries[part].anchor}).")
        return tuple(done)

    def uninstall(self, parts: Collection[Part]) -> tuple[str, ...]:
        entries = {part: agent_entry(self.home, part) for part in Part}
        with files.working_on(entries.values(), self.home):
            return tuple(
                OFF_SENTENCES[part] for part in _ordered(parts) if files.uninstall(entries[part])
            )

    def status(self) -> dict[Part, PartState]:
        return {part: self._state(part) for part in Part}

    def installed(self) -> Record | None:
        return record.read(agent_entry(self.home, Part.DAEMON).anchor)

    def is_current(self, wish: Wish) -> bool:
        return files.is_current(agent_entry(self.home, Part.DAEMON), wish)

    def holds_port(self) -> bool:
        return False

    def start(self, timeout_s: float = _START_S) -> bool:
        if self.installed() is None:
            return False
        plist = agent_entry(self.home, Part.DAEMON).anchor
        target = self._target(Part.DAEMON)
        if self.run("launchctl", "print", target).ok:
            started = self.run("launchctl", "kickstart", target, timeout_s=timeout_s)
        else:
            domain = f"gui/{self.uid}"
            started = self.run("launchctl", "bootstrap", domain, str(plist), timeout_s=timeout_s)
        if not started.ok:
            msg = f"launchd could not start {LABELS[Part.DAEMON]}: {started.reason}"
            raise AutostartFailed(msg, timed_out=started.code is None)
        return True

    def stop(self, drain_s: float = DRAIN_S) -> bool:
        target = self._target(Part.DAEMON)
        if self.installed() is None or not self.run("launchctl", "print", target).ok:
            return False
        wait_s = drain_s + _STOP_MARGIN_S + _MARGIN_S
        stopped = self.run("launchctl", "bootout", target, timeout_s=wait_s)
        if not stopped.ok and self.run("launchctl", "print", target).ok:
            msg = f"launchd could not stop {LABELS[Part.DAEMON]}: {stopped.reason}"
            raise AutostartFailed(msg)
        return True

    def _state(self, part: Part) -> PartState:
        path = agent_entry(self.home, part).anchor
        noted = record.read(path)
        if noted is None:
            problem = f"{path} was not written by Stoker; it is left alone."
            return PartState(
                enabled=False, detail="off", problem=problem if path.exists() else None
            )
        return PartState(
            enabled=True, detail=f"starts at login ({path})", problem=program_problem(noted)
        )

    def _target(self, part: Part) -> str:
        return f"gui/{self.uid}/{LABELS[part]}"

    def _is_disabled(self, part: Part) -> bool:
        shown = self.run("launchctl", "print-disabled", f"gui/{self.uid}")
        return bool(re.search(_DISABLED.format(label=re.escape(LABELS[part])), shown.out))


_SENTENCES: Final = {
    Part.DAEMON: "Stoker starts at login",
    Part.TRAY: "The tray icon starts at login",
}


def launchd_autostart(home: Path) -> LaunchdAutostart:
    import os

    return LaunchdAutostart(home, Commands({"LC_ALL": "C"}), os.getuid())


def agent_entry(home: Path, part: Part) -> Entry:
    path = home / "Library" / "LaunchAgents" / f"{LABELS[part]}.plist"

    def words(wish: Wish) -> tuple[str, ...]:
        return wish.program.daemon if part is Part.DAEMON else wish.program.tray

    def render(wish: Wish, noted: Record) -> tuple[File]:
        logs = paths.from_environment(dict(wish.program.environment)).logs
        content = agent(part, wish, noted, logs if logs.is_dir() else None)
        return (File(path, content),)

    return Entry(files=(path,), render=render, program=words)


def agent(part: Part, wish: Wish, noted: Record, logs: Path | None) -> str:
    """The property list. launchd makes no folder for its logs, so `logs` is one that exists."""
    facts: dict[str, Any] = {
        "Label": LABELS[part],
        "ProgramArguments": list(wish.program.daemon if part is Part.DAEMON else wish.program.tray),
        "EnvironmentVariables": {"PATH": _PATH, **dict(wish.program.environment)},
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},  # after a crash, not after a stop
        "ThrottleInterval": _THROTTLE_S,
        "ProcessType": "Interactive",  # everything else is slowed down
        "Umask": 0o077,
    }
    if part is Part.DAEMON:
        facts["ExitTimeOut"] = math.ceil(wish.drain_s) + _STOP_MARGIN_S
    else:
        facts["LimitLoadToSessionType"] = "Aqua"
    if logs is not None:
        output = str(logs / f"{part}.out")
        facts |= {"StandardOutPath": output, "StandardErrorPath": output}
    head = (
        "<!-- Written by `stoker autostart on`, removed by `stoker autostart off`.\n"
        f"     {record.line(noted)} -->\n"
    )
    return plistlib.dumps(facts).replace(_HEAD, head.encode() + _HEAD, 1).decode()


def _ordered(parts: Collection[Part]) -> list[Part]:
    return [part for part in Part if part in parts]
