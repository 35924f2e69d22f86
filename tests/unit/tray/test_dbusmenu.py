"""A menu as hosts see it: ids that can be trusted, and changes that leave an open menu open."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker_tray.adapters.dbus_object import Interface, Refused
from stoker_tray.adapters.dbusmenu import (
    LEVELS_AT_ONCE,
    ROOT,
    Changes,
    MenuEvents,
    MenuTree,
    menu_interface,
)
from stoker_tray.adapters.menu import menu_of
from stoker_tray.face import Command, Row
from tests.fakes.tray_host import Line, line_of
from tests.fakes.tray_listener import button, line, use


class Menu:
    """A tree with what hosts did to it."""

    def __init__(self, *rows: Row) -> None:
        self.tree = MenuTree()
        self.clicks: list[Command] = []
        self.opened = 0
        self.closed = 0
        events = MenuEvents(lambda _id, item: item(None), self._opened, self._closed)
        self.interface: Interface = menu_interface(self.tree, events)
        self.show(*rows)

    def show(self, *rows: Row) -> Changes:
        return self.tree.update(menu_of(rows, self.clicks.append))

    def _opened(self, number: int) -> None:
        self.opened += 1
        if number == ROOT:
            self.tree.open()

    def _closed(self) -> None:
        self.closed += 1
        self.tree.close()

    def ask(self, member: str, *args: Any) -> Any:
        return self.interface.methods[member].do(*args)

    def lines(self) -> Line:
        return line_of(self.ask("GetLayout", ROOT, -1, [])[1])

    def id_of(self, *labels: str) -> int:
        found = self.lines()
        for label in labels:
            found = next(each for each in found.inside if each.label == label)
        return found.number


def event(number: int, kind: str) -> tuple[int, str, tuple[str, int], int]:
    return number, kind, ("i", 0), 0


# --- an open menu ----------------------------------------------------------------------------


def labels(menu: Menu) -> list[str]:
    return [each.label for each in menu.lines().inside]


def test_an_open_menu_keeps_its_rows_and_renews_its_words() -> None:
    """Rows that came or went meanwhile are there, or not, from its end on."""
    menu = Menu(line("head"), button("free"), button("quit"))
    menu.tree.open()

    shown = menu.show(Row("head", "busy"), button("new"), button("quit"))
    assert (shown.parents, len(shown.values)) == ((), 1)
    assert labels(menu) == ["busy", "free", "quit"]
    assert menu.ask("GetLayout", menu.id_of("free"), 0, [])

    changes = menu.tree.close()
    assert changes.parents == (ROOT,)
    assert labels(menu) == ["busy", "new", "quit"]
    assert menu.tree.close() == Changes()


def test_what_waited_is_there_when_the_menu_opens_again() -> None:
    """Some hosts never say that it was closed."""
    menu = Menu(button("one"))
    menu.tree.open()
    menu.show(button("two"))

    assert menu.tree.open().parents == (ROOT,)

    assert labels(menu) == ["two"]
    menu.show(button("three"))
    assert labels(menu) == ["two"]


def test_only_the_last_of_what_waited_counts() -> None:
    menu = Menu(button("one"))
    menu.tree.open()
    menu.show(button("two"))
    menu.show(button("one"))

    assert menu.tree.close() == Changes()
    assert labels(menu) == ["one"]


# --- what a host sees ------------------------------------------------------------------------


def test_every_sort_of_line_says_what_it_is() -> None:
    menu = Menu(
        line("informs"),
        button("acts"),
        button("tick", checked=True),
        button("radio", checked=False, radio=True),
        Row("s", separator=True),
        line("more", children=(button("inner"),)),
    )

    seen = [(each.kind, each.label, each.enabled, each.checked) for each in menu.lines().inside]

    assert seen == [
        ("line", "informs", False, False),
        ("line", "acts", True, False),
        ("checkmark", "tick", True, True),
        ("radio", "radio", True, False),
        ("separator", "", True, False),
        ("submenu", "more", True, False),
    ]


def test_the_root_says_that_it_has_a_submenu() -> None:
    assert Menu().ask("GetLayout", ROOT, 0, [])[1][1] == {"children-display": ("s", "submenu")}


def test_an_underscore_in_a_name_is_doubled() -> None:
    menu = Menu(button("m", "qwen_3__4b"))

    (found,) = menu.ask("GetProperty", menu.lines().inside[0].number, "label")

    assert found == ("s", "qwen__3____4b")


@pytest.mark.parametrize(("depth", "levels"), [(0, 0), (1, 1), (2, 2), (3, 3), (-1, 3), (9, 3)])
def test_a_host_gets_as_many_levels_as_it_asks_for(depth: int, levels: int) -> None:
    menu = Menu(line("1", children=(line("2", children=(button("3"),)),)))

    node, found = menu.ask("GetLayout", ROOT, depth, [])[1], 0
    while node[2]:
        (((_, node),), found) = (node[2], found + 1)

    assert found == levels


def test_a_submenu_can_be_asked_for_alone() -> None:
    menu = Menu(line("1", children=(button("2"), button("3"))), button("4"))

    node = menu.ask("GetLayout", menu.id_of("1"), -1, [])[1]

    assert [each.label for each in line_of(node)] == ["1", "2", "3"]


def test_a_menu_too_deep_for_one_message_is_read_in_parts() -> None:
    rows: tuple[Row, ...] = (button("bottom"),)
    for level in range(30):
        rows = (line(f"level {level}", children=rows),)
    menu = Menu(*rows)

    labels, number = [], ROOT
    for _ in range(3):
        *_, deepest = line_of(menu.ask("GetLayout", number, -1, [])[1])
        labels.append(deepest.label)
        number = deepest.number

    assert labels == [f"level {30 - LEVELS_AT_ONCE}", "bottom", "bottom"]


def test_a_host_gets_only_the_properties_that_it_names() -> None:
    menu = Menu(button("a", checked=True))
    (number,) = [each.number for each in menu.lines().inside]

    layout = menu.ask("GetLayout", number, 0, ["label", "unheard-of"])[1]
    group = menu.ask("GetGroupProperties", [number], ["toggle-state"])

    assert (layout[1], group) == (
        {"label": ("s", "a")},
        ([(number, {"toggle-state": ("i", 1)})],),
    )


def test_a_group_without_ids_is_the_whole_menu() -> None:
    menu = Menu(button("a"), button("b"))

    (found,) = menu.ask("GetGroupProperties", [], [])

    assert {number for number, _ in found} == {line.number for line in menu.lines()}


def test_a_group_leaves_out_what_is_not_there() -> None:
    assert Menu().ask("GetGroupProperties", [404], []) == ([],)


@pytest.mark.parametrize(
    ("member", "args"),
    [
        ("GetLayout", (404, -1, [])),
        ("GetProperty", (404, "label")),
        ("GetProperty", (ROOT, "label")),
        ("AboutToShow", (404,)),
        ("GetLayout", (-1, -1, [])),
    ],
)
def test_what_is_not_in_the_menu_is_an_error(member: str, args: tuple[Any, ...]) -> None:
    with pytest.raises(Refused):
        Menu(button("a")).ask(member, *args)


# --- clicks ----------------------------------------------------------------------------------


def test_a_click_reaches_the_rows_command() -> None:
    menu = Menu(line("more", children=(button("a"), button("b"))))

    menu.ask("Event", *event(menu.id_of("more", "b"), "clicked"))

    assert menu.clicks == [use("b")]


def test_a_click_on_a_line_that_is_gone_does_nothing() -> None:
    menu = Menu(button("a"), button("b"))
    stale = menu.id_of("a")
    menu.show(button("b"))

    menu.ask("Event", *event(stale, "clicked"))

    assert menu.clicks == []


def test_a_click_on_what_cannot_be_clicked_does_nothing() -> None:
    menu = Menu(line("a"), Row("s", separator=True), line("more", children=(button("b"),)))

    for each in menu.lines():
        if each.label != "b":
            menu.ask("Event", *event(each.number, "clicked"))

    assert menu.clicks == []


def test_events_in_a_group_all_count_and_unknown_ids_come_back() -> None:
    menu = Menu(button("a"), button("b"))
    numbers = (menu.id_of("a"), 404, menu.id_of("b"))

    (unknown,) = menu.ask("EventGroup", [event(number, "clicked") for number in numbers])

    assert (menu.clicks, unknown) == ([use("a"), use("b")], [404])


@pytest.mark.parametrize("kind", ["hovered", "", "CLICKED", "x" * 1000])
def test_other_events_do_nothing(kind: str) -> None:
    menu = Menu(button("a"))

    menu.ask("Event", *event(menu.id_of("a"), kind))

    assert (menu.clicks, menu.opened, menu.closed) == ([], 0, 0)


def test_a_menu_is_opened_and_closed() -> None:
    menu = Menu(button("a"))

    menu.ask("AboutToShow", ROOT)
    menu.ask("Event", *event(ROOT, "opened"))
    menu.ask("AboutToShowGroup", [ROOT])
    menu.ask("Event", *event(ROOT, "closed"))

    assert (menu.opened, menu.closed) == (3, 1)


def test_a_submenu_that_closes_leaves_the_menu_open() -> None:
    menu = Menu(line("more", children=(button("a"),)))

    menu.ask("Event", *event(menu.id_of("more"), "closed"))

    assert menu.closed == 0


def test_ids_that_are_gone_come_back_when_a_group_is_about_to_show() -> None:
    menu = Menu(button("a"))

    assert menu.ask("AboutToShowGroup", [ROOT, 404, menu.id_of("a")]) == ([], [404])


# --- changes ---------------------------------------------------------------------------------


def test_the_same_menu_again_changes_nothing() -> None:
    rows = (button("a"), line("more", children=(button("b", checked=True),)))
    menu = Menu(*rows)

    assert (menu.show(*rows), menu.tree.revision) == (Changes(), Menu(*rows).tree.revision)


def test_another_label_is_a_value_and_no_new_layout() -> None:
    menu = Menu(line("cpu", "CPU 6 %"), button("a"))

    changes = menu.show(line("cpu", "CPU 8 %"), button("a"))

    assert changes == Changes(values=((menu.id_of("CPU 8 %"), {"label": ("s", "CPU 8 %")}),))


def test_a_tick_and_what_can_be_clicked_are_values_too() -> None:
    menu = Menu(button("a", checked=False), line("b"))

    changes = menu.show(button("a", checked=True), button("b"))

    assert changes == Changes(
        values=(
            (menu.id_of("a"), {"toggle-state": ("i", 1)}),
            (menu.id_of("b"), {"enabled": ("b", True)}),
        )
    )


def test_a_new_line_in_a_submenu_concerns_that_submenu_only() -> None:
    menu = Menu(line("x", children=(button("a"),)), line("y", children=(button("b"),)))

    changes = menu.show(
        line("x", children=(button("a"),)), line("y", children=(button("b"), button("c")))
    )

    assert changes == Changes(parents=(menu.id_of("y"),))


def test_the_revision_grows_with_the_layout_only() -> None:
    menu = Menu(button("a"))
    first = menu.tree.revision

    menu.show(button("a", "other text"))
    second = menu.tree.revision
    menu.show(button("a"), button("b"))

    assert (second - first, menu.tree.revision - second) == (0, 1)


def test_a_line_keeps_its_id_while_others_come_and_go() -> None:
    menu = Menu(button("a"), button("b"), button("c"))
    before = menu.id_of("c")

    menu.show(button("c"))
    menu.show(button("new"), button("c"), button("a"))

    assert menu.id_of("c") == before


def test_a_line_that_comes_back_has_its_old_id() -> None:
    menu = Menu(button("a"), button("b"))
    before = menu.id_of("a")

    menu.show(button("b"))
    menu.show(button("b"), button("a"))

    assert menu.id_of("a") == before


def test_an_id_is_never_given_to_another_line() -> None:
    menu = Menu()
    owners: dict[int, str] = {}

    for count in range(50):
        menu.show(button(f"m{count}"), button(f"m{count + 1}"))
        for each in menu.lines().inside:
            assert owners.setdefault(each.number, each.label) == each.label


def test_the_same_key_in_two_submenus_is_two_lines() -> None:
    menu = Menu(line("x", children=(button("a"),)), line("y", children=(button("a"),)))

    assert menu.id_of("x", "a") != menu.id_of("y", "a")


def test_a_line_that_becomes_a_submenu_is_another_entry() -> None:
    menu = Menu(line("models", "No models"))
    before = menu.id_of("No models")

    changes = menu.show(line("models", "Models", children=(button("a"),)))

    assert (menu.id_of("Models") != before, changes) == (True, Changes(parents=(ROOT,)))


def test_equal_keys_by_mistake_are_still_two_lines() -> None:
    menu = Menu(button("same", "first"), button("same", "second"))

    menu.ask("Event", *event(menu.id_of("second"), "clicked"))

    assert (len(set(menu.tree.ids())), menu.clicks) == (3, [use("same")])


# --- a host that believes only what it is told -----------------------------------------------


class Mirror:
    """A host that reads the layout once and then follows the changes, as Qt's does.

    For a parent named by LayoutUpdated it reads one level; what is new there it reads when it is
    about to show it.
    """

    def __init__(self, menu: Menu) -> None:
        self._menu = menu
        self._properties: dict[int, dict[str, Any]] = {}
        self._children: dict[int, list[int]] = {}
        self._read(ROOT)

    def _read(self, number: int) -> None:
        _, properties, below = self._menu.ask("GetLayout", number, 1, [])[1]
        self._properties.setdefault(number, dict(properties))
        before = self._children.get(number, [])
        now = self._children[number] = [child[0] for _, child in below]
        for child in set(before) - set(now):
            self._forget(child)
        for _, (child, values, _) in below:
            if child not in self._properties:
                self._properties[child] = dict(values)
                if "children-display" in values:
                    self._read(child)

    def _forget(self, number: int) -> None:
        del self._properties[number]
        for child in self._children.pop(number, []):
            self._forget(child)

    def follow(self, changes: Changes) -> None:
        for number, values in changes.values:
            self._properties[number].update(values)
        for parent in changes.parents:
            self._read(parent)

    def shows(self, number: int = ROOT) -> Any:
        below = [self.shows(child) for child in self._children.get(number, ())]
        return number, dict(self._properties[number]), below


def _plain(node: Any) -> Any:
    number, properties, below = node
    return number, properties, [_plain(child) for _, child in below]


def _rows(children: st.SearchStrategy[tuple[Row, ...]]) -> st.SearchStrategy[tuple[Row, ...]]:
    keys = st.sampled_from("abcd")
    row = st.builds(
        Row,
        key=keys,
        text=st.sampled_from(["one", "two"]),
        command=st.sampled_from([None, use("x")]),
        checked=st.sampled_from([None, True, False]),
        radio=st.booleans(),
        separator=st.booleans(),
        children=children,
    )
    return st.lists(row, max_size=4, unique_by=lambda each: each.key).map(tuple)


_MENUS = st.recursive(st.just(()), _rows, max_leaves=12)


@given(st.lists(_MENUS, min_size=2, max_size=6))
def test_who_follows_the_changes_always_sees_the_menu(menus: list[tuple[Row, ...]]) -> None:
    menu = Menu(*menus[0])
    mirror = Mirror(menu)
    seen = []
    expected = []

    for rows in menus[1:]:
        mirror.follow(menu.show(*rows))
        seen.append(mirror.shows())
        expected.append(_plain(menu.ask("GetLayout", ROOT, -1, [])[1]))

    assert seen == expected


def _two_hundred(cpu: str) -> tuple[Row, ...]:
    models = tuple(
        line(f"m{n}", f"model {n}", children=(button("use", checked=False, radio=True),))
        for n in range(200)
    )
    return line("cpu", cpu), Row("s", separator=True), line("models", children=models)


def test_one_changed_line_among_two_hundred_is_all_that_is_told() -> None:
    menu = Menu(*_two_hundred("6 %"))

    changes = menu.show(*_two_hundred("8 %"))

    assert (len(changes.values), changes.parents, len(menu.tree.ids())) == (1, (), 404)
