"""pystray's Icon for Linux: a StatusNotifierItem with a dbusmenu, in pure Python over jeepney.

Needs the session bus and nothing else: no GTK, no display. One thread serves the bus, asleep until
a message comes or another thread has something to show.
"""

from __future__ import annotations

import logging
import math
import os
import select
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final

from jeepney import Message, MessageType
from pystray import Icon

from stoker_tray.adapters.dbus_object import DBusObjects
from stoker_tray.adapters.dbusmenu import (
    MENU,
    ROOT,
    Changes,
    MenuEvents,
    MenuTree,
    menu_interface,
)
from stoker_tray.adapters.menu import Menu, MenuItem, menu_of, plain
from stoker_tray.adapters.session_bus import BUS_OBJECT, Body, BusGone, SessionBus
from stoker_tray.adapters.sni_item import (
    ID,
    SNI,
    Draw,
    ItemSource,
    Pictures,
    Pixmap,
    item_interface,
    panel_theme,
)
from stoker_tray.adapters.sni_peers import ColorScheme, Hints, Hosted, Notifications, Watcher
from stoker_tray.adapters.sni_wake import Wake
from stoker_tray.face import Face, Listener, Notice
from stoker_tray.icons import image

log = logging.getLogger(__name__)

ITEM_PATH: Final = "/StatusNotifierItem"  # where a host looks that knows only our unique name
MENU_PATH: Final = "/MenuBar"
OWN_NAME: Final = "ai.stoker.Tray"
APP_NAME: Final = "Stoker"
DESKTOP_ENTRY: Final = "stoker-tray"

TITLE_LIMIT = 120  # characters
NOTICES_LIMIT = 16  # that wait to be sent
WELCOME_S = 10.0  # a bus that has not let us in by then never will
FIRST_PAUSE_S, LAST_PAUSE_S = 1.0, 30.0  # between two attempts to reach the bus
STEADY_S = 60.0  # a connection that lasted so long was a good one


class SniShell(Icon):  # type: ignore[misc]  # pystray has no types
    """The tray's icon, wherever StatusNotifierItem hosts are; see `face.Shell`."""

    def __init__(
        self,
        listener: Listener,
        *,
        draw: Draw = image,
        environ: Mapping[str, str] = os.environ,
        first_pause_s: float = FIRST_PAUSE_S,
    ) -> None:
        super().__init__(ID, menu=Menu())
        self._listener = listener
        self._environ = environ
        self._first_pause_s = first_pause_s
        # Written by any thread, taken by the one that runs.
        self._faces: deque[Face] = deque(maxlen=1)  # only the last one matters
        self._notices: deque[Notice] = deque(maxlen=NOTICES_LIMIT)
        self._stopping = False
        self._wake = Wake()
        # The rest belongs to the thread that runs.
        self._shown: Face | None = None
        self._theme = panel_theme(0, "")
        self._pictures = Pictures(draw)
        self._tree = MenuTree()
        self._session: _Session | None = None
        self._is_visible: bool | None = None  # not known yet
        self._complaint = ""
        self._objects = self._exported()

    # --- Shell: any thread -------------------------------------------------------------------

    def show(self, face: Face) -> None:
        self._faces.append(face)
        self._wake.set()

    def notify(self, notice: Notice) -> None:
        self._notices.append(notice)
        self._wake.set()

    def stop(self) -> None:
        self._stopping = True
        self._wake.set()

    def run(self) -> None:
        pause_s = self._first_pause_s
        with self._wake:
            while not self._stopping:
                began_s = time.monotonic()
                self._live()
                if self._stopping:
                    break
                self._report(visible=False)
                if time.monotonic() - began_s > STEADY_S:
                    pause_s = self._first_pause_s
                self._pause(pause_s)
                pause_s = min(pause_s * 2, LAST_PAUSE_S)
        self.visible = False

    # --- the connection ----------------------------------------------------------------------

    def _live(self) -> None:
        """Serve one connection until it is lost or we stop."""
        try:
            with SessionBus(self._environ) as bus:
                self._session = _Session(
                    bus, self._objects, self._report, self._recolour, self._hints
                )
                self._serve(self._session)
        except BusGone as gone:
            if str(gone) != self._complaint:  # say it once, not at every attempt
                self._complaint = str(gone)
                log.info("%s", gone)
        finally:
            self._session = None

    def _serve(self, session: _Session) -> None:
        if self.visible:
            session.register()
        while self._take(session):
            session.step(self._wake)

    def _take(self, session: _Session) -> bool:
        """Do what other threads asked for; False when that is to stop."""
        self._wake.clear()  # first, or what comes meanwhile would wake nobody
        if self._faces:
            _guarded(self._apply, self._faces.popleft())
        for _ in range(len(self._notices)):
            _guarded(session.notifications.show, self._notices.popleft())
        return not self._stopping

    def _pause(self, pause_s: float) -> None:
        """Wait before the next attempt. What nobody could see in the meantime is dropped."""
        until_s = time.monotonic() + pause_s
        while not self._stopping and (left_s := until_s - time.monotonic()) > 0:
            _poll({self._wake.fileno(): select.POLLIN}, left_s)
            self._wake.clear()
            self._notices.clear()

    def _report(self, *, visible: bool) -> None:
        if visible != self._is_visible:
            self._is_visible = visible
            self._complaint = ""
            self._tell_changes(self._tree.close())  # a host that went took its open menu along
            self._listener.hosted(visible=visible)

    # --- pystray: the thread that runs -------------------------------------------------------

    def _apply(self, face: Face) -> None:
        before = self._shown
        if before is None or face.icon != before.icon:
            self.icon = face.icon
        self.title = plain(face.title, TITLE_LIMIT)
        if before is None or face.rows != before.rows:
            self.menu = menu_of(face.rows, self._listener.clicked)
        self.visible = True
        self._shown = face

    def _show(self) -> None:
        if self._session:
            self._session.register()

    def _hide(self) -> None:
        """Nothing to do: a host drops the item when the connection closes."""

    def _update_icon(self) -> None:
        self._icon_valid = True
        self._tell(ITEM_PATH, SNI, "NewIcon")

    def _update_title(self) -> None:
        self._tell(ITEM_PATH, SNI, "NewTitle")
        self._tell(ITEM_PATH, SNI, "NewToolTip")

    def _update_menu(self) -> None:
        self._tell_changes(self._tree.update(self.menu))

    def _tell_changes(self, changes: Changes) -> None:
        if changes.values:
            values: Body = (list(changes.values), [])  # no property ever goes away
            self._tell(MENU_PATH, MENU, "ItemsPropertiesUpdated", "a(ia{sv})a(ias)", values)
        for parent in changes.parents:
            self._tell(MENU_PATH, MENU, "LayoutUpdated", "ui", (self._tree.revision, parent))

    def _tell(
        self,
        path: str,
        interface: str,
        member: str,
        signature: str | None = None,
        args: Body = (),
    ) -> None:
        if self._session and self.visible:  # before that no host knows of us
            self._session.bus.signal(path, interface, member, signature, args)

    # --- what hosts ask ----------------------------------------------------------------------

    def _exported(self) -> DBusObjects:
        source = ItemSource(
            title=lambda: str(self.title),
            pixmaps=self._pixmaps,
            tooltip_pixmaps=self._pictures.tooltip,
            is_menu=lambda: not any(item.default for item in self.menu),
            activate=self,  # pystray: the default item
        )
        events = MenuEvents(self._clicked, self._opened, self._closed)
        return DBusObjects(
            {
                ITEM_PATH: item_interface(MENU_PATH, source),
                MENU_PATH: menu_interface(self._tree, events),
            }
        )

    def _pixmaps(self) -> list[Pixmap]:
        return self._pictures.of(self.icon, self._theme)

    def _opened(self, number: int) -> None:
        if number == ROOT:
            self._tell_changes(self._tree.open())
        self._listener.opened()

    def _closed(self) -> None:
        self._tell_changes(self._tree.close())
        self._listener.closed()

    def _clicked(self, number: int, item: MenuItem) -> None:
        self._tell_changes(self._tree.close())  # a click closes a menu, and not every host says so
        item(self)
        # Some hosts turn a tick by themselves; it is what we say it is.
        entry = self._tree.find(number)
        state = entry and entry.properties.get("toggle-state")
        if state:
            self._tell_changes(Changes(((number, {"toggle-state": state}),)))

    def _recolour(self, color_scheme: int) -> None:
        theme = panel_theme(color_scheme, self._environ.get("XDG_CURRENT_DESKTOP", ""))
        if theme != self._theme:
            self._theme = theme
            self._tell(ITEM_PATH, SNI, "NewIcon")

    def _hints(self) -> Hints:
        return {"desktop-entry": ("s", DESKTOP_ENTRY), "image-data": self._pictures.notice()}


class _Session:
    """One connection, with all that ends when it ends."""

    def __init__(
        self,
        bus: SessionBus,
        objects: DBusObjects,
        hosted: Hosted,
        recolour: Callable[[int], None],
        hints: Callable[[], Hints],
    ) -> None:
        self.bus = bus
        self.notifications = Notifications(bus, APP_NAME, hints)
        self._objects = objects
        self._hosted = hosted
        self._colors = ColorScheme(bus, recolour)
        self._watcher: Watcher | None = None
        self._welcome_by_s = time.monotonic() + WELCOME_S
        bus.call(BUS_OBJECT, "RequestName", "su", (OWN_NAME, 0))

    def register(self) -> None:
        """Offer the item to a host, now and to any that comes."""
        if self._watcher is None:
            self._watcher = Watcher(self.bus, self._hosted)

    def step(self, wake: Wake) -> None:
        """Sleep until something comes, and do it. Raises `BusGone`."""
        self.bus.flush()
        wanted = {wake.fileno(): select.POLLIN, self.bus.fileno(): 0}
        if self.bus.wants_to_read:
            wanted[self.bus.fileno()] |= select.POLLIN
        if self.bus.wants_to_write:
            wanted[self.bus.fileno()] |= select.POLLOUT
        ready = _poll(wanted, self._wait_s())
        if ready.get(self.bus.fileno(), 0) & ~select.POLLOUT:
            for message in self.bus.read():
                _guarded(self._take, message)
        if self._watcher:
            self._watcher.tick()

    def _wait_s(self) -> float | None:
        now_s = time.monotonic()
        if not self.bus.name:
            if now_s >= self._welcome_by_s:
                raise BusGone("the session bus does not answer")
            return self._welcome_by_s - now_s
        if self._watcher is None or self._watcher.next_s is None:
            return None
        return self._watcher.next_s - now_s

    def _take(self, message: Message) -> None:
        if message.header.message_type is MessageType.method_call:
            self._objects.serve(message, self.bus)
            return
        if self.bus.settle(message):
            return
        for peer in (self._watcher, self._colors, self.notifications):
            if peer:
                peer.signal(message)


def _poll(wanted: Mapping[int, int], timeout_s: float | None) -> dict[int, int]:
    poll = select.poll()
    for descriptor, events in wanted.items():
        poll.register(descriptor, events)
    timeout_ms = None if timeout_s is None else max(0, math.ceil(timeout_s * 1000))
    return dict(poll.poll(timeout_ms))


def _guarded(do: Callable[[Any], None], what: object) -> None:
    """Do one thing; a fault in it must not end the tray."""
    try:
        do(what)
    except BusGone:
        raise
    except Exception:
        log.exception("the tray failed at one thing and goes on")
