"""What a desktop offers on the bus beside the panel: notifications and the settings portal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.fakes.session_bus import Body, BusPeer, PrivateBus, Refuse

APPEARANCE, COLOR_SCHEME = "org.freedesktop.appearance", "color-scheme"
SETTINGS = "org.freedesktop.portal.Settings"


@dataclass(frozen=True)
class Shown:
    """One call of Notify."""

    replaces: int
    title: str
    text: str
    hints: dict[str, tuple[str, Any]]
    number: int  # that it was given


class FakeNotifications(BusPeer):
    """A notification server that keeps what it was told to show."""

    name = "org.freedesktop.Notifications"

    def __init__(self, bus: PrivateBus, capabilities: tuple[str, ...] = ("body",)) -> None:
        super().__init__(bus)
        self.capabilities = capabilities
        self.shown: list[Shown] = []
        self._next = 0

    def answer(self, member: str, args: Body) -> tuple[str, Body]:
        if member == "GetCapabilities":
            return "as", (list(self.capabilities),)
        if member == "Notify":
            _app, replaces, _icon, title, text, _actions, hints, _expires = args
            self._next += 1
            number = replaces or self._next
            self.shown.append(Shown(replaces, title, text, hints, number))
            return "u", (number,)
        raise Refuse(member)

    def wait_for(self, count: int) -> Shown:
        self.wait(lambda: len(self.shown) >= count, f"notification {count}")
        return self.shown[-1]


class FakePortal(BusPeer):
    """The settings portal with one setting."""

    name = "org.freedesktop.portal.Desktop"

    def __init__(self, bus: PrivateBus, color_scheme: int) -> None:
        super().__init__(bus)
        self.color_scheme = color_scheme

    def answer(self, member: str, args: Body) -> tuple[str, Body]:
        if (member, *args) == ("Read", APPEARANCE, COLOR_SCHEME):
            return "v", (("v", ("u", self.color_scheme)),)
        raise Refuse(member)

    def change(self, color_scheme: int) -> None:
        self.color_scheme = color_scheme
        setting = (APPEARANCE, COLOR_SCHEME, ("u", color_scheme))
        path = "/org/freedesktop/portal/desktop"
        self.emit(path, SETTINGS, "SettingChanged", "ssv", *setting)
