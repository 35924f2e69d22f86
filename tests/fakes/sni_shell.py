"""The Linux adapter as tests make it: on a bus of their own, with icons that cost nothing."""

from __future__ import annotations

import itertools
from pathlib import Path

from stoker_tray.adapters.sni import SniShell
from stoker_tray.adapters.sni_item import Draw
from stoker_tray.face import IconKey, Listener, Row
from tests.fakes.tray_host import TrayHost
from tests.fakes.tray_listener import READY, face

SOON_S = 0.05  # between attempts, where the tray waits for seconds


class MakeShell:
    """Makes adapters that look for a bus in this folder, whether there is one or not."""

    def __init__(self, folder: Path, listener: Listener, draw: Draw) -> None:
        self._folder, self._listener, self._draw = folder, listener, draw

    def __call__(self, draw: Draw | None = None, **environ: str) -> SniShell:
        found = {"DBUS_SESSION_BUS_ADDRESS": f"unix:path={self._folder}/bus", **environ}
        return SniShell(
            self._listener, draw=draw or self._draw, environ=found, first_pause_s=SOON_S
        )


class Show:
    """Shows rows, and returns when the host has been told everything about them."""

    def __init__(self, shell: SniShell, host: TrayHost) -> None:
        self._shell, self._host = shell, host
        self._numbers = itertools.count(1)

    def __call__(self, *rows: Row, icon: IconKey = READY) -> None:
        host, before = self._host, len(self._host.heard("NewTitle"))
        number = next(self._numbers)
        self._shell.show(face(*rows, icon=icon, title=f"face {number}"))
        host.wait_for_item()
        if number > 1:
            host.wait(lambda: len(host.heard("NewTitle")) > before, "the new title")
        host.menu()  # is answered after all that belongs to the new face
