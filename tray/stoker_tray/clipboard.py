"""Owns the clipboard of an X11 display for a text, until another program takes it.

X11 has no place that keeps a clipboard: the program that copied must stay and hand its text over.
``python -m stoker_tray.clipboard`` reads the text from its input, and returns 0 when it is there
to be pasted; a process of its own hands it over. For systems without xclip and the like.
"""

from __future__ import annotations

import os
import sys
from typing import Any, Final

MOST_BYTES: Final = 64 * 1024  # X11 takes more only in pieces; an address is short

_TEXT_TARGETS: Final = ("UTF8_STRING", "text/plain;charset=utf-8", "text/plain", "TEXT", "STRING")


class Selection:
    """The clipboard as ours, on a display's connection."""

    def __init__(self, display: Any, text: bytes) -> None:
        from Xlib import Xatom

        self._display = display
        self._text = text
        self._atoms = {name: display.get_atom(name) for name in (*_TEXT_TARGETS, "TARGETS")}
        self._clipboard = display.get_atom("CLIPBOARD")
        self._list_type = Xatom.ATOM
        self._window = display.screen().root.create_window(0, 0, 1, 1, 0, 0)

    def take(self) -> bool:
        """Whether the clipboard is ours now."""
        from Xlib import X

        self._window.set_selection_owner(self._clipboard, X.CurrentTime)
        owner = self._display.get_selection_owner(self._clipboard)
        return bool(owner == self._window)

    def serve(self) -> None:
        """Hand the text over to all who ask; return when another program has the clipboard."""
        from Xlib import X

        while True:
            event = self._display.next_event()
            if event.type == X.SelectionClear:
                return
            if event.type == X.SelectionRequest:
                self._answer(event)

    def _answer(self, request: Any) -> None:
        """Write the text, or the list of its types, to the window that asks; or refuse."""
        from Xlib import X
        from Xlib.protocol import event

        place = request.property or request.target  # very old programs name no place
        if request.target == self._atoms["TARGETS"]:
            request.requestor.change_property(
                place, self._list_type, 32, list(self._atoms.values()), onerror=_ignore
            )
        elif request.target in self._atoms.values():
            kind = (
                self._atoms["UTF8_STRING"]
                if request.target == self._atoms["TEXT"]
                else request.target
            )
            request.requestor.change_property(place, kind, 8, self._text, onerror=_ignore)
        else:
            place = X.NONE
        request.requestor.send_event(
            event.SelectionNotify(
                time=request.time,
                requestor=request.requestor,
                selection=request.selection,
                target=request.target,
                property=place,
            ),
            onerror=_ignore,
        )
        self._display.flush()


def _ignore(error: object, request: object) -> None:
    """The window that asked is gone; that is its own affair."""
    _ = error, request


def main() -> int:
    """Read the text, take the clipboard, leave a process behind that serves it."""
    text = sys.stdin.buffer.read(MOST_BYTES + 1)
    if len(text) > MOST_BYTES:
        return 1
    try:
        from Xlib.display import Display
        from Xlib.error import DisplayError

        try:
            selection = Selection(Display(), text)
        except (DisplayError, OSError):
            return 1
    except ImportError:  # only Linux installs it
        return 1
    if not selection.take():
        return 1
    if os.fork() == 0:
        _serve_alone(selection)
    return 0


def _serve_alone(selection: Selection) -> None:
    """Serve in a session of its own, holding no file, folder or terminal of anybody."""
    from Xlib.error import ConnectionClosedError

    os.setsid()
    os.chdir("/")
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(nothing, descriptor)
    try:
        selection.serve()
    except (ConnectionClosedError, OSError):  # the display is gone
        pass
    finally:
        os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
