"""The tray's icons, drawn from one description (`scene`).

Importing this costs nothing: Pillow is loaded when the first picture is drawn.
"""

from __future__ import annotations

from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING

from stoker_tray.face import IconKey

if TYPE_CHECKING:
    from PIL.Image import Image


class Theme(StrEnum):
    """What the picture stands on."""

    LIGHT = "light"  # a dark glyph for a light panel
    DARK = "dark"  # a light glyph for a dark panel
    TEMPLATE = "template"  # black and alpha: macOS colours it
    COLOUR = "colour"  # the application's icon: brings its own ground


@lru_cache(maxsize=64)  # a load's progress at four sizes; about 5 kB each
def image(key: IconKey, size: int, theme: Theme) -> Image:
    """Return the picture of a state, RGBA and square. It is shared: do not draw on it."""
    from stoker_tray.icons.paint import picture

    return picture(key, size, theme)
