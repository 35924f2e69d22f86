"""Whom the tray talks to on the session bus: the watcher of tray items, the portal, notifications.

Each peer may be absent, appear, vanish or be replaced at any time. Nothing here waits.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from jeepney import DBusAddress, HeaderFields, Message

from stoker_tray.adapters.menu import plain
from stoker_tray.adapters.session_bus import (
    BUS,
    BUS_OBJECT,
    Answered,
    Body,
    SessionBus,
    body,
    failure,
    header,
)
from stoker_tray.face import Notice

log = logging.getLogger(__name__)

PROPERTIES: Final = f"{BUS}.Properties"


class Peer:
    """Who owns a well-known name now; `changed` is called with each owner, "" for nobody.

    The first call tells the state at the start.
    """

    def __init__(self, bus: SessionBus, name: str, changed: Callable[[str], None]) -> None:
        self.owner: str | None = None  # not known yet
        self._name = name
        self._changed = changed
        bus.listen(f"sender='{BUS}',interface='{BUS}',member='NameOwnerChanged',arg0='{name}'")
        bus.call(BUS_OBJECT, "GetNameOwner", "s", (name,), answered=self._told)

    def signal(self, message: Message) -> None:
        """Take in a signal; the bus tells all of them to all peers."""
        change = body(message, "sss")
        is_ours = (
            change is not None
            and change[0] == self._name
            and header(message, HeaderFields.sender) == BUS
            and header(message, HeaderFields.member) == "NameOwnerChanged"
        )
        if change is not None and is_ours:
            self._set(change[2])

    def _told(self, reply: Message) -> None:
        owner = body(reply, "s")
        self._set(owner[0] if owner else "")

    def _set(self, owner: str) -> None:
        if owner != self.owner:
            self.owner = owner
            self._changed(owner)


# --- the watcher -----------------------------------------------------------------------------

WATCHER: Final = "org.kde.StatusNotifierWatcher"
_WATCHER_PATH = "/StatusNotifierWatcher"
ANSWER_S = 10.0  # a panel that is starting is slow
FIRST_PAUSE_S, LAST_PAUSE_S = 2.0, 30.0  # after a refusal


class Hosted(Protocol):
    def __call__(self, *, visible: bool) -> None: ...


class Watcher:
    """Keeps our item registered with whoever watches for tray items; reports if it can be seen.

    A watcher may own its name before it can take items, or never answer: it is asked again, after a
    growing pause. `next_s` is when, by the monotonic clock; None when nothing is due.
    """

    def __init__(self, bus: SessionBus, hosted: Hosted) -> None:
        self.next_s: float | None = None
        self._bus = bus
        self._hosted = hosted
        self._pause_s = FIRST_PAUSE_S
        for member in ("StatusNotifierHostRegistered", "StatusNotifierHostUnregistered"):
            bus.listen(f"interface='{WATCHER}',member='{member}'")
        self._peer = Peer(bus, WATCHER, self._changed)

    def signal(self, message: Message) -> None:
        self._peer.signal(message)
        if header(message, HeaderFields.sender) != self._peer.owner:
            return
        member = header(message, HeaderFields.member)
        if member in {"StatusNotifierHostRegistered", "StatusNotifierHostUnregistered"}:
            self._ask_for_host()

    def tick(self) -> None:
        """Do what is due."""
        if self.next_s is not None and time.monotonic() >= self.next_s:
            self._hosted(visible=False)
            self._register()

    def _changed(self, owner: str) -> None:
        self.next_s = None
        self._pause_s = FIRST_PAUSE_S
        if owner:
            self._register()
        else:
            self._hosted(visible=False)

    def _register(self) -> None:
        # The unique name needs no permission in a sandbox; the path is then /StatusNotifierItem.
        self.next_s = time.monotonic() + ANSWER_S
        self._call(WATCHER, "RegisterStatusNotifierItem", "s", (self._bus.name,), self._registered)

    def _registered(self, reply: Message) -> None:
        if refused := failure(reply):
            log.debug("the tray's host refused: %s", refused)
            self._hosted(visible=False)
            self.next_s = time.monotonic() + self._pause_s
            self._pause_s = min(self._pause_s * 2, LAST_PAUSE_S)
            return
        self.next_s = None
        self._ask_for_host()

    def _ask_for_host(self) -> None:
        wanted = (WATCHER, "IsStatusNotifierHostRegistered")
        self._call(PROPERTIES, "Get", "ss", wanted, self._host_told)

    def _host_told(self, reply: Message) -> None:
        value = body(reply, "v")
        # Whoever takes the item without knowing this property is a host itself.
        self._hosted(visible=value is None or value[0] != ("b", False))

    def _call(
        self, interface: str, member: str, signature: str, args: Body, then: Answered
    ) -> None:
        """Call this watcher; an answer that comes after it was replaced says nothing."""
        owner = self._peer.owner

        def answered(reply: Message) -> None:
            if owner == self._peer.owner:
                then(reply)

        watcher = DBusAddress(_WATCHER_PATH, owner, interface)
        self._bus.call(watcher, member, signature, args, answered)


# --- the portal ------------------------------------------------------------------------------

_PORTAL = "org.freedesktop.portal.Desktop"
_SETTINGS = "org.freedesktop.portal.Settings"
_APPEARANCE, _COLOR_SCHEME = "org.freedesktop.appearance", "color-scheme"


class ColorScheme:
    """What the desktop prefers: `changed` is called with 0 nothing, 1 dark, 2 light.

    The portal is never started for this; a desktop that has one starts it.
    """

    def __init__(self, bus: SessionBus, changed: Callable[[int], None]) -> None:
        self._bus = bus
        self._changed = changed
        bus.listen(f"interface='{_SETTINGS}',member='SettingChanged',arg0='{_APPEARANCE}'")
        self._peer = Peer(bus, _PORTAL, self._appeared)

    def signal(self, message: Message) -> None:
        self._peer.signal(message)
        change = body(message, "ssv")
        if (
            change is not None
            and change[:2] == (_APPEARANCE, _COLOR_SCHEME)
            and header(message, HeaderFields.interface) == _SETTINGS
            and header(message, HeaderFields.sender) == self._peer.owner
        ):
            self._take(change[2])

    def _appeared(self, owner: str) -> None:
        if owner:
            portal = DBusAddress("/org/freedesktop/portal/desktop", owner, _SETTINGS)
            self._bus.call(portal, "Read", "ss", (_APPEARANCE, _COLOR_SCHEME), self._told)

    def _told(self, reply: Message) -> None:
        value = body(reply, "v")
        if value is not None:
            self._take(value[0])

    def _take(self, value: object) -> None:
        while isinstance(value, tuple) and value[0] == "v":  # Read wraps the value twice
            value = value[1]
        if isinstance(value, tuple) and value[0] == "u":
            self._changed(value[1])


# --- notifications ---------------------------------------------------------------------------

_NOTIFICATIONS = "org.freedesktop.Notifications"
_SERVER = DBusAddress("/org/freedesktop/Notifications", _NOTIFICATIONS, _NOTIFICATIONS)
_TEXT_LIMIT = 500  # characters
_SERVER_DECIDES = -1  # how long a notification stays

Hints = Mapping[str, tuple[str, Any]]


class Notifications:
    """Shows notices; one of the same kind replaces the one before.

    A server gives each notification its number. Until it is known a newer notice of that kind
    waits, or it would stand beside the older one.
    """

    def __init__(self, bus: SessionBus, app: str, hints: Callable[[], Hints]) -> None:
        self._bus = bus
        self._app = app
        self._hints = hints
        self._capabilities: frozenset[str] | None = None  # not known
        self._is_asked = False
        self._waiting: dict[str, Notice] = {}  # by kind
        self._in_flight: set[str] = set()  # kinds
        self._shown: dict[str, int] = {}  # the server's numbers, by kind
        self._peer = Peer(bus, _NOTIFICATIONS, self._replaced)

    def signal(self, message: Message) -> None:
        self._peer.signal(message)

    def show(self, notice: Notice) -> None:
        self._waiting[notice.kind] = notice
        self._send_what_can_be_sent()

    def _replaced(self, owner: str) -> None:
        """Another server knows nothing of what the last one showed, and may be able to do more."""
        self._capabilities = None
        self._in_flight.clear()
        self._shown.clear()
        if owner and self._waiting:
            self._send_what_can_be_sent()

    def _send_what_can_be_sent(self) -> None:
        if self._capabilities is None:
            if not self._is_asked:
                self._is_asked = True
                self._bus.call(_SERVER, "GetCapabilities", answered=self._told)
            return
        for kind in self._waiting.keys() - self._in_flight:
            self._send(self._waiting.pop(kind), self._capabilities)

    def _told(self, reply: Message) -> None:
        self._is_asked = False
        capabilities = body(reply, "as")
        if capabilities is None:
            log.info("nobody shows notifications: %s", failure(reply))
            self._waiting.clear()
            return
        self._capabilities = frozenset(capabilities[0])
        self._send_what_can_be_sent()

    def _send(self, notice: Notice, capabilities: frozenset[str]) -> None:
        text = plain(notice.text, _TEXT_LIMIT)
        if "body-markup" in capabilities:
            text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        hints, title = dict(self._hints()), plain(notice.title)
        replaced, server = self._shown.get(notice.kind, 0), self._peer.owner

        def answered(reply: Message) -> None:
            if server != self._peer.owner:
                return  # it showed this on a screen that is gone
            self._in_flight.discard(notice.kind)
            shown = body(reply, "u")
            if shown is not None:
                self._shown[notice.kind] = shown[0]
            self._send_what_can_be_sent()

        self._in_flight.add(notice.kind)
        args: Body = (self._app, replaced, "", title, text, [], hints, _SERVER_DECIDES)
        self._bus.call(_SERVER, "Notify", "susssasa{sv}i", args, answered)
