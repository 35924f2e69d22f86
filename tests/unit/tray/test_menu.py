"""Rows of a face as a pystray menu."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from stoker_tray.adapters.menu import LINE_LIMIT, KeyedItem, Menu, menu_of, plain
from stoker_tray.face import Command, Row, Verb
from tests.fakes.tray_listener import button, line, use


@pytest.fixture
def clicks() -> list[Command]:
    return []


def test_a_menu_has_the_texts_in_order(clicks: list[Command]) -> None:
    menu = menu_of([line("a", "first"), button("b", "second")], clicks.append)

    assert [item.text for item in menu] == ["first", "second"]


def test_an_item_remembers_its_rows_key(clicks: list[Command]) -> None:
    (item,) = menu_of([button("place")], clicks.append)

    assert (type(item), item.key) == (KeyedItem, "place")


def test_a_click_gives_the_rows_command(clicks: list[Command]) -> None:
    (item,) = menu_of([button("a")], clicks.append)

    item(None)

    assert clicks == [use("a")]


def test_a_row_that_only_informs_cannot_be_clicked(clicks: list[Command]) -> None:
    (item,) = menu_of([line("a")], clicks.append)

    item(None)

    assert (item.enabled, clicks) == (False, [])


def test_the_default_row_is_what_a_click_on_the_icon_does(clicks: list[Command]) -> None:
    menu = menu_of([button("a"), button("b", default=True)], clicks.append)

    menu(None)

    assert clicks == [use("b")]


@pytest.mark.parametrize("checked", [True, False, None])
@pytest.mark.parametrize("radio", [True, False])
def test_a_tick_and_a_radio_are_kept(
    checked: bool | None,  # noqa: FBT001
    radio: bool,  # noqa: FBT001
    clicks: list[Command],
) -> None:
    (item,) = menu_of([button("a", checked=checked, radio=radio)], clicks.append)

    assert (item.checked, item.radio) == (checked, radio and checked is not None)


def test_children_become_a_submenu_whose_clicks_count(clicks: list[Command]) -> None:
    menu = menu_of([line("a", children=(line("b", children=(button("c"),)),))], clicks.append)

    ((outer,),) = (tuple(menu),)
    ((inner,),) = (tuple(outer.submenu),)
    (item,) = inner.submenu
    item(None)

    assert (outer.enabled, inner.enabled, clicks) == (True, True, [use("c")])


def test_separators_at_the_ends_and_in_a_row_are_dropped(clicks: list[Command]) -> None:
    def separator(key: str) -> Row:
        return Row(key, separator=True)

    rows = [separator("1"), line("a"), separator("2"), separator("3"), line("b"), separator("4")]

    items = list(menu_of(rows, clicks.append))

    assert [item is Menu.SEPARATOR for item in items] == [False, True, False]


@pytest.mark.parametrize(
    "name",
    ["qwen3-4b_q4", "نموذج العربية", "דגם", "모델 🤖", "ą́ é ü", "R&D <b>", "👩‍👩‍👧", "ไทย", "名前"],
)
def test_names_in_any_script_stay_as_they_are(name: str) -> None:
    assert plain(name) == name


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("two\nlines", "two lines"),
        ("nul\0inside", "nul inside"),
        ("tab\tand\x1b[31m", "tab and [31m"),
        ("lone \ud800 surrogate", "lone ? surrogate"),
        ("paragraph\u2029end", "paragraph end"),
    ],
)
def test_what_no_menu_can_show_is_replaced(text: str, shown: str) -> None:
    assert plain(text) == shown


def test_a_line_too_long_for_a_screen_is_cut() -> None:
    shown = plain("x" * 10_000)

    assert (len(shown), shown[-1]) == (LINE_LIMIT, "…")


def test_pystray_is_never_let_near_a_screen() -> None:
    code = (
        "import sys, stoker_tray.adapters.menu;"
        "bad = {'gi', 'Xlib', 'pystray._xorg', 'pystray._gtk'} & set(sys.modules);"
        "sys.exit(str(bad) if bad else 0)"
    )
    environ = {**os.environ, "PYSTRAY_BACKEND": "xorg", "DISPLAY": ":0"}

    subprocess.run([sys.executable, "-c", code], env=environ, check=True, timeout=60)


def test_a_verb_without_argument_is_a_command_too(clicks: list[Command]) -> None:
    (item,) = menu_of([Row("quit", "Quit", Command(Verb.QUIT))], clicks.append)

    item(None)

    assert clicks == [Command(Verb.QUIT)]
