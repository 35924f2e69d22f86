"""Makes Pillow's pictures of scenes."""

from __future__ import annotations

from PIL import Image, ImageChops

from stoker_tray.face import IconKey
from stoker_tray.icons import Theme
from stoker_tray.icons.coverage import coverage
from stoker_tray.icons.palette import FAINT, GLYPHS, INKS
from stoker_tray.icons.scene import Ink, Layer, ground, inset, scene

Picture = Image.Image


def picture(key: IconKey, size: int, theme: Theme) -> Picture:
    """Draw a state: RGBA, this many pixels wide and high."""
    if theme is Theme.COLOUR:
        return _on_ground(key, size)
    alpha = Image.new("L", (size, size))
    for layer in scene(key, size):
        if layer.ink is not Ink.CORE:  # in one colour it would be lost in the flame
            alpha.paste(255 if layer.ink else 0, mask=_mask(layer, size))
    drawn = Image.new("RGB", (size, size), GLYPHS[theme])
    drawn.putalpha(alpha)
    return drawn


def _on_ground(key: IconKey, size: int) -> Picture:
    """Draw it smaller on its own ground, so that it looks the same on every desktop."""
    edge = inset(size)
    small = size - 2 * edge
    drawn = Image.new("RGB", (size, size), INKS[Ink.GROUND])
    alpha = _mask(ground(size), size)
    for layer in scene(key, small):
        mask = Image.new("L", (size, size))
        mask.paste(_mask(layer, small), (edge, edge))
        drawn.paste(INKS[layer.ink or Ink.GROUND], mask=mask)
        alpha = ImageChops.lighter(alpha, mask)  # a badge may stand out over the ground
    drawn.putalpha(alpha)
    return drawn


def _mask(layer: Layer, size: int) -> Picture:
    opacity = FAINT if layer.faint else 1.0
    return Image.frombytes("L", (size, size), coverage(layer.outline, size, opacity))
