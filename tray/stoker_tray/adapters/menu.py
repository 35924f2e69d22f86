"""The rows of a face as a pystray menu, for every adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pystray import Menu, MenuItem

from stoker_tray.face import Command, Row

__all__ = ["Clicked", "KeyedItem", "Menu", "MenuItem", "menu_of", "plain"]

Clicked = Callable[[Command], None]

LINE_LIMIT = 240  # characters; a longer line of a menu would fill the screen
# A line break splits a menu's line; a NUL ends a string on Windows and the connection on D-Bus.
_BLANKS = dict.fromkeys((*range(32), *range(127, 160), 0x2028, 0x2029), " ")


def plain(text: str, limit: int = LINE_LIMIT) -> str:
    """One line of text that every system can show, whatever a model is called."""
    line = text.translate(_BLANKS).encode("utf-8", "replace").decode("utf-8")  # no lone surrogates
    return line if len(line) <= limit else line[: limit - 1] + "…"


class KeyedItem(MenuItem):  # type: ignore[misc]  # pystray has no types
    """A pystray menu item that remembers its row's key."""

    def __init__(self, row: Row, clicked: Clicked) -> None:
        checked = row.checked
        super().__init__(
            plain(row.text),
            _action(row, clicked),
            checked=None if checked is None else lambda _item: bool(checked),
            radio=row.radio,
            default=row.default,
            enabled=row.enabled,
        )
        self.key = row.key


def _action(row: Row, clicked: Clicked) -> Menu | Callable[[object, object], None] | None:
    if row.children:
        return menu_of(row.children, clicked)
    command = row.command
    if command is None:
        return None
    return lambda _icon, _item: clicked(command)


def menu_of(rows: Iterable[Row], clicked: Clicked) -> Menu:
    """Make the menu whose clicks call `clicked` with the row's command.

    Separators are pystray's own, so that it drops the first, the last and the doubled ones.
    """
    return Menu(*(Menu.SEPARATOR if row.separator else KeyedItem(row, clicked) for row in rows))
