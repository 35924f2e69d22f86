"""A menu on the bus: com.canonical.dbusmenu, from a pystray menu.

`MenuTree` is pure: menus in, numbered entries and changes out. `menu_interface` answers a host.

An entry's id is a promise: hosts keep a menu open while we change it, and send clicks by id. So an
id belongs to a place (the keys of the rows that lead to it) and to a sort (separator, line, tick,
radio, submenu, which many hosts cannot change in place), and is never given to another. For the
same reason the set of an entry's properties never changes, only their values do, and while the menu
is open no row comes or goes: a row must not move away under the pointer, and some hosts close it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from stoker_tray.adapters.dbus_object import Interface, Method, Property, Refused
from stoker_tray.adapters.menu import Menu, MenuItem, plain

MENU: Final = "com.canonical.dbusmenu"
ROOT = 0
LAYOUT_TYPE = "(ia{sv}av)"

# Each level of a menu nests three levels of D-Bus values, and the bus cuts off who sends more than
# 64. A host asks for what lies deeper by its parent.
LEVELS_AT_ONCE = 16

Variant = tuple[str, Any]
Properties = dict[str, Variant]
Layout = tuple[int, Properties, list[tuple[str, Any]]]


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the menu as hosts see it; `item` is what pystray knows of it."""

    properties: Properties
    item: MenuItem | None = None
    children: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Changes:
    """What hosts must be told: new values, and whose list of children became another."""

    values: tuple[tuple[int, Properties], ...] = ()
    parents: tuple[int, ...] = ()


# --- the tree --------------------------------------------------------------------------------


class MenuTree:
    """The menu that hosts have been told of."""

    def __init__(self) -> None:
        self.revision = 1
        self._ids: dict[tuple[int, str, str], int] = {}
        self._entries: dict[int, Entry] = {ROOT: _root(())}
        self._is_open = False
        self._waiting: dict[int, Entry] | None = None  # for the end of an open menu

    def update(self, menu: Menu) -> Changes:
        """Take over this menu, as far as an open one allows; say what is different."""
        now = dict[int, Entry]()
        now[ROOT] = _root(self._add(menu, ROOT, now))
        return self._take(now)

    def open(self) -> Changes:
        """It is about to be seen: what waited comes, and from now on rows keep their places."""
        changes = self.close()
        self._is_open = True
        return changes

    def close(self) -> Changes:
        """Nobody looks at it any more: what waited comes. Not every host tells of this."""
        self._is_open = False
        return Changes() if self._waiting is None else self._take(self._waiting)

    def _take(self, wanted: dict[int, Entry]) -> Changes:
        before, now = self._entries, wanted
        self._waiting = None
        if self._is_open and _structure(before) != _structure(wanted):
            self._waiting = wanted
            now = {number: _kept(entry, wanted.get(number)) for number, entry in before.items()}
        self._entries = now
        both = [number for number in now if number in before]
        values = ((number, _changed(before[number], now[number])) for number in both)
        parents = tuple(n for n in both if before[n].children != now[n].children)
        if parents:
            self.revision += 1
        return Changes(tuple((number, new) for number, new in values if new), parents)

    def _add(self, menu: Menu, parent: int, entries: dict[int, Entry]) -> tuple[int, ...]:
        children = []
        for key, item in _keyed(menu):
            number = self._ids.setdefault((parent, key, _sort(item)), len(self._ids) + 1)
            below = () if item.submenu is None else self._add(item.submenu, number, entries)
            entries[number] = Entry(_properties(item), item, below)
            children.append(number)
        return tuple(children)

    # --- what hosts ask ----------------------------------------------------------------------

    def ids(self) -> list[int]:
        return list(self._entries)

    def find(self, number: int) -> Entry | None:
        """None for an id that is not in the menu, or not any more."""
        return self._entries.get(number)

    def layout(self, number: int, levels: int, names: Iterable[str]) -> Layout:
        """An entry and what is below it; below zero levels means all. Raises LookupError."""
        deepest = LEVELS_AT_ONCE if levels < 0 else min(levels, LEVELS_AT_ONCE)
        return self._layout(number, deepest, frozenset(names))

    def _layout(self, number: int, levels: int, names: frozenset[str]) -> Layout:
        entry = self._entries[number]
        children = entry.children if levels else ()
        below = [(LAYOUT_TYPE, self._layout(child, levels - 1, names)) for child in children]
        return number, only(entry.properties, names), below


def only(properties: Properties, names: frozenset[str]) -> Properties:
    """The properties of these names; of all names if there are none."""
    return {name: v for name, v in properties.items() if name in names} if names else properties


def _structure(entries: Mapping[int, Entry]) -> dict[int, tuple[int, ...]]:
    return {number: entry.children for number, entry in entries.items()}


def _kept(entry: Entry, wanted: Entry | None) -> Entry:
    """The entry in its old place, with the new words if there are any."""
    return entry if wanted is None else replace(wanted, children=entry.children)


def _root(children: tuple[int, ...]) -> Entry:
    return Entry({"children-display": ("s", "submenu")}, None, children)


def _keyed(menu: Menu) -> Iterator[tuple[str, MenuItem]]:
    """The items with keys that are unique here: separators are alike, so they are numbered."""
    seen: dict[str, int] = {}
    for item in menu:
        key = "" if item is Menu.SEPARATOR else getattr(item, "key", item.text)
        seen[key] = count = seen.get(key, 0) + 1
        yield (key if count == 1 else f"{key}\0{count}"), item


def _sort(item: MenuItem) -> str:
    if item is Menu.SEPARATOR:
        return "separator"
    if item.submenu is not None:
        return "submenu"
    if item.checked is None:
        return "line"
    return "radio" if item.radio else "checkmark"


def _properties(item: MenuItem) -> Properties:
    sort = _sort(item)
    if sort == "separator":
        return {"type": ("s", "separator"), "visible": ("b", True)}
    label = plain(item.text).replace("_", "__")  # a lone one would mark the key to press
    found: Properties = {
        "label": ("s", label),
        "enabled": ("b", bool(item.enabled)),
        "visible": ("b", True),
    }
    if sort == "submenu":
        found["children-display"] = ("s", "submenu")
    elif sort != "line":
        found["toggle-type"] = ("s", sort)
        found["toggle-state"] = ("i", int(bool(item.checked)))
    return found


def _changed(before: Entry, now: Entry) -> Properties:
    return {
        name: value
        for name, value in now.properties.items()
        if before.properties.get(name) != value
    }


# --- the interface ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MenuEvents:
    """What a host may tell us of its menu."""

    clicked: Callable[[int, MenuItem], None]
    opened: Callable[[int], None]  # the entry below which it is
    closed: Callable[[], None]


def menu_interface(tree: MenuTree, events: MenuEvents) -> Interface:
    """The D-Bus face of a tree."""
    asked = _Asked(tree, events)
    return Interface(
        MENU,
        properties={
            "Version": Property("u", lambda: 3),  # so that hosts send events in groups
            "TextDirection": Property("s", lambda: "ltr"),
            "Status": Property("s", lambda: "normal"),
            "IconThemePath": Property("as", list),
        },
        methods={
            "GetLayout": Method("iias", f"u{LAYOUT_TYPE}", asked.layout),
            "GetGroupProperties": Method("aias", "a(ia{sv})", asked.group_properties),
            "GetProperty": Method("is", "v", asked.property),
            "Event": Method("isvu", "", asked.event),
            "EventGroup": Method("a(isvu)", "ai", asked.event_group),
            "AboutToShow": Method("i", "b", asked.about_to_show),
            "AboutToShowGroup": Method("ai", "aiai", asked.about_to_show_group),
        },
        signals={
            "ItemsPropertiesUpdated": "a(ia{sv})a(ias)",
            "LayoutUpdated": "ui",
            "ItemActivationRequested": "iu",
        },
    )


class _Asked:
    """Answers to a host's calls. Its arguments have the types that `Method.takes` says."""

    def __init__(self, tree: MenuTree, events: MenuEvents) -> None:
        self._tree = tree
        self._events = events

    def layout(self, number: int, levels: int, names: Sequence[str]) -> tuple[int, Layout]:
        self._known(number)
        return self._tree.revision, self._tree.layout(number, levels, names)

    def group_properties(
        self, numbers: Sequence[int], names: Sequence[str]
    ) -> tuple[list[tuple[int, Properties]]]:
        wanted = dict.fromkeys(numbers or self._tree.ids())
        known = ((number, self._tree.find(number)) for number in wanted)
        chosen = frozenset(names)
        return ([(number, only(entry.properties, chosen)) for number, entry in known if entry],)

    def property(self, number: int, name: str) -> tuple[Variant]:
        properties: Mapping[str, Variant] = self._known(number).properties
        if name not in properties:
            raise Refused("InvalidArgs", "the entry has no such property")
        return (properties[name],)

    def event(self, number: int, kind: str, _data: Variant, _time: int) -> tuple[()]:
        entry = self._tree.find(number)
        if kind == "opened":
            self._events.opened(number)
        elif kind == "closed" and number == ROOT:  # of a submenu: the menu is still open
            self._events.closed()
        elif kind == "clicked" and entry and entry.item:
            self._events.clicked(number, entry.item)
        return ()

    def event_group(self, events: Sequence[tuple[int, str, Variant, int]]) -> tuple[list[int]]:
        for each in events:
            self.event(*each)
        return ([number for number, *_ in events if self._tree.find(number) is None],)

    def about_to_show(self, number: int) -> tuple[bool]:
        self._known(number)
        self._events.opened(number)
        return (False,)  # hosts have been told of every change already

    def about_to_show_group(self, numbers: Sequence[int]) -> tuple[list[int], list[int]]:
        for number in numbers:
            self._events.opened(number)
        return [], [number for number in numbers if self._tree.find(number) is None]

    def _known(self, number: int) -> Entry:
        entry = self._tree.find(number)
        if entry is None:
            raise Refused("InvalidArgs", "no such menu entry")
        return entry
