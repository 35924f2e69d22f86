"""Start at login: one back end for each system, exactly reversible.

`choose` picks the back end, `find` names the program, and a `Wish` says how it shall start. A back
end renders plain text (golden files in tests/unit/service) and writes it in steps that no
interruption can spoil. Not for: running the daemon, or asking the user.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from stoker_service.base import Autostart, Part, PartState, Program, Record, Wish
from stoker_service.program import check_owner, find, same_home

__all__ = [
    "Autostart",
    "Part",
    "PartState",
    "Program",
    "Record",
    "Wish",
    "check_owner",
    "choose",
    "find",
    "same_home",
]

_ANSWER_S: Final = 1.0


def choose(environ: Mapping[str, str] = os.environ, platform: str = sys.platform) -> Autostart:
    """The back end of this system; on Linux systemd when a user manager answers, else XDG."""
    if platform == "win32":
        from stoker_service.windows import windows_autostart

        return windows_autostart(environ)
    home = Path(environ.get("HOME") or Path.home())
    if platform == "darwin":
        from stoker_service.launchd import launchd_autostart

        return launchd_autostart(home)
    return _desktop(environ, home)


def _desktop(environ: Mapping[str, str], home: Path) -> Autostart:
    from stoker_service.commands import Commands
    from stoker_service.systemd import MASK_FOLDERS, SystemdAutostart, unit_entry
    from stoker_service.xdg import Folders, XdgAutostart

    config = Path(environ.get("XDG_CONFIG_HOME", ""))
    folders = Folders(home, config if config.is_absolute() else home / ".config")
    # A command under cron or su has no such variable; the manager is there all the same.
    runtime = Path(environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}")
    if not _answers(runtime / "systemd" / "private"):
        return XdgAutostart(folders, rivals=(unit_entry(folders),))
    import pwd

    return SystemdAutostart(
        folders,
        Commands({"XDG_RUNTIME_DIR": str(runtime), "LC_ALL": "C", "SYSTEMD_COLORS": "0"}),
        user=pwd.getpwuid(os.getuid()).pw_name,
        mask_folders=(*MASK_FOLDERS, runtime / "systemd" / "user"),
    )


def _answers(address: Path) -> bool:
    """Whether a user manager listens there."""
    try:
        with socket.socket(socket.AF_UNIX) as channel:
            channel.settimeout(_ANSWER_S)
            channel.connect(str(address))
    except OSError:  # none, or the path is too long for a socket
        return False
    return True
