"""Which program starts at login: the installer's launcher, or this very Python.

Not for: where Stoker keeps its files (`stoker.paths`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from stoker.errors import AutostartBlocked, AutostartFailed
from stoker_service.base import Autostart, Part, Program

# Without STOKER_HOME, these say where the home is; a session at login may not have them.
_FOLDERS: Final = ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME")
_DEFAULTS: Final = ((".config",), (".local", "share"), (".local", "state"))


def find(environ: Mapping[str, str] = os.environ) -> Program:
    """The program as it must be called by absolute paths. Raises AutostartFailed.

    A launcher outlives upgrades, so it is preferred; ``STOKER_COMMAND`` names it.
    """
    launcher = environ.get("STOKER_COMMAND", "")
    python = (_python(), "-I", "-m")
    tray = (*python, "stoker_tray")
    if Path(launcher).is_absolute() and _is_program(launcher):
        beside = f"{launcher}-tray"
        return Program(
            daemon=(launcher, "serve"),
            cli=(launcher,),
            tray=(beside,) if _is_program(beside) else tray,
            environment=_environment(environ),
        )
    return Program(
        daemon=(*python, "stoker", "serve"),
        cli=(*python, "stoker"),
        tray=tray,
        environment=_environment(environ),
    )


def same_home(one: Iterable[tuple[str, str]], other: Iterable[tuple[str, str]]) -> bool:
    """Whether two programs' environments lead to the same home of Stoker."""
    return _home(dict(one)) == _home(dict(other))


def check_owner(back_end: Autostart, program: Program) -> None:
    """Raise AutostartBlocked when the Stoker of another home, still there, starts at login.

    Each system has one entry for each user: a second installation must not take it over unasked.
    """
    noted = back_end.installed()
    if noted is None or not noted.program or same_home(noted.environment, program.environment):
        return
    if Path(noted.program[0]).exists() and back_end.status()[Part.DAEMON].enabled:
        command = " ".join(noted.program[:-1])
        msg = f"the Stoker of another home starts at login: {noted.program[0]}"
        raise AutostartBlocked(msg, hint=f"Switch that one off first: {command} autostart off")


def _home(environment: Mapping[str, str]) -> tuple[str, ...]:
    if "STOKER_HOME" in environment:
        return (os.path.realpath(environment["STOKER_HOME"]),)
    defaults = (str(Path("~", *words).expanduser()) for words in _DEFAULTS)
    return tuple(
        os.path.realpath(environment.get(name, default))
        for name, default in zip(_FOLDERS, defaults, strict=True)
    )


def _is_program(path: str) -> bool:
    return Path(path).is_file() and os.access(path, os.X_OK)


def _python() -> str:
    if not sys.executable:
        msg = "this Python does not know its own path"
        raise AutostartFailed(msg, hint="Install Stoker with installers/install.sh.")
    if sys.platform == "win32":  # the one without a console window
        windowed = Path(sys.executable).with_name("pythonw.exe")
        if windowed.is_file():
            return str(windowed)
    return sys.executable


def _environment(environ: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    home = environ.get("STOKER_HOME")
    if home:
        return (("STOKER_HOME", str(Path(home).expanduser().absolute())),)
    if sys.platform == "win32":
        return ()
    return tuple(
        (name, environ[name]) for name in _FOLDERS if Path(environ.get(name, "")).is_absolute()
    )
