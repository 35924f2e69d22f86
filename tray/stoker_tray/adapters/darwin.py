"""The menu bar of macOS: pystray's backend, with its known faults mended.

AppKit may be used on the main thread only, which is the thread of `run`: other threads leave what
they want, and AppHelper calls back there. The menu is filled when it is about to be shown.

To be imported on macOS only, on the main thread.
"""

from __future__ import annotations

import io
import signal
import subprocess
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import AppKit
import Foundation
from PyObjCTools import AppHelper, MachSignals
from pystray import _darwin

from stoker_tray import icons
from stoker_tray.adapters.menu import Menu, menu_of, plain
from stoker_tray.adapters.native import Shape, shape
from stoker_tray.face import Face, IconKey, Listener, Notice, Row, Shell
from stoker_tray.icons import Theme

ICON_POINTS: Final = 18  # the menu bar is 22 high, or a little more beside a camera
RETINA: Final = 2  # pixels in a point

_SETTLE_S = 5.0  # until a new icon has found its place, or macOS has hidden it
_NOTICE_TIMEOUT_S = 10.0
# The program is fixed and the texts are its arguments: nothing in them is ever interpreted. The
# first argument is fixed too, so that no text can be taken for an option.
_NOTICE_PROGRAM = (
    "/usr/bin/osascript",
    *("-e", "on run argv"),
    *("-e", "display notification (item 3 of argv) with title (item 2 of argv)"),
    *("-e", "end run"),
    "notice",
)


def open_shell(listener: Listener) -> Shell:
    """Make the adapter."""
    return MacShell(listener)


class StokerMenuDelegate(Foundation.NSObject):  # type: ignore[misc]  # PyObjC has no types
    """Hears what AppKit has to say; the names are AppKit's."""

    shell: MacShell

    def menuNeedsUpdate_(self, _menu: object) -> None:  # noqa: N802
        self.shell.fill_menu()

    def menuWillOpen_(self, _menu: object) -> None:  # noqa: N802
        self.shell.menu_opened()

    def menuDidClose_(self, _menu: object) -> None:  # noqa: N802
        self.shell.menu_closed()

    def occlusionChanged_(self, _notification: object) -> None:  # noqa: N802
        self.shell.look_for_itself(at_last=False)


class MacShell(_darwin.Icon):  # type: ignore[misc]  # pystray has no types
    """A `face.Shell`."""

    _icon_image: Any

    def __init__(self, listener: Listener) -> None:
        super().__init__("stoker", title="Stoker")
        self._app.setActivationPolicy_(AppKit.NSApplicationActivationPolicyAccessory)  # no Dock
        self._listener = listener
        self._wanted: Face | None = None  # written by any thread, read by the main thread
        self._face: Face | None = None
        self._drawn: IconKey | None = None
        self._built: Shape = ()
        self._open = False
        self._seen: bool | None = None
        self._menu_delegate = StokerMenuDelegate.alloc().init()
        self._menu_delegate.shell = self
        nsmenu = AppKit.NSMenu.alloc().initWithTitle_(self.name)
        nsmenu.setAutoenablesItems_(False)
        nsmenu.setDelegate_(self._menu_delegate)
        self._status_item.setMenu_(nsmenu)
        self._menu_handle: tuple[Any, list[Callable[..., None]]] = (nsmenu, [])

    # --- face.Shell: any thread --------------------------------------------------------------

    def show(self, face: Face) -> None:
        self._wanted = face
        AppHelper.callAfter(self._apply)

    def notify(self, notice: Notice) -> None:
        threading.Thread(target=_announce, args=(notice,), daemon=True).start()

    def stop(self) -> None:
        AppHelper.callAfter(self._stop)

    def run(self) -> None:
        """Without pystray's setup thread: it would touch AppKit."""
        center = Foundation.NSNotificationCenter.defaultCenter()
        center.addObserver_selector_name_object_(
            self._menu_delegate,
            b"occlusionChanged:",
            AppKit.NSWindowDidChangeOcclusionStateNotification,
            self._status_item.button().window(),
        )
        AppHelper.callLater(_SETTLE_S, self.look_for_itself)
        for number in (signal.SIGINT, signal.SIGTERM):  # Python's own wait for AppKit's loop
            MachSignals.signal(number, lambda _number: self.stop())
        try:
            self._app.run()
        finally:
            center.removeObserver_(self._menu_delegate)
            self._status_bar.removeStatusItem_(self._status_item)

    # --- the main thread ---------------------------------------------------------------------

    def _apply(self) -> None:
        face = self._wanted
        if face is None or face is self._face:
            return
        self._face = face
        if face.icon != self._drawn:
            self._drawn = face.icon
            self.icon = icons.image(face.icon, ICON_POINTS, Theme.TEMPLATE)
        self.title = plain(face.title)
        if self._open and shape(face.rows) == self._built:
            self._update_open_menu(face)
        self.visible = True

    def look_for_itself(self, *, at_last: bool = True) -> None:
        """Tell the listener whether the icon can be seen; that it cannot, only `at_last`.

        It is hidden by a setting or for want of room, but also behind a full screen: that comes
        and goes, and is no reason to complain.
        """
        window = self._status_item.button().window()
        seen = bool(
            window
            and window.isVisible()
            and window.occlusionState() & AppKit.NSWindowOcclusionStateVisible
        )
        if (seen or at_last) and seen != self._seen:
            self._seen = seen
            self._listener.hosted(visible=seen)

    # --- icon --------------------------------------------------------------------------------

    def _update_icon(self) -> None:
        self._icon_image = None
        self._assert_image()
        self._icon_valid = True

    def _assert_image(self) -> None:
        """Give AppKit a template in black and alpha, sharp on every screen: it colours it."""
        if self._icon_image is not None or self._drawn is None:
            return
        image = AppKit.NSImage.alloc().initWithSize_((ICON_POINTS, ICON_POINTS))
        for scale in (1, RETINA):
            image.addRepresentation_(_representation(self._drawn, scale))
        image.setTemplate_(True)
        self._icon_image = image
        self._status_item.button().setImage_(image)

    def _update_title(self) -> None:
        """Give the tooltip, and what a screen reader says."""
        self._status_item.button().setToolTip_(self.title)
        self._status_item.button().setAccessibilityLabel_(self.title)

    # --- menu --------------------------------------------------------------------------------

    def _update_menu(self) -> None:
        """Do nothing: `fill_menu` makes the menu that is shown."""

    def fill_menu(self) -> None:
        """Make the lines anew: the menu is about to be shown."""
        rows = self._face.rows if self._face else ()
        nsmenu, callbacks = self._menu_handle
        nsmenu.removeAllItems()
        callbacks.clear()
        for item in self._menu_of(rows):
            nsmenu.addItem_(self._create_menu_item(item, callbacks))
            callbacks.append(self._handler(item))
        self._built = shape(rows)

    def menu_opened(self) -> None:
        self._open = True
        self._listener.opened()

    def menu_closed(self) -> None:
        self._open = False
        self._listener.closed()

    def _update_open_menu(self, face: Face) -> None:
        """Change words and ticks of the lines that stand open."""
        nsmenu, callbacks = self._menu_handle
        callbacks.clear()
        self._update_lines(nsmenu, self._menu_of(face.rows), callbacks)

    def _menu_of(self, rows: tuple[Row, ...]) -> Menu:
        """Leave out the default: pystray would set it in bold, and then its words cannot change."""
        return menu_of((replace(row, default=False) for row in rows), self._listener.clicked)

    def _update_lines(self, nsmenu: Any, menu: Menu, callbacks: list[Any]) -> None:
        """Go through the lines in the order in which pystray numbers them."""
        for line, item in zip(nsmenu.itemArray(), menu, strict=True):
            if item.submenu:
                self._update_lines(line.submenu(), item.submenu, callbacks)
            callbacks.append(self._handler(item))
            if item is Menu.SEPARATOR:
                continue
            if line.title() != item.text:
                line.setTitle_(item.text)
            line.setEnabled_(item.enabled)
            if item.checked is not None:
                line.setState_(AppKit.NSOnState if item.checked else AppKit.NSOffState)


def _representation(key: IconKey, scale: int) -> Any:
    out = io.BytesIO()
    icons.image(key, ICON_POINTS * scale, Theme.TEMPLATE).save(out, "PNG")
    content = out.getvalue()
    data = Foundation.NSData.dataWithBytes_length_(content, len(content))
    representation = AppKit.NSBitmapImageRep.imageRepWithData_(data)
    representation.setSize_((ICON_POINTS, ICON_POINTS))
    return representation


def _announce(notice: Notice) -> None:
    """Show a notification; one that cannot be shown is lost."""
    texts = (plain(notice.title), plain(notice.text))
    try:
        subprocess.run(  # noqa: S603  # a fixed program, see above
            (*_NOTICE_PROGRAM, *texts),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_NOTICE_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return
