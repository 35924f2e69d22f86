"""Comparing pictures of a screen: where something appeared, and which row of a menu lights up."""

from __future__ import annotations

from PIL import Image, ImageChops

VISIBLE = 24  # of 255: weaker differences are shadows and smoothing
EDGE_PX = 4  # a menu's border and shadow
LIT = 0.6  # of a menu's width: new text changes less of a line, a highlight nearly all

Box = tuple[int, int, int, int]  # left, top, right, bottom; as Pillow counts


def difference(before: Image.Image, after: Image.Image) -> Image.Image:
    """White where the two differ visibly in any colour, else black."""
    red, green, blue = ImageChops.difference(before, after).split()
    strongest = ImageChops.lighter(ImageChops.lighter(red, green), blue)
    return strongest.point(lambda value: 255 if value > VISIBLE else 0)


def changed(before: Image.Image, after: Image.Image) -> Box | None:
    """The smallest box that holds every visible difference."""
    return difference(before, after).getbbox()


def without(picture: Image.Image, box: Box) -> Image.Image:
    """A copy with this box, and its edges, blackened."""
    left, top, right, bottom = box
    copy = picture.copy()
    copy.paste((0, 0, 0), (left - EDGE_PX, top - EDGE_PX, right + EDGE_PX, bottom + EDGE_PX))
    return copy


def middle(box: Box) -> tuple[int, int]:
    return (box[0] + box[2]) // 2, (box[1] + box[3]) // 2


def highlighted(before: Image.Image, after: Image.Image, menu: Box, y: int) -> Box | None:
    """The row of the menu around the screen's line `y`, if it has lit up as a whole."""
    left, top, right, bottom = menu
    width = right - left
    part = difference(before.crop(menu), after.crop(menu))
    means = part.resize((1, part.height), Image.Resampling.BOX).tobytes()  # per line, of 255
    lit = [mean >= 255 * LIT for mean in means]
    first = last = y - top
    if width < 1 or not lit[first]:
        return None
    while first > 0 and lit[first - 1]:
        first -= 1
    while last + 1 < bottom - top and lit[last + 1]:
        last += 1
    return left, top + first, right, top + last + 1
