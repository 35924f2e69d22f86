"""A user's session for the tray: a home, a session bus, and the tray itself; no screen.

``with Session(artefacts) as session:`` starts the bus; everything ends with the block. Nothing of
it touches the home folder, the bus or the autostart entries of whoever runs the tests.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from stoker import paths
from tests.fakes.desktop_menu import PublishedTray
from tests.fakes.desktop_programs import Programs
from tests.fakes.session_bus import PrivateBus

_RECORDER = """#!/bin/sh
{{ printf '%s\\n' "$@"; cat; }} > {record}.new
mv {record}.new {record}
"""


class Session:
    """See the module."""

    name = "session"  # of the folder of logs among the artefacts

    def __init__(self, artefacts: Path) -> None:
        self.artefacts = artefacts
        self._stack = ExitStack()

    # --- life --------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix="st-desktop-", dir="/tmp"))
        self._stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
        try:
            logs = self.artefacts / f"{self.name}-logs"
            self.programs = self._stack.enter_context(Programs(self._environ(), logs))
            self.published = PublishedTray(self.bus_address)
            self._begin()
        except BaseException:
            self._stack.close()
            raise
        return self

    def _begin(self) -> None:
        self.bus = self._stack.enter_context(PrivateBus(self.folder))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def bus_address(self) -> str:
        return f"unix:path={self.folder}/bus"  # where PrivateBus puts it, too

    @property
    def environ(self) -> Mapping[str, str]:
        """For programs of this session's user."""
        return self.programs.environ

    def _environ(self) -> dict[str, str]:
        for name in ("home", "run", "bin"):
            (self.folder / name).mkdir(mode=0o700)
        for name in (".config", ".cache", ".local/share", ".local/state"):
            (self.folder / "home" / name).mkdir(mode=0o700, parents=True)
        return {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "LANG": "C.UTF-8",
            "HOME": str(self.home),
            "XDG_RUNTIME_DIR": str(self.folder / "run"),
            "DBUS_SESSION_BUS_ADDRESS": self.bus_address,
            "GIO_USE_VFS": "local",
            "NO_AT_BRIDGE": "1",
        }

    # --- programs ----------------------------------------------------------------------------

    def start_tray(self, stoker_home: Path) -> psutil.Process:
        """Start the real tray for this home; both its outputs are kept among the logs."""
        process = self.programs.start(
            "tray",
            *(sys.executable, "-I", "-m", "stoker_tray"),
            STOKER_HOME=str(stoker_home),
            STOKER_PORT="0",  # of a daemon that it starts
        )
        self._stack.callback(self._keep_log, stoker_home)
        return psutil.Process(process.pid)

    def _keep_log(self, stoker_home: Path) -> None:
        log = paths.from_environment({"STOKER_HOME": str(stoker_home)}).tray_log
        if log.exists():
            shutil.copy(log, self.programs.logs / "tray-own.log")

    def provide(self, name: str) -> Path:
        """Put a program on the PATH that only writes its arguments and input into this file."""
        record = self.folder / f"{name}.record"
        program = self.folder / "bin" / name
        program.write_text(_RECORDER.format(record=record))
        program.chmod(0o700)
        return record


def artefact_folder(otherwise: Path) -> Path:
    """Where pictures and logs are kept: $STOKER_TEST_ARTEFACTS, or the test's own folder."""
    folder = Path(os.environ.get("STOKER_TEST_ARTEFACTS") or otherwise)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
