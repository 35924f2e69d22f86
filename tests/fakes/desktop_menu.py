"""What a tray publishes on the bus, read as a panel reads it but without touching anything."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jeepney import DBusAddress, DBusErrorResponse, new_method_call
from jeepney.io.blocking import open_dbus_connection
from jeepney.wrappers import unwrap_msg

WATCHER = "org.kde.StatusNotifierWatcher"
WATCHER_PATH = "/StatusNotifierWatcher"
ITEM = "org.kde.StatusNotifierItem"
MENU = "com.canonical.dbusmenu"
PROPERTIES = "org.freedesktop.DBus.Properties"
ANSWER_S = 5.0


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a published menu, as a panel is to draw it."""

    id: int
    text: str = ""
    enabled: bool = True
    separator: bool = False
    toggle: str = ""  # "radio", "checkmark" or nothing
    checked: bool = False
    children: tuple[Entry, ...] = ()

    @property
    def selectable(self) -> tuple[Entry, ...]:
        """The children that a pointer can select, from top to bottom."""
        return tuple(child for child in self.children if child.enabled and not child.separator)

    def walk(self) -> Iterator[Entry]:
        """Every entry below, depth first."""
        for child in self.children:
            yield child
            yield from child.walk()

    def texts(self) -> list[str]:
        return [entry.text for entry in self.walk() if not entry.separator]


class PublishedTray:
    """The one item that the watcher of this bus knows. Connects anew for each question."""

    def __init__(self, bus: str) -> None:
        self._bus = bus

    def has_host(self) -> bool:
        """Whether a panel is there that shows items."""
        return self._watcher("IsStatusNotifierHostRegistered") is True

    def items(self) -> list[str]:
        """The items that are registered, as ``<bus name>/<path>``; a panel also lists dead ones."""
        listed = self._watcher("RegisteredStatusNotifierItems") or []
        return [item for item in listed if self._answers(item)]

    def properties(self) -> dict[str, Any]:
        """Of the one item."""
        (item,) = self.items()
        (values,) = self._call(*_split(item), PROPERTIES, "GetAll", "s", (ITEM,))
        return {name: value for name, (_, value) in values.items()}

    def menu(self) -> Entry:
        """The whole menu of the one item, as it is now."""
        (item,) = self.items()
        name, _ = _split(item)
        path = self.properties()["Menu"]
        _, root = self._call(name, path, MENU, "GetLayout", "iias", (0, -1, []))
        return _entry(root)

    def _watcher(self, name: str) -> Any:
        try:
            ((_, value),) = self._call(
                WATCHER, WATCHER_PATH, PROPERTIES, "Get", "ss", (WATCHER, name)
            )
        except (DBusErrorResponse, OSError):  # no watcher, or no bus (yet)
            return None
        return value

    def _answers(self, item: str) -> bool:
        name, path = _split(item)
        try:
            self._call(name, path, PROPERTIES, "Get", "ss", (ITEM, "Id"))
        except (DBusErrorResponse, OSError):  # also when it does not answer in time
            return False
        return True

    def _call(
        self,
        name: str,
        path: str,
        interface: str,
        member: str,
        signature: str,
        body: tuple[Any, ...],
    ) -> Any:
        address = DBusAddress(path, bus_name=name, interface=interface)
        call = new_method_call(address, member, signature, body)
        with open_dbus_connection(self._bus) as connection:
            return unwrap_msg(connection.send_and_get_reply(call, timeout=ANSWER_S))


def _split(item: str) -> tuple[str, str]:
    name, slash, path = item.partition("/")
    return name, slash + path


def _entry(node: tuple[int, dict[str, tuple[str, Any]], list[tuple[str, Any]]]) -> Entry:
    number, properties, children = node
    values = {name: value for name, (_, value) in properties.items()}
    return Entry(
        id=number,
        text=re.sub("_(.)", r"\1", values.get("label", "")),  # a mnemonic's mark; "__" is a "_"
        enabled=values.get("enabled", True),
        separator=values.get("type") == "separator",
        toggle=values.get("toggle-type", ""),
        checked=values.get("toggle-state", 0) == 1,
        children=tuple(
            _entry(child) for _, child in children if child[1].get("visible", ("b", True))[1]
        ),
    )
