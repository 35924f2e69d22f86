"""A panel without a screen: the StatusNotifierItem watcher and host, and what a person does there.

``with TrayHost(bus) as host:`` is a panel that runs; `close` and `open` restart it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.fakes.session_bus import Body, BusPeer, PrivateBus, Refuse, Signal, Silence, now_ms

WATCHER, PROPERTIES = "org.kde.StatusNotifierWatcher", "org.freedesktop.DBus.Properties"
WATCHER_PATH = "/StatusNotifierWatcher"
SNI, MENU = "org.kde.StatusNotifierItem", "com.canonical.dbusmenu"
ITEM_PATH = "/StatusNotifierItem"
ROOT = 0


@dataclass(frozen=True)
class Line:
    """One line of the menu as a person sees it."""

    number: int
    label: str
    enabled: bool
    kind: str  # line, submenu, separator, checkmark, radio
    checked: bool = False
    inside: tuple[Line, ...] = field(default=())

    def __iter__(self) -> Iterator[Line]:
        """This line and all below it."""
        yield self
        for line in self.inside:
            yield from line


class TrayHost(BusPeer):
    """A panel: takes items, reads them, shows menus, clicks."""

    name = WATCHER

    def __init__(self, bus: PrivateBus, *, has_screen: bool = True) -> None:
        super().__init__(bus)
        self.has_screen = has_screen  # whether a host stands behind the watcher
        self.silences = 0  # so many registrations are not answered, and then
        self.refusals = 0  # so many are refused
        self.items: list[str] = []  # unique names, as they registered

    def open(self) -> None:
        self.items.clear()
        super().open()
        for interface in (SNI, MENU):
            self.listen(f"type='signal',interface='{interface}'")

    def answer(self, member: str, args: Body) -> tuple[str, Body]:
        if member == "RegisterStatusNotifierItem":
            if self.silences:
                self.silences -= 1
                raise Silence
            if self.refusals:
                self.refusals -= 1
                raise Refuse("not yet")
            assert args[0] == self.caller, "registered under a name that is not its own"
            self.items.append(self.caller)
            return "", ()
        if member == "Get" and args[1] == "IsStatusNotifierHostRegistered":
            return "v", (("b", self.has_screen),)
        raise Refuse(member)

    def announce_host(self, *, has_screen: bool) -> None:
        """Say that a host has come or gone behind the watcher."""
        self.has_screen = has_screen
        member = "Registered" if has_screen else "Unregistered"
        self.emit(WATCHER_PATH, WATCHER, f"StatusNotifierHost{member}")

    # --- the item ----------------------------------------------------------------------------

    def wait_for_item(self, count: int = 1) -> str:
        """The unique name of the newest item, when so many have registered."""
        self.wait(lambda: len(self.items) >= count, "an item in the tray")
        return self.items[-1]

    def ask(self, path: str, interface: str, member: str, signature: str = "", *args: Any) -> Body:
        """Call the newest item."""
        return self.call(self.items[-1], path, interface, member, signature, *args)

    def properties(self) -> dict[str, Any]:
        (found,) = self.ask(ITEM_PATH, PROPERTIES, "GetAll", "s", SNI)
        return {name: value for name, (_, value) in found.items()}

    def left_click(self) -> None:
        self.ask(ITEM_PATH, SNI, "Activate", "ii", 0, 0)

    # --- the menu ----------------------------------------------------------------------------

    def ask_menu(self, member: str, signature: str = "", *args: Any) -> Body:
        return self.ask(self.properties()["Menu"], MENU, member, signature, *args)

    def layout(self, number: int = ROOT, depth: int = -1, names: Sequence[str] = ()) -> Any:
        """A node as the bus carries it: (id, {name: (type, value)}, [(type, node)])."""
        return self.ask_menu("GetLayout", "iias", number, depth, list(names))[1]

    def menu(self) -> Line:
        """The whole menu, below a line of its own."""
        return line_of(self.layout())

    def find(self, *labels: str) -> Line:
        """The line that these labels lead to."""
        line = self.menu()
        for label in labels:
            line = next(each for each in line.inside if each.label == label)
        return line

    def open_menu(self) -> None:
        self.ask_menu("AboutToShow", "i", ROOT)
        self.event(ROOT, "opened")

    def close_menu(self) -> None:
        self.event(ROOT, "closed")

    def click(self, *labels: str) -> None:
        self.event(self.find(*labels).number, "clicked")

    def event(self, number: int, kind: str) -> None:
        self.ask_menu("Event", "isvu", number, kind, ("i", 0), now_ms())

    def heard(self, member: str) -> list[Signal]:
        """The signals of this name so far."""
        return [signal for signal in self.signals if signal.member == member]


def line_of(node: Any) -> Line:
    number, typed, below = node
    values = {name: value for name, (_, value) in typed.items()}
    kind = values.get("toggle-type") or values.get("children-display") or values.get("type", "line")
    return Line(
        number=number,
        label=values.get("label", "").replace("__", "_"),
        enabled=values.get("enabled", True),
        kind=kind,
        checked=values.get("toggle-state") == 1,
        inside=tuple(line_of(child) for _, child in below),
    )
