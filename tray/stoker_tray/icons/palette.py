"""The colours. Shapes tell the states: colours only make the application's icon friendly."""

from __future__ import annotations

from typing import Final, TypeAlias

from stoker_tray.icons import Theme
from stoker_tray.icons.scene import Ink

Colour: TypeAlias = tuple[int, int, int]

FAINT: Final = 0.45  # opacity of what is only hinted at: a ring's track, a flame to come

GLYPHS: Final[dict[Theme, Colour]] = {  # one colour for the whole picture
    Theme.LIGHT: (0x24, 0x24, 0x24),
    Theme.DARK: (0xF2, 0xF2, 0xF2),
    Theme.TEMPLATE: (0, 0, 0),
}
INKS: Final[dict[Ink, Colour]] = {  # a colour for each part, in `Theme.COLOUR`
    Ink.FLAME: (0xFF, 0x7A, 0x1A),
    Ink.CORE: (0xFF, 0xD4, 0x6B),
    Ink.GRATE: (0xE4, 0xDA, 0xD0),
    Ink.RING: (0xFF, 0xB3, 0x4D),
    Ink.MARK: (0xFF, 0xFF, 0xFF),
    Ink.GROUND: (0x2E, 0x26, 0x22),
}
