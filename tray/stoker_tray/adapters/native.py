"""What the native menus of Windows and macOS share: when a menu that stands open can stay."""

from __future__ import annotations

from collections.abc import Iterable

from stoker_tray.face import Command, Row

Shape = tuple[tuple[object, ...], ...]


def shape(rows: Iterable[Row]) -> Shape:
    """Everything of a menu that cannot change while it stands open: its lines, not their words."""
    return tuple(
        (row.key, row.separator, row.radio, row.checked is None, shape(row.children))
        for row in rows
    )


def default_command(rows: Iterable[Row]) -> Command | None:
    """What a click on the icon itself asks for."""
    return next((row.command for row in rows if row.default and row.command), None)
