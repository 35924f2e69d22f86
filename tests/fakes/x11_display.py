"""A virtual X11 display of a test's own, and a program on it that pastes and copies."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
from types import TracebackType
from typing import Any, Self

from Xlib import X, Xatom
from Xlib.display import Display

WAIT_S = 30.0


class X11Display:
    """``with X11Display() as display:`` runs Xvfb."""

    def __init__(self) -> None:
        self.name = ""
        self._server: subprocess.Popen[bytes] | None = None
        self._client: Any = None
        self._window: Any = None

    @staticmethod
    def is_installed() -> bool:
        return shutil.which("Xvfb") is not None

    def __enter__(self) -> Self:
        read, write = os.pipe()
        with os.fdopen(read, "rb") as told:
            self._server = subprocess.Popen(
                ["Xvfb", "-displayfd", str(write), "-nolisten", "tcp", "-screen", "0", "64x64x24"],
                pass_fds=[write],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            os.close(write)
            assert select.select([told], [], [], WAIT_S)[0], "Xvfb does not come up"
            self.name = f":{int(told.readline())}"
        self._client = Display(self.name)
        self._window = self._client.screen().root.create_window(0, 0, 1, 1, 0, 0)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()

    def end(self) -> None:
        """The display goes, with all who are on it."""
        if self._client is not None:
            self._client.close()
            self._client = None
        if self._server is not None:
            self._server.terminate()
            self._server.wait(WAIT_S)
            self._server = None

    @property
    def environ(self) -> dict[str, str]:
        return {"DISPLAY": self.name}

    def paste(self, kind: str) -> bytes | None:
        """The clipboard's content in this form; None when nobody has it so."""
        found = self._ask(kind)
        return None if found is None else bytes(found.value)

    def kinds(self) -> list[str]:
        """The forms that the clipboard can be had in."""
        found = self._ask("TARGETS")
        assert found is not None
        assert found.property_type == Xatom.ATOM
        return [self._client.get_atom_name(atom) for atom in found.value]

    def take(self) -> None:
        """Become the clipboard's owner, as a program does in which something is copied."""
        clipboard = self._client.get_atom("CLIPBOARD")
        self._window.set_selection_owner(clipboard, X.CurrentTime)
        self._client.sync()

    def _ask(self, kind: str) -> Any:
        atom = self._client.get_atom
        place = atom("PASTED")
        self._window.delete_property(place)
        self._window.convert_selection(atom("CLIPBOARD"), atom(kind), place, X.CurrentTime)
        self._client.flush()
        while True:
            event = self._next_event()
            if event.type == X.SelectionNotify:
                break
        if event.property == X.NONE:
            return None
        return self._window.get_full_property(place, X.AnyPropertyType)

    def _next_event(self) -> Any:
        if not self._client.pending_events():
            assert select.select([self._client], [], [], WAIT_S)[0], "nobody answers"
        return self._client.next_event()
